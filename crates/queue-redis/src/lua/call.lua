-- ARGV: job, epoch, seats, ttl in ms, address.
-- Returns {} if the lease is lost, else {1 if an older call lacks workers or 0, worker of each taken seat ...}.
local job, epoch, count, ttl, address = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
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
  if tonumber(other.epoch) < tonumber(epoch) and free_rank(other) then reply[1] = '1' end
end
for rank = 1, call.count do
  local worker = sitter(call, rank)
  if worker then reply[#reply + 1] = worker end
end
return reply
