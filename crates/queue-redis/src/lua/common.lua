-- Shared by every script. One script is one atomic step, so no two workers see the same state.
--
-- stream     one entry per job in the queue, fields `job` and `trace`; the group's pending list holds the leased ones
-- entries    job -> id of its one valid entry in the stream
-- deadlines  job -> end of its lease, in milliseconds of this server's clock
-- leases     job -> "<epoch> <worker>"
-- epochs     the last epoch given out
local stream, entries, deadlines, leases, epochs = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local GROUP = 'workers'

local function now_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function now_ms()
  return math.floor(now_us() / 1000)
end

-- Large numbers print as 1.7e+15 otherwise.
local function integer(number)
  return string.format('%.0f', number)
end

local function make_group()
  redis.pcall('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
end

local function add(job, trace)
  if redis.call('EXISTS', stream) == 0 then make_group() end
  local id = redis.call('XADD', stream, '*', 'job', job, 'trace', trace)
  redis.call('HSET', entries, job, id)
end

local function drop(id)
  redis.pcall('XACK', stream, GROUP, id)
  redis.call('XDEL', stream, id)
end

-- A worker that holds nothing is forgotten, so that names of gone workers do not pile up.
local function forget_idle(worker)
  local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', 1, worker)
  if type(pending) == 'table' and not pending.err and #pending == 0 then
    redis.pcall('XGROUP', 'DELCONSUMER', stream, GROUP, worker)
  end
end

local function holder(job)
  local lease = redis.call('HGET', leases, job)
  if not lease then return nil end
  return string.match(lease, '^(%d+) (.*)$')
end

local function end_lease(job)
  local _, worker = holder(job)
  redis.call('ZREM', deadlines, job)
  redis.call('HDEL', leases, job)
  return worker
end

-- Puts a job at the back of the queue as a new entry: only entries that were never delivered count as lag, and lag is
-- what an autoscaler sees.
local function requeue(job)
  local trace = ''
  local id = redis.call('HGET', entries, job)
  if id then
    local found = redis.call('XRANGE', stream, id, id)
    if found[1] then trace = found[1][2][4] end
    drop(id)
  end
  local worker = end_lease(job)
  add(job, trace)
  if worker then forget_idle(worker) end
end

-- Puts jobs whose lease ran out back into the queue, the longest expired first.
local function requeue_expired()
  local expired = redis.call('ZRANGEBYSCORE', deadlines, '-inf', now_ms(), 'LIMIT', 0, 100)
  for _, job in ipairs(expired) do requeue(job) end
end

-- Whether this epoch holds the job now.
local function holds(job, epoch)
  local current = holder(job)
  local deadline = redis.call('ZSCORE', deadlines, job)
  return current == epoch and deadline and tonumber(deadline) > now_ms()
end
