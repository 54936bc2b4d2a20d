-- Returns {queued, leased}.
requeue_expired()
local leased = redis.call('ZCARD', deadlines)
return {redis.call('HLEN', entries) - leased, leased}
