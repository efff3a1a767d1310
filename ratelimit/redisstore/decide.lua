-- One decision over all its limits, atomic because scripts are. The arithmetic is
-- that of package limit: an algorithm there is an entry of ALGORITHMS here, under
-- the code that it has there, and HOLDS are those of limit.Counter.
--
-- KEYS  one counter per use, then for each use with the flag h one of holds and one
--       of their order, then for each that resets or gives back what was taken then
--       when the counter was reset, then for each with the flag p two of the demands,
--       then for each with the flag i its id
-- ARGV  now in microseconds for what is counted by one clock, 0 for this server's;
--       now in microseconds by the caller's clock; then for each use:
--       the algorithm's code, requests, window in microseconds, hits, flags, and
--       in this order:
--         burst                     if the code is g
--         hits that are wanted      if the flags have w
--         name, microseconds        if the flags have h: the hits are held, if there are microseconds
--         name, weight              if the flags have p: a part of the use before it
--         when, in microseconds     if the flags have R
--         milliseconds              if the flags have i: it is done if its id is not known,
--                                   which is known for so long then
--       Other flags: o only observed; C charge, S settle, R refund, X reset instead of taking.
-- Returns five numbers for each use: over (0 or 1), what is left, microseconds
-- until a retry passes, microseconds until all is free, hits taken or given back;
-- then now.

local now, callers = tonumber(ARGV[1]), tonumber(ARGV[2])
if now == 0 then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end

local function left(requests, used) return math.max(requests - used, 0) end

-- How much a use takes that fits, if so much is left.
local function share(u, rest)
  if u.hits == 0 then return 0 end
  return math.max(u.hits, math.min(u.want, math.max(math.floor(rest / 4), math.min(rest, 64))))
end

-- An algorithm makes its functions when a decision first has it. One that counts
-- refused uses has
--   count(key, use)             takes hits; returns over, left, retry, reset, taken
--   refund(key, use), after(key, use)
-- any other has
--   load(key, use)              returns the counter
--   check(c, use, hits, pending) returns over, left, retry
--   add(c, use, hits)           takes hits
--   refund(c, use, hits, at)    returns what it gave back
--   after(c, use)               returns left, reset
--   save(key, c, use)           for a counter that is dirty

-- Fixed: a counter for each window, whose start is in the key. envoyproxy/ratelimit
-- counts with these commands.
local function fixed()
  local function count(key, u)
    local hits = u.hits
    if u.want > hits and hits > 0 then
      local before = tonumber(redis.call('GET', key) or '0') or 0
      if before + hits <= u.requests then hits = share(u, u.requests - before) end
    end
    local used = redis.call('INCRBY', key, hits)
    redis.call('EXPIRE', key, math.ceil(u.window / 1000000))
    local reset = u.window - callers % u.window
    if used > u.requests then return 1, left(u.requests, used), reset, reset, hits end
    return 0, left(u.requests, used), 0, reset, hits
  end

  local function refund(key, u)
    local given = math.min(tonumber(redis.call('GET', key) or '0') or 0, u.hits)
    if given > 0 then redis.call('INCRBY', key, -given) end
    return given
  end

  local function after(key, u)
    return left(u.requests, tonumber(redis.call('GET', key) or '0') or 0), u.window - callers % u.window
  end

  return {count = count, refund = refund, after = after}
end

-- Sliding: a string of doubles (exact up to 2^53, microseconds of the year 2255):
-- the sum, then time and hits of each entry, oldest first.
local function sliding()
  local STEPS, MAX_ENTRIES, ENTRY = 32, 64, 16

  -- A clock that was set back must not make uses count for longer than a window.
  local function not_in_the_future(c)
    local parts = {}
    for p = 1, #c.entries, ENTRY do
      local at, hits = struct.unpack('<dd', c.entries, p)
      parts[#parts + 1] = struct.pack('<dd', math.min(at, now), hits)
    end
    c.entries, c.dirty = table.concat(parts), true
  end

  local function load(key, u)
    local c = {used = 0, entries = ''}
    local raw = redis.call('GET', key)
    if not raw or #raw <= 8 or (#raw - 8) % ENTRY ~= 0 then
      return c
    end
    c.used, c.entries = struct.unpack('<d', raw), string.sub(raw, 9)
    if struct.unpack('<d', c.entries, #c.entries - ENTRY + 1) > now then not_in_the_future(c) end
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

  local function check(c, u, hits, pending)
    local need = c.used + pending + math.max(hits, 1)
    if need > u.requests then return 1, left(u.requests, c.used + pending), retry(c, u, need) end
    return 0, left(u.requests, c.used + pending), 0
  end

  local function add(c, u, more)
    c.used, c.dirty = c.used + more, true
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
      c.entries = string.sub(c.entries, 1, size - ENTRY) .. struct.pack('<dd', now, last + more)
    else
      c.entries = c.entries .. struct.pack('<dd', now, more)
    end
  end

  local function take_out(c, p, most)
    local at, hits = struct.unpack('<dd', c.entries, p)
    local out = math.min(hits, most)
    local kept = ''
    if hits > out then kept = struct.pack('<dd', at, hits - out) end
    c.entries = string.sub(c.entries, 1, p - 1) .. kept .. string.sub(c.entries, p + ENTRY)
    c.used, c.dirty = c.used - out, true
    return out
  end

  local function refund(c, u, hits, at)
    local given = 0
    if at > 0 then
      for p = 1, #c.entries, ENTRY do
        if struct.unpack('<d', c.entries, p) >= at then return take_out(c, p, hits) end
      end
      return 0
    end
    local p = #c.entries - ENTRY + 1
    while p > 0 and given < hits do
      given = given + take_out(c, p, hits - given)
      p = p - ENTRY
    end
    return given
  end

  local function after(c, u)
    if #c.entries == 0 then return left(u.requests, c.used), 0 end
    return left(u.requests, c.used), struct.unpack('<d', c.entries, #c.entries - ENTRY + 1) + u.window - now
  end

  local function save(key, c, u)
    if #c.entries == 0 then
      redis.call('DEL', key)
      return
    end
    redis.call('SET', key, struct.pack('<d', c.used) .. c.entries, 'PX', math.ceil(u.window / 1000) + 1000)
  end

  return {load = load, check = check, add = add, refund = refund, after = after, save = save}
end

-- GCRA: a string of two doubles, the level in microseconds and as of when.
local function gcra()
  local function interval(u) return u.window / u.requests end

  local function slack(t) return math.min(t * 1e-6, 0.2371) end

  local function load(key, u)
    local c = {level = 0}
    local raw = redis.call('GET', key)
    if u.requests == 0 or not raw or #raw ~= 16 then return c end
    local level, at = struct.unpack('<dd', raw)
    if now > at then
      level = math.max(level - (now - at), 0)
    elseif now < at then
      c.dirty = true
    end
    c.level = level
    return c
  end

  local function after(c, u)
    if u.requests == 0 then return 0, 0 end
    local t = interval(u)
    local free = math.floor((u.burst * t - c.level + slack(t)) / t)
    return math.min(math.max(free, 0), u.burst), math.ceil(c.level)
  end

  local function check(c, u, hits, pending)
    if u.requests == 0 or u.burst == 0 then return 1, 0, u.window end
    local t, need = interval(u), pending + math.max(hits, 1)
    local free = left(after(c, u), pending)
    local excess = c.level + need * t - u.burst * t
    if excess <= slack(t) then return 0, free, 0 end
    if need > u.burst then return 1, free, u.window end
    return 1, free, math.ceil(excess - slack(t))
  end

  local function add(c, u, hits)
    if u.requests == 0 then return end
    local t = interval(u)
    c.level = math.max(c.level, math.min(c.level + hits * t, 2 * (math.max(u.burst, u.requests) * t)))
    c.dirty = true
  end

  local function refund(c, u, hits)
    if u.requests == 0 then return 0 end
    local t = interval(u)
    local given = math.min(hits, math.max(math.floor((c.level + slack(t)) / t), 0))
    c.level = math.max(c.level - given * t, 0)
    c.dirty = true
    return given
  end

  local function save(key, c)
    redis.call('SET', key, struct.pack('<dd', c.level, now), 'PX', math.ceil(c.level / 1000) + 1000)
  end

  return {load = load, check = check, add = add, refund = refund, after = after, save = save}
end

-- Concurrency: holds are all that counts.
local function concurrency()
  local function check(c, u, hits, pending)
    if pending + math.max(hits, 1) > u.requests then return 1, left(u.requests, pending), u.window end
    return 0, left(u.requests, pending), 0
  end

  return {
    load = function() return {} end, check = check, add = function() end, refund = function() return 0 end,
    after = function(_, u) return u.requests, 0 end
  }
end

local ALGORITHMS = {s = sliding, f = fixed, g = gcra, c = concurrency}

-- Holds: a hash with a field for each name, '=' before it: hits, until when they
-- count, and their length; and the field '#' with the sum of what counts, when
-- something changes by itself, when nothing counts any more, the newest time that
-- was told, and when all is forgotten. A sorted set has the names by when they change
-- by themselves, so that nobody looks at those that do not.
local MAX_HOLDS, MAX_SORTED, AT_ONCE = 16384, 64, 64

local function exact(n) return string.format('%.0f', n) end

local function gone(h, till, length)
  if h.keeps then return till + length end
  return till
end

local function each_hold(h, visit)
  local all = redis.call('HGETALL', h.key)
  for i = 1, #all, 2 do
    if all[i] ~= '#' then visit(all[i], struct.unpack('<ddd', all[i + 1])) end
  end
end

local function set_hold(h, name, hits, till, length)
  local at = till
  if hits == 0 then at = gone(h, till, length) end
  redis.call('HSET', h.key, name, struct.pack('<ddd', hits, till, length))
  redis.call('ZADD', h.order, exact(at), name)
  return at
end

local function forget_hold(h, name)
  redis.call('HDEL', h.key, name)
  redis.call('ZREM', h.order, name)
  h.size = h.size - 1
end

-- The order anew: the clock was set back, and none counts for longer than its length,
-- or there is none of all that is held.
local function order_holds(h, back)
  redis.call('DEL', h.order)
  if back then h.last = now end
  each_hold(h, function(name, hits, till, length)
    if back then till = math.min(till, now + length) end
    h.last = math.max(h.last, till)
    set_hold(h, name, hits, till, length)
  end)
end

local function end_due(h, name)
  local raw = redis.call('HGET', h.key, name)
  local hits, till, length = 0, 0, 0
  if raw then hits, till, length = struct.unpack('<ddd', raw) end
  h.sum = h.sum - hits
  if raw and gone(h, till, length) > now then set_hold(h, name, 0, till, length) else forget_hold(h, name) end
end

local function run_holds(h)
  local back = now < h.seen
  if not back and now < h.next then return end
  h.dirty = true
  if back or redis.call('ZCARD', h.order) ~= h.size then order_holds(h, back) end
  repeat
    local first, ended = redis.call('ZRANGE', h.order, 0, AT_ONCE - 1, 'WITHSCORES'), 0
    h.next = 0
    for i = 1, #first, 2 do
      if tonumber(first[i + 1]) > now then
        h.next = tonumber(first[i + 1])
        break
      end
      end_due(h, first[i])
      ended = ended + 1
    end
  until ended == 0
end

local function load_holds(key, order, keeps)
  local h = {key = key, order = order, keeps = keeps, sum = 0, next = 0, last = 0, seen = 0, gone = 0, size = 0}
  local raw = redis.call('HGET', key, '#')
  if raw then
    h.sum, h.next, h.last, h.seen, h.gone = struct.unpack('<ddddd', raw)
    h.size = redis.call('HLEN', key) - 1
    if h.size > 0 then run_holds(h) end
  end
  return h
end

local function put_hold(h, name, hits, length)
  local raw = redis.call('HGET', h.key, '=' .. name)
  local held, till = 0, 0
  if raw then held, till = struct.unpack('<ddd', raw) else h.size = h.size + 1 end
  till = math.max(till, now + length)
  set_hold(h, '=' .. name, held + hits, till, length)
  h.sum, h.last, h.gone, h.dirty = h.sum + hits, math.max(h.last, till), math.max(h.gone, gone(h, till, length)), true
  if h.next == 0 or till < h.next then h.next = till end
end

local function end_hold(h, name)
  local raw = redis.call('HGET', h.key, '=' .. name)
  if not raw then return false end
  forget_hold(h, '=' .. name)
  h.sum, h.dirty = h.sum - struct.unpack('<d', raw), true
  return true
end

local function save_holds(h)
  if h.size == 0 then
    redis.call('DEL', h.key, h.order)
    return
  end
  local keep = math.max(math.ceil((h.gone - now) / 1000), 0) + 1000
  redis.call('HSET', h.key, '#', struct.pack('<ddddd', h.sum, h.next, h.last, now, h.gone))
  redis.call('PEXPIRE', h.key, keep)
  redis.call('PEXPIRE', h.order, keep)
end

local function reset_holds(h)
  if h.sum == 0 then return 0 end
  return math.max(h.last - now, 0)
end

local function retry_holds(h, excess)
  if h.size > MAX_SORTED then return reset_holds(h) end
  local ends = {}
  each_hold(h, function(_, hits, till)
    if hits > 0 then ends[#ends + 1] = {till, hits} end
  end)
  table.sort(ends, function(a, b) return a[1] < b[1] end)
  for _, e in ipairs(ends) do
    if excess <= e[2] then return e[1] - now end
    excess = excess - e[2]
  end
  return reset_holds(h)
end

-- Demands: what those who share a limit asked for, as limit.demands has it. A hash for
-- each other window, with a field for each of them, '=' before its name: hits and
-- weight; and the field '#': which window it is of, how many they are, when the level
-- was found, and the level.
local SPARE, STEPS, MAX_TENANTS = 16, 32, 512

local function load_demands(key, window)
  local raw = redis.call('HGET', key, '#')
  if raw then
    local of, size, step, level = struct.unpack('<dddd', raw)
    if of == window then return {key = key, size = size, step = step, level = level} end
  end
  return nil
end

local function each_demand(d, visit)
  local all = redis.call('HGETALL', d.key)
  for i = 1, #all, 2 do
    if all[i] ~= '#' then visit(all[i], struct.unpack('<dd', all[i + 1])) end
  end
end

local function find_level(l, now_window, before, part)
  local all, list, weights, most = {}, {}, 0, 0
  local function join(name, hits, weight)
    if all[name] then hits = hits + all[name][1] end
    all[name] = {hits, weight}
  end
  if before then each_demand(before, function(name, hits, weight) join(name, math.floor(hits * part), weight) end) end
  each_demand(now_window, join)
  for _, x in pairs(all) do
    list[#list + 1], weights = x, weights + x[2]
  end
  table.sort(list, function(a, b) return a[1] / a[2] < b[1] / b[2] end)
  local rest = l.requests
  if rest >= 2 then rest = rest - math.max(math.floor(rest / SPARE), 1) end
  for _, x in ipairs(list) do
    if x[1] * weights > x[2] * rest then return rest / weights end
    rest, weights, most = rest - x[1], weights - x[2], x[1] / x[2]
  end
  return rest + most
end

-- Takes in what u asks for and says how much of the limit it may use.
local function ask(u)
  local l = u.whole
  local window, step = math.floor(now / l.window), math.floor(now / math.floor(l.window / STEPS))
  local key, other = u.demands[window % 2 + 1], u.demands[(window + 1) % 2 + 1]
  local d, before = load_demands(key, window), nil
  local fresh = not d or d.step ~= step
  if not d then
    redis.call('DEL', key)
    d = {key = key, size = 0}
  end
  if u.hits > 0 then
    local name = '=' .. u.name
    local raw = redis.call('HGET', key, name)
    if not raw and d.size >= MAX_TENANTS then
      name = '='
      raw = redis.call('HGET', key, name)
    end
    local hits = 0
    if raw then hits = struct.unpack('<d', raw) else d.size = d.size + 1 end
    redis.call('HSET', key, name, struct.pack('<dd', math.min(hits + u.hits, 4503599627370496), u.weight))
  end
  if fresh then
    before = load_demands(other, window - 1)
    d.step, d.level = step, find_level(l, d, before, (l.window - now % l.window) / l.window)
  end
  redis.call('HSET', key, '#', struct.pack('<dddd', window, d.size, d.step, d.level))
  redis.call('PEXPIRE', key, math.ceil(l.window / 500) + 1000)
  return math.min(math.max(math.floor(d.level * u.weight), 1), u.requests)
end

-- What is asked.
local uses, counters, holdings = {}, {}, {}
do
  local a, n = 3, 0
  local function argument()
    a = a + 1
    return ARGV[a - 1]
  end
  while a <= #ARGV do
    local u = {code = argument(), requests = tonumber(argument()), window = tonumber(argument()), hits = tonumber(argument()), flags = argument(),
      want = 0, over = 0, left = 0, retry = 0, reset = 0, taken = 0, op = 'T'}
    local algorithm = ALGORITHMS[u.code]
    if not algorithm then return redis.error_reply('ERR unknown algorithm ' .. u.code) end
    if type(algorithm) == 'function' then
      algorithm = algorithm()
      ALGORITHMS[u.code] = algorithm
    end
    u.algorithm = algorithm
    if u.code == 'g' then u.burst = tonumber(argument()) end
    if u.flags ~= '' then
      if string.find(u.flags, 'w', 1, true) then u.want = tonumber(argument()) end
      if string.find(u.flags, 'h', 1, true) then
        u.hold, u.length, u.holding = argument(), tonumber(argument()), true
      end
      u.observed = string.find(u.flags, 'o', 1, true)
      u.op = string.match(u.flags, '%u') or 'T'
      if string.find(u.flags, 'p', 1, true) then
        u.name, u.weight, u.whole = argument(), tonumber(argument()), uses[n]
      end
      if u.op == 'R' then u.when = tonumber(argument()) end
      if string.find(u.flags, 'i', 1, true) then u.keep = argument() end
    end
    n = n + 1
    uses[n] = u
  end
  local k = n -- how many keys are counters is known once all flags are read
  for i = 1, n do
    local u = uses[i]
    u.key = KEYS[i]
    if u.holding then
      k = k + 2
      u.holds, u.order = KEYS[k - 1], KEYS[k]
    end
  end
  for i = 1, n do
    local u = uses[i]
    if u.op == 'X' or u.op == 'R' and u.when > 0 then
      k = k + 1
      u.was_reset = KEYS[k]
    end
  end
  for i = 1, n do
    if uses[i].whole then
      k = k + 2
      uses[i].demands = {KEYS[k - 1], KEYS[k]}
    end
  end
  for i = 1, n do
    if uses[i].keep then
      k = k + 1
      uses[i].id = KEYS[k]
    end
  end
end

-- What of it fits. Nothing is written here but by what counts even if refused.
local refused, later = false, false
for _, u in ipairs(uses) do
  local algorithm = u.algorithm
  if u.op == 'T' and algorithm.count then
    u.over, u.left, u.retry, u.reset, u.taken = algorithm.count(u.key, u)
  else
    later = true
    if u.id then
      u.done = redis.call('GET', u.id)
      -- What cannot be counted is found before anything is written.
      if algorithm.count and not tonumber(redis.call('GET', u.key) or '0') then
        return redis.error_reply('ERR what ' .. u.key .. ' has is no number')
      end
    end
    if not algorithm.count then
      local c = counters[u.key]
      if not c then
        c = algorithm.load(u.key, u)
        c.pending, c.use = 0, u
        counters[u.key] = c
      end
      u.c = c
      if u.holds then
        u.h = holdings[u.holds] or load_holds(u.holds, u.order, u.code ~= 'c')
        holdings[u.holds] = u.h
      end
      if u.op == 'T' then
        local held = c.pending
        if u.h then held = held + u.h.sum end
        local requests, whole = u.requests, u.whole
        if whole then
          u.most = ask(u)
          u.requests = u.most
        end
        u.over, u.left, u.retry = algorithm.check(c, u, u.hits, held)
        if u.h and u.length > 0 and u.hits > 0 and u.h.size >= MAX_HOLDS then
          u.over, u.retry = 1, reset_holds(u.h)
        elseif u.over == 1 and u.code == 'c' and math.max(u.hits, 1) <= u.requests then
          u.retry = retry_holds(u.h, held + math.max(u.hits, 1) - u.requests)
        end
        u.requests = requests
        if whole and whole.over == 1 then u.over, u.retry = 1, whole.retry end
        if u.over == 0 then
          u.taken = share(u, u.left)
          c.pending = c.pending + u.taken
        elseif not u.observed then
          refused = true
        elseif whole then
          whole.c.pending, whole.taken = whole.c.pending - whole.taken, 0
        end
      end
    end
  end
end

-- The rest of what is asked, unless something refuses.
local function take(u, hits)
  if hits == 0 then return end
  if u.h and u.length > 0 then put_hold(u.h, u.hold, hits, u.length) else u.algorithm.add(u.c, u, hits) end
end

local function apply(u)
  local fixed, hits = u.algorithm.count, u.hits
  if u.op == 'C' then
    if fixed then fixed(u.key, u) else take(u, hits) end
  elseif u.op == 'S' then
    if not u.h or not end_hold(u.h, u.hold) then return 0 end
    if hits > 0 then u.algorithm.add(u.c, u, hits) end
  elseif u.op == 'R' then
    if u.was_reset and u.when <= (tonumber(redis.call('GET', u.was_reset) or '0') or 0) then return 0 end
    if fixed then return u.algorithm.refund(u.key, u) end
    return u.algorithm.refund(u.c, u, hits, u.when)
  elseif u.op == 'X' then
    redis.call('DEL', u.key)
    redis.call('SET', u.was_reset, exact(fixed and callers or now), 'PX', math.ceil(u.window / 1000) + 1000)
    if not fixed then
      local fresh, use = u.algorithm.load(u.key, u), u.c.use
      for field in pairs(u.c) do u.c[field] = nil end
      u.c.use = use
      for field, value in pairs(fresh) do u.c[field] = value end
    end
    if u.h then
      redis.call('DEL', u.holds, u.order)
      local fresh = load_holds(u.holds, u.order, u.h.keeps)
      for field, value in pairs(fresh) do u.h[field] = value end
    end
    return 0
  end
  return hits
end

if later then
  for _, u in ipairs(uses) do
    if u.op ~= 'T' then
      if not refused and not u.done then u.taken = apply(u) end
    elseif u.c then
      if refused or u.over == 1 then u.taken = 0 else take(u, u.taken) end
    end
  end
  for _, c in pairs(counters) do
    if c.dirty and c.use.algorithm.save then c.use.algorithm.save(c.use.key, c, c.use) end
  end
  for _, h in pairs(holdings) do
    if h.dirty then save_holds(h) end
  end
  for _, u in ipairs(uses) do
    if u.id and not refused and not u.done then redis.call('SET', u.id, '', 'PX', u.keep) end
  end
  for _, u in ipairs(uses) do -- once all of them are done
    if u.c then
      u.left, u.reset = u.algorithm.after(u.c, u)
      if u.h then
        u.left, u.reset = left(u.left, u.h.sum), math.max(u.reset, reset_holds(u.h))
      end
      if u.whole then u.left = math.min(left(u.left, u.requests - u.most), u.whole.left) end
    elseif u.op ~= 'T' then
      u.left, u.reset = u.algorithm.after(u.key, u)
    end
  end
end

local out = {}
for i, u in ipairs(uses) do
  local n = i * 5
  out[n - 4], out[n - 3], out[n - 2], out[n - 1], out[n] = u.over, u.left, u.retry, u.reset, u.taken
end
out[#out + 1] = now
return out
