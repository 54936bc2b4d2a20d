-- ARGV: worker, job, ttl in ms. Returns {job, epoch, rank, seats, address}, or {} where the job's call has no free seat.
local worker, job, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local call = find_call(job)
local rank = is_open(call) and free_rank(call)
if not rank then return {} end
sit(call, rank, worker, ttl)
if not free_rank(call) then
  call.closed = true
  save_call(call)
end
return {call.job, call.epoch, integer(rank), integer(call.count), call.address}
