-- Shared by every script. One script is one atomic step, so no two workers see the same state.
--
-- stream     one entry per job in the queue, fields `job` and `trace`; the group's pending list holds the leased ones
-- gpu_stream the same of jobs that only a worker with a GPU can run
-- entries    job -> id of its one valid entry, followed by " gpu" where that is in gpu_stream
-- deadlines  job -> end of its lease, in milliseconds of this server's clock
-- leases     job -> "<epoch> <worker>"
-- epochs     the last epoch given out
local stream, entries, deadlines, leases, epochs = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local gpu_stream = KEYS[8]
local GROUP = 'workers'
local GPU = 'gpu'

local function stream_of(class)
  if class == GPU then return gpu_stream end
  return stream
end

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

local function make_group(at)
  redis.pcall('XGROUP', 'CREATE', at, GROUP, '0', 'MKSTREAM')
end

local function add(job, class, trace)
  local at = stream_of(class)
  if redis.call('EXISTS', at) == 0 then make_group(at) end
  local id = redis.call('XADD', at, '*', 'job', job, 'trace', trace)
  redis.call('HSET', entries, job, class == GPU and id .. ' ' .. GPU or id)
end

-- Id and class of a job's one valid entry, or nil.
local function entry_of(job)
  local text = redis.call('HGET', entries, job)
  if not text then return nil end
  local id, class = string.match(text, '^(%S+) ?(%S*)$')
  return id, class == GPU and GPU or 'cpu'
end

local function drop(at, id)
  redis.pcall('XACK', at, GROUP, id)
  redis.call('XDEL', at, id)
end

-- A worker that holds nothing is forgotten, so that names of gone workers do not pile up.
local function forget_idle(worker)
  for _, at in ipairs({stream, gpu_stream}) do
    local pending = redis.pcall('XPENDING', at, GROUP, '-', '+', 1, worker)
    if type(pending) == 'table' and not pending.err and #pending == 0 then
      redis.pcall('XGROUP', 'DELCONSUMER', at, GROUP, worker)
    end
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
  local id, class = entry_of(job)
  if id then
    local at = stream_of(class)
    local found = redis.call('XRANGE', at, id, id)
    if found[1] then trace = found[1][2][4] end
    drop(at, id)
  end
  local worker = end_lease(job)
  add(job, class, trace)
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
