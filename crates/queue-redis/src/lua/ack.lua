-- ARGV: job, epoch. Returns 1 if the job left the queue, 0 if the lease is lost. XACK itself knows no owner, so it
-- would let a zombie end somebody else's lease.
local job, epoch = ARGV[1], ARGV[2]
if not holds(job, epoch) then return 0 end
drop(redis.call('HGET', entries, job) or '0-0')
redis.call('HDEL', entries, job)
forget_idle(end_lease(job))
return 1
