-- One decision over all its limits, atomic because scripts are. The arithmetic is
-- that of package limit.
--
-- KEYS  one counter per use
-- ARGV  now in microseconds, 0 for this server's clock; then for each use:
--       algorithm (s sliding, f fixed), requests, window in microseconds, hits,
--       1 if only observed
-- Returns four numbers for each use: over (0 or 1), used, microseconds until a
-- retry passes, microseconds until all is free. For a fixed use only the second counts.
--
-- A sliding counter is a string of doubles (exact up to 2^53, microseconds of the
-- year 2255): the sum, then time and hits of each entry, oldest first.

local STEPS, MAX_ENTRIES = 32, 64
local ENTRY = 16

local now = tonumber(ARGV[1])
if now == 0 then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end

local function save(key, c, window)
  redis.call('SET', key, struct.pack('<d', c.used) .. c.entries, 'PX', math.ceil(window / 1000) + 1000)
end

-- A clock that was set back must not make uses count for longer than a window.
local function not_in_the_future(c)
  local parts = {}
  for p = 1, #c.entries, ENTRY do
    local at, hits = struct.unpack('<dd', c.entries, p)
    parts[#parts + 1] = struct.pack('<dd', math.min(at, now), hits)
  end
  c.entries = table.concat(parts)
end

local function load(key, window)
  local c = {used = 0, entries = '', pending = 0}
  local raw = redis.call('GET', key)
  if not raw or #raw <= 8 or (#raw - 8) % ENTRY ~= 0 then
    return c
  end
  c.used, c.entries = struct.unpack('<d', raw), string.sub(raw, 9)
  if struct.unpack('<d', c.entries, #c.entries - ENTRY + 1) > now then
    not_in_the_future(c)
    save(key, c, window)
  end
  local p = 1
  while p <= #c.entries do
    local at, hits = struct.unpack('<dd', c.entries, p)
    if at + window > now then break end
    c.used = c.used - hits
    p = p + ENTRY
  end
  if p > 1 then c.entries = string.sub(c.entries, p) end
  return c
end

local function retry(c, requests, window, need)
  for p = 1, #c.entries, ENTRY do
    local at, hits = struct.unpack('<dd', c.entries, p)
    need = need - hits
    if need <= requests then return at + window - now end
  end
  return window
end

local function add(c, requests, window, hits)
  c.used = c.used + hits
  local size = #c.entries
  if size > 0 then
    local at, last = struct.unpack('<dd', c.entries, size - ENTRY + 1)
    local same = at == now
    if requests > STEPS then
      local step = math.floor(window / STEPS)
      same = math.floor(at / step) == math.floor(now / step)
    end
    if same or size >= MAX_ENTRIES * ENTRY then
      c.entries = string.sub(c.entries, 1, size - ENTRY) .. struct.pack('<dd', now, last + hits)
      return
    end
  end
  c.entries = c.entries .. struct.pack('<dd', now, hits)
end

local counters, uses, refused = {}, {}, false
for i, key in ipairs(KEYS) do
  local a = (i - 1) * 5 + 1
  local u = {requests = tonumber(ARGV[a + 2]), window = tonumber(ARGV[a + 3]), hits = tonumber(ARGV[a + 4]), over = 0, retry = 0}
  uses[i] = u
  if ARGV[a + 1] == 'f' then
    -- Refused or not: envoyproxy/ratelimit counts every use, with these commands.
    u.count = redis.call('INCRBY', key, u.hits)
    redis.call('EXPIRE', key, math.ceil(u.window / 1000000))
  else
    local c = counters[key] or load(key, u.window)
    counters[key] = c
    local need = c.used + c.pending + math.max(u.hits, 1)
    if need > u.requests then
      u.over, u.retry = 1, retry(c, u.requests, u.window, need)
      if ARGV[a + 5] ~= '1' then refused = true end
    else
      c.pending = c.pending + u.hits
    end
  end
end

local out = {}
for i, key in ipairs(KEYS) do
  local u = uses[i]
  if not u.count and not refused and u.over == 0 and u.hits > 0 then
    add(counters[key], u.requests, u.window, u.hits)
    save(key, counters[key], u.window)
  end
end
for i, key in ipairs(KEYS) do
  local u, c = uses[i], counters[key]
  local used, reset = u.count, 0
  if c then
    used = c.used
    if #c.entries > 0 then
      reset = struct.unpack('<d', c.entries, #c.entries - ENTRY + 1) + u.window - now
    end
  end
  local n = #out
  out[n + 1], out[n + 2], out[n + 3], out[n + 4] = u.over, used, u.retry, reset
end
return out
