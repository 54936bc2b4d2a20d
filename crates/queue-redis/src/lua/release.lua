-- ARGV: job, epoch. Returns 1 if the job is queued again, 0 if the lease is lost.
local job, epoch = ARGV[1], ARGV[2]
if not holds(job, epoch) then return 0 end
requeue(job)
return 1
