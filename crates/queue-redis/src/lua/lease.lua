-- ARGV: worker, ttl in ms.
-- Returns {'job', job, epoch, trace}, or {'none', ms until the nearest deadline or '', id of the stream's last entry}:
-- the caller then blocks until an entry after that one comes.
local worker, ttl = ARGV[1], tonumber(ARGV[2])
requeue_expired()

local function read()
  return redis.pcall('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', 1, 'STREAMS', stream, '>')
end

local function next_entry()
  local reply = read()
  if type(reply) == 'table' and reply.err then
    -- Stream or group are new or were lost. The group starts at 0, so what is in the stream is seen again; entries that
    -- are no longer valid are dropped below.
    make_group()
    reply = read()
  end
  if not reply then return nil end
  if reply.err then return nil, reply end
  return reply[1][2][1]
end

while true do
  local entry, failure = next_entry()
  if failure then return failure end
  if not entry then break end
  local id, job, trace = entry[1], entry[2][2], entry[2][4]
  local valid = job and redis.call('HGET', entries, job) == id and not redis.call('ZSCORE', deadlines, job)
  if valid then
    -- The clock keeps epochs rising even when the server lost the counter.
    local last = tonumber(redis.call('GET', epochs) or '0')
    local epoch = integer(math.max(last + 1, now_us()))
    redis.call('SET', epochs, epoch)
    redis.call('ZADD', deadlines, integer(now_ms() + ttl), job)
    redis.call('HSET', leases, job, epoch .. ' ' .. worker)
    return {'job', job, epoch, trace or ''}
  end
  -- A leased job's entry seen again after the group was lost stays, and is pending again; anything else goes.
  if not (job and redis.call('HGET', entries, job) == id) then drop(id) end
end

forget_idle(worker)
local nearest = redis.call('ZRANGE', deadlines, 0, 0, 'WITHSCORES')
local left = nearest[2] and integer(math.max(tonumber(nearest[2]) - now_ms(), 1)) or ''
local info = redis.call('XINFO', 'STREAM', stream)
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then return {'none', left, info[i + 1]} end
end
return {'none', left, '$'}
