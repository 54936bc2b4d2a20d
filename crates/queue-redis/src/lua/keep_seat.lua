-- ARGV: job, epoch, rank, worker, ttl in ms; a ttl of 0 leaves the seat.
-- Returns -1 if the seat is lost, else 1 if all of the call's seats were taken, 0 if not.
local job, epoch, rank, worker, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local call = find_call(job)
if not (is_open(call) and call.epoch == epoch and sitter(call, rank) == worker) then return -1 end
if ttl > 0 then sit(call, rank, worker, ttl) else redis.call('HDEL', seats, seat_key(job, rank)) end
return call.closed and 1 or 0
