-- ARGV: job, class, trace. Returns 1 if the job was added, 0 if it is in the queue already.
local job, class, trace = ARGV[1], ARGV[2], ARGV[3]
requeue_expired()

local id, known = entry_of(job)
if not id then
  add(job, class, trace)
  return 1
end
if holder(job) and redis.call('ZSCORE', deadlines, job) then return 0 end

-- Known, held by nobody: then it must wait in the stream undelivered. It does not if the server lost one key and kept
-- another (an eviction policy, a hand at the keyboard).
local at = stream_of(known)
local waits = #redis.call('XRANGE', at, id, id) == 1
local delivered = redis.pcall('XPENDING', at, GROUP, id, id, 1)
local lost_group = type(delivered) == 'table' and delivered.err
if waits and (lost_group or #delivered == 0) then return 0 end
requeue(job)
return 1
