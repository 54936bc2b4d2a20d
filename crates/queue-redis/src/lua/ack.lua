-- ARGV: job, epoch. Returns 1 if the job left the queue, 0 if the lease is lost. XACK itself knows no owner, so it
-- would let a zombie end somebody else's lease.
local job, epoch = ARGV[1], ARGV[2]
if not holds(job, epoch) then return 0 end
local id, class = entry_of(job)
if id then drop(stream_of(class), id) end
redis.call('HDEL', entries, job)
forget_idle(end_lease(job))
return 1
