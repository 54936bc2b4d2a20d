-- ARGV: class of a worker. Returns the jobs that it can run and whose calls have a free seat, that of the oldest call first.
local class = ARGV[1]
local reply = {}
for _, call in ipairs(open_calls()) do
  if can_run(class, call.job) and free_rank(call) then reply[#reply + 1] = call.job end
end
return reply
