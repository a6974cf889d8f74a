-- Replays prepared requests, so that every system gets the same bytes and wrk spends no time making them.
--
--   wrk -s replay.lua [options] URL -- FILE CHECK ADDRESS...
--
-- FILE     requests, each as "<length>\n<bytes>" (workload.py writes it)
-- CHECK    text that every good answer's body contains, or "" to look at no body (the measured runs:
--          parsing bodies in Lua would cost the servers the processor time that wrk takes)
-- ADDRESS  "host port" per wrk thread; none means the URL's. wrk gives a thread one address, so
--          spreading over three nodes takes three threads.
--
-- The last line printed is "RESULT " and JSON. Latencies are microseconds, as wrk corrects them for
-- coordinated omission (it does so before it calls done).

local requests, count = {}, 0
local threads = {}

sent, bad, first_bad = 0, 0, "" -- globals: done() fetches them by thread:get()

function setup(thread)
  table.insert(threads, thread)
  thread:set("number", #threads)
end

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local text = file:read("*a")
  file:close()
  local at = 1
  while at <= #text do
    local newline = assert(string.find(text, "\n", at, true))
    local length = tonumber(string.sub(text, at, newline - 1))
    count = count + 1
    requests[count] = string.sub(text, newline + 1, newline + length)
    at = newline + length + 1
  end
  position = 0

  local check = args[2] or ""
  local address = args[2 + number]
  if address then
    local host, port = string.match(address, "^(%S+) (%S+)$")
    wrk.thread.addr = assert(wrk.lookup(host, port)[1])
    position = math.floor(count * (number - 1) / (#args - 2))
  end
  if check ~= "" then
    response = function(status, headers, body)
      if status ~= 200 or not string.find(body, check, 1, true) then
        bad = bad + 1
        if first_bad == "" then first_bad = status .. " " .. string.sub(body, 1, 200) end
      end
    end
  end
end

function request()
  position = position % count + 1
  sent = sent + 1
  return requests[position]
end

local function quoted(text)
  return '"' .. string.gsub(text, '[%c"\\\127-\255]', function(c)
    return string.format("\\u%04x", string.byte(c))
  end) .. '"'
end

function done(summary, latency, rates)
  -- wrk calls the first thread's request() once before it starts, to see whether it is pipelined.
  local all_sent, all_bad, first = -1, 0, ""
  for _, thread in ipairs(threads) do
    all_sent = all_sent + thread:get("sent")
    all_bad = all_bad + thread:get("bad")
    if first == "" then first = thread:get("first_bad") end
  end
  local e = summary.errors
  io.write(string.format(
    'RESULT {"duration_us":%d,"requests":%d,"bytes":%d,"sent":%d,"bad":%d,"first_bad":%s,' ..
    '"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d,' ..
    '"mean_us":%.1f,"p50_us":%d,"p90_us":%d,"p99_us":%d,"p999_us":%d,"max_us":%d}\n',
    summary.duration, summary.requests, summary.bytes, all_sent, all_bad, quoted(first),
    e.connect, e.read, e.write, e.status, e.timeout,
    latency.mean, latency:percentile(50), latency:percentile(90), latency:percentile(99),
    latency:percentile(99.9), latency.max))
end
