-- ARGV: worker, its class, ttl in ms. Returns {job, epoch, rank, seats, address}, or {} where no seat is free for it.
local worker, class, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
for _, call in ipairs(open_calls()) do
  local rank = can_run(class, call.job) and free_rank(call)
  if rank then
    sit(call, rank, worker, ttl)
    if not free_rank(call) then
      call.closed = true
      save_call(call)
    end
    return {call.job, call.epoch, integer(rank), integer(call.count), call.address}
  end
end
return {}
