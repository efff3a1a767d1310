-- One decision over all its limits, atomic because scripts are. The arithmetic is
-- that of package limit: an algorithm there is an entry of ALGORITHMS here, under
-- the code that it has there.
--
-- KEYS  one counter per use
-- ARGV  now in microseconds for what is counted by one clock, 0 for this server's;
--       now in microseconds by the caller's clock; then for each use:
--       the algorithm's code, requests, window in microseconds, hits, 1 if only observed
-- Returns four numbers for each use: over (0 or 1), used, microseconds until a
-- retry passes, microseconds until all is free.

local now, callers = tonumber(ARGV[1]), tonumber(ARGV[2])
if now == 0 then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end

-- An algorithm makes its functions when a decision first has it. One that counts
-- refused uses has
--   count(key, use)         takes hits; returns over, used, retry, reset
-- any other has
--   load(key, use)          returns the counter, with used and pending hits
--   retry(c, use, need)     microseconds until need hits, used ones included, fit
--   add(key, c, use)        takes hits and saves the counter
--   reset(c, use)           microseconds until all is free

-- Fixed: a counter for each window, whose start is in the key. envoyproxy/ratelimit
-- counts with these commands.
local function fixed()
  local function count(key, u)
    local used = redis.call('INCRBY', key, u.hits)
    redis.call('EXPIRE', key, math.ceil(u.window / 1000000))
    local reset = u.window - callers % u.window
    if used > u.requests then return 1, used, reset, reset end
    return 0, used, 0, reset
  end

  return {count = count}
end

-- Sliding: a string of doubles (exact up to 2^53, microseconds of the year 2255):
-- the sum, then time and hits of each entry, oldest first.
local function sliding()
  local STEPS, MAX_ENTRIES, ENTRY = 32, 64, 16

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

  local function load(key, u)
    local c = {used = 0, entries = '', pending = 0}
    local raw = redis.call('GET', key)
    if not raw or #raw <= 8 or (#raw - 8) % ENTRY ~= 0 then
      return c
    end
    c.used, c.entries = struct.unpack('<d', raw), string.sub(raw, 9)
    if struct.unpack('<d', c.entries, #c.entries - ENTRY + 1) > now then
      not_in_the_future(c)
      save(key, c, u.window)
    end
    local p = 1
    while p <= #c.entries do
      local at, hits = struct.unpack('<dd', c.entries, p)
      if at + u.window > now then break end
      c.used = c.used - hits
      p = p + ENTRY
    end
    if p > 1 then c.entries = string.sub(c.entries, p) end
    return c
  end

  local function retry(c, u, need)
    for p = 1, #c.entries, ENTRY do
      local at, hits = struct.unpack('<dd', c.entries, p)
      need = need - hits
      if need <= u.requests then return at + u.window - now end
    end
    return u.window
  end

  local function add(key, c, u)
    c.used = c.used + u.hits
    local size = #c.entries
    local at, last, same
    if size > 0 then
      at, last = struct.unpack('<dd', c.entries, size - ENTRY + 1)
      same = at == now
      if u.requests > STEPS then
        local step = math.floor(u.window / STEPS)
        same = math.floor(at / step) == math.floor(now / step)
      end
      same = same or size >= MAX_ENTRIES * ENTRY
    end
    if same then
      c.entries = string.sub(c.entries, 1, size - ENTRY) .. struct.pack('<dd', now, last + u.hits)
    else
      c.entries = c.entries .. struct.pack('<dd', now, u.hits)
    end
    save(key, c, u.window)
  end

  local function reset(c, u)
    if #c.entries == 0 then return 0 end
    return struct.unpack('<d', c.entries, #c.entries - ENTRY + 1) + u.window - now
  end

  return {load = load, retry = retry, add = add, reset = reset}
end

local ALGORITHMS = {s = sliding, f = fixed}

for a = 3, #ARGV, 5 do -- before anything is counted
  local algorithm = ALGORITHMS[ARGV[a]]
  if not algorithm then return redis.error_reply('ERR unknown algorithm ' .. ARGV[a]) end
  if type(algorithm) == 'function' then ALGORITHMS[ARGV[a]] = algorithm() end
end

local uses, counters, refused, pending = {}, {}, false, false
for i = 1, #KEYS do
  local key, a = KEYS[i], i * 5 - 2
  local algorithm = ALGORITHMS[ARGV[a]]
  local u = {
    algorithm = algorithm, requests = tonumber(ARGV[a + 1]), window = tonumber(ARGV[a + 2]), hits = tonumber(ARGV[a + 3]),
    over = 0, used = 0, retry = 0, reset = 0
  }
  uses[i] = u
  if algorithm.count then
    u.over, u.used, u.retry, u.reset = algorithm.count(key, u)
  else
    pending = true
    local c = counters[key] or algorithm.load(key, u)
    counters[key] = c
    local need = c.used + c.pending + math.max(u.hits, 1)
    if need > u.requests then
      u.over, u.retry = 1, algorithm.retry(c, u, need)
      if ARGV[a + 4] ~= '1' then refused = true end
    else
      c.pending = c.pending + u.hits
    end
  end
end

if pending then
  for i = 1, #KEYS do
    local u = uses[i]
    if not u.algorithm.count and not refused and u.over == 0 and u.hits > 0 then
      u.algorithm.add(KEYS[i], counters[KEYS[i]], u)
    end
  end
  for i = 1, #KEYS do -- once all of them are added
    local u, c = uses[i], counters[KEYS[i]]
    if not u.algorithm.count then
      u.used, u.reset = c.used, u.algorithm.reset(c, u)
    end
  end
end

local out = {}
for i = 1, #uses do
  local u, n = uses[i], i * 4
  out[n - 3], out[n - 2], out[n - 1], out[n] = u.over, u.used, u.retry, u.reset
end
return out
