-- For wrk: sends each request of a file once (the first argument; each request ends with a NUL), and prints the results
-- as one line of JSON. Stops at the end of the file.
local requests = {}
local sent = 0
local thread

function setup(one)
  thread = one
end

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  for request in file:read("*a"):gmatch("[^%z]+") do
    requests[#requests + 1] = request
  end
  file:close()
  ended = 0
end

function request()
  sent = sent + 1
  if sent > #requests then
    wrk.thread:stop()
    ended = 1
    sent = #requests
  end
  return requests[sent]
end

function done(summary, latency)
  local failed = summary.errors
  io.write(string.format(
    '{"answered": %d, "failed": %d, "seconds": %f, "p50": %f, "p99": %f, "p999": %f, "ended": %d}\n',
    summary.requests - failed.status, failed.connect + failed.read + failed.write + failed.status + failed.timeout,
    summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3,
    thread:get("ended")))
end
