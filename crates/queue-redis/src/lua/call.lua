-- ARGV: job, epoch, class of the caller, seats, ttl in ms, address.
-- Returns {} if the lease is lost, else {how many older calls that the caller could serve lack workers, the job of each ...,
-- worker of each taken seat ...}.
local job, epoch, class, count, ttl, address = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
if not holds(job, epoch) then return {} end
local call = find_call(job)
if not (is_open(call) and call.epoch == epoch) then
  end_call(job)
  call = {job = job, epoch = epoch, count = count, closed = false, address = address}
end
call.deadline = now_ms() + ttl
save_call(call)
local reply = {'0'}
for _, other in ipairs(open_calls()) do
  if tonumber(other.epoch) < tonumber(epoch) and can_run(class, other.job) and free_rank(other) then
    reply[#reply + 1] = other.job
  end
end
reply[1] = integer(#reply - 1)
for rank = 1, call.count do
  local worker = sitter(call, rank)
  if worker then reply[#reply + 1] = worker end
end
return reply
