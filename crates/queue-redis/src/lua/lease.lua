-- ARGV: worker, its class, ttl in ms.
-- Returns {'job', job, epoch, class of the job, trace}, or {'none', ms until the nearest deadline or '', id of the last entry
-- of each stream that this worker reads}: the caller then blocks until an entry after those comes.
local worker, class, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
requeue_expired()

-- Id of the first entry that was given to nobody, or nil.
local function next_id(at)
  local groups = redis.pcall('XINFO', 'GROUPS', at)
  local last
  for _, group in ipairs(groups.err and {} or groups) do
    local field = {}
    for i = 1, #group, 2 do field[group[i]] = group[i + 1] end
    if field['name'] == GROUP then last = field['last-delivered-id'] end
  end
  if not last then
    make_group(at)
    last = '0-0'
  end
  local found = redis.call('XRANGE', at, '(' .. last, '+', 'COUNT', 1)
  return found[1] and found[1][1]
end

local function is_earlier(one, other)
  local one_ms, one_number = string.match(one, '^(%d+)-(%d+)$')
  local ms, number = string.match(other, '^(%d+)-(%d+)$')
  if one_ms ~= ms then return tonumber(one_ms) < tonumber(ms) end
  return tonumber(one_number) < tonumber(number)
end

-- Where the job has waited longest of those that this worker can run.
local function first_in_line()
  if class ~= GPU then return stream end
  local any, own = next_id(stream), next_id(gpu_stream)
  if own and not (any and is_earlier(any, own)) then return gpu_stream end
  return stream
end

local function read(at)
  return redis.pcall('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', 1, 'STREAMS', at, '>')
end

local function next_entry(at)
  local reply = read(at)
  if type(reply) == 'table' and reply.err then
    -- Stream or group are new or were lost. The group starts at 0, so what is in the stream is seen again; entries that
    -- are no longer valid are dropped below.
    make_group(at)
    reply = read(at)
  end
  if not reply then return nil end
  if reply.err then return nil, reply end
  return reply[1][2][1]
end

while true do
  local at = first_in_line()
  local entry, failure = next_entry(at)
  if failure then return failure end
  if not entry then break end
  local id, job, trace = entry[1], entry[2][2], entry[2][4]
  local current, needed
  if job then current, needed = entry_of(job) end
  local is_current = current == id and stream_of(needed) == at
  if is_current and not redis.call('ZSCORE', deadlines, job) then
    -- The clock keeps epochs rising even when the server lost the counter.
    local last = tonumber(redis.call('GET', epochs) or '0')
    local epoch = integer(math.max(last + 1, now_us()))
    redis.call('SET', epochs, epoch)
    redis.call('ZADD', deadlines, integer(now_ms() + ttl), job)
    redis.call('HSET', leases, job, epoch .. ' ' .. worker)
    return {'job', job, epoch, needed, trace or ''}
  end
  -- A leased job's entry seen again after the group was lost stays, and is pending again; anything else goes.
  if not is_current then drop(at, id) end
end

forget_idle(worker)
local nearest = redis.call('ZRANGE', deadlines, 0, 0, 'WITHSCORES')
local left = nearest[2] and integer(math.max(tonumber(nearest[2]) - now_ms(), 1)) or ''
local reply = {'none', left}
for _, at in ipairs(class == GPU and {stream, gpu_stream} or {stream}) do
  local info, last = redis.call('XINFO', 'STREAM', at), '$'
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
  end
  reply[#reply + 1] = last
end
return reply
