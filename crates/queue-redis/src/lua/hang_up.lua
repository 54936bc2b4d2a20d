-- ARGV: job, epoch. Ends the call of this lease, where there is one.
local job, epoch = ARGV[1], ARGV[2]
local call = find_call(job)
if call and call.epoch == epoch then end_call(job) end
return 1
