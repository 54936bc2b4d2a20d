-- ARGV: job, epoch, ttl in ms. Returns 1 if the lease goes on, 0 if it is lost.
local job, epoch, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not holds(job, epoch) then return 0 end
redis.call('ZADD', deadlines, integer(now_ms() + ttl), job)
return 1
