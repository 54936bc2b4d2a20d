-- Shared by the scripts about ranks.
--
-- calls  job -> "<epoch> <seats> <deadline> <0: waits, 1: all seats were taken> <address>"
-- seats  "<job>/<rank>" -> "<epoch> <deadline> <worker>"
local calls, seats = KEYS[6], KEYS[7]

local function seat_key(job, rank) return job .. '/' .. integer(rank) end

local function find_call(job)
  local text = redis.call('HGET', calls, job)
  if not text then return nil end
  local epoch, count, deadline, closed, address = string.match(text, '^(%d+) (%d+) (%d+) ([01]) (.*)$')
  if not epoch then return nil end
  return {job = job, epoch = epoch, count = tonumber(count), deadline = tonumber(deadline), closed = closed == '1',
    address = address}
end

local function save_call(call)
  local closed = call.closed and '1' or '0'
  local text = table.concat({call.epoch, integer(call.count), integer(call.deadline), closed, call.address}, ' ')
  redis.call('HSET', calls, call.job, text)
end

local function end_call(job)
  local call = find_call(job)
  redis.call('HDEL', calls, job)
  if not call then return end
  for rank = 1, call.count do redis.call('HDEL', seats, seat_key(job, rank)) end
end

-- Whether the call's holder still has its lease and has renewed the call.
local function is_open(call)
  return call and call.deadline > now_ms() and holds(call.job, call.epoch)
end

-- Who sits there now, or nil.
local function sitter(call, rank)
  local text = redis.call('HGET', seats, seat_key(call.job, rank))
  if not text then return nil end
  local epoch, deadline, worker = string.match(text, '^(%d+) (%d+) (.*)$')
  if epoch ~= call.epoch or tonumber(deadline) <= now_ms() then return nil end
  return worker
end

-- Whether a worker of this class can run the job.
local function can_run(class, job)
  local _, needed = entry_of(job)
  return class == GPU or needed ~= GPU
end

local function free_rank(call)
  if call.closed then return nil end
  for rank = 1, call.count do
    if not sitter(call, rank) then return rank end
  end
  return nil
end

local function sit(call, rank, worker, ttl)
  redis.call('HSET', seats, seat_key(call.job, rank), table.concat({call.epoch, integer(now_ms() + ttl), worker}, ' '))
end

-- Open calls, the oldest first; those that have ended are forgotten.
local function open_calls()
  local open = {}
  for _, job in ipairs(redis.call('HKEYS', calls)) do
    local call = find_call(job)
    if is_open(call) then open[#open + 1] = call else end_call(job) end
  end
  table.sort(open, function(a, b) return tonumber(a.epoch) < tonumber(b.epoch) end)
  return open
end
