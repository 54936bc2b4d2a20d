-- ARGV: job, trace. Returns 1 if the job was added, 0 if it is in the queue already.
local job, trace = ARGV[1], ARGV[2]
requeue_expired()

local id = redis.call('HGET', entries, job)
if not id then
  add(job, trace)
  return 1
end
if holder(job) and redis.call('ZSCORE', deadlines, job) then return 0 end

-- Known, held by nobody: then it must wait in the stream undelivered. It does not if the server lost one key and kept
-- another (an eviction policy, a hand at the keyboard).
local waits = #redis.call('XRANGE', stream, id, id) == 1
local delivered = redis.pcall('XPENDING', stream, GROUP, id, id, 1)
local lost_group = type(delivered) == 'table' and delivered.err
if waits and (lost_group or #delivered == 0) then return 0 end
requeue(job)
return 1
