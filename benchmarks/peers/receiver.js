// A minimal receiver in Node: one event, one line of JSON, written before it is answered.
const http = require("http");
const fs = require("fs");
const [port, path] = process.argv.slice(2);
const file = fs.openSync(path, "a");

const server = http.createServer((request, response) => {
  const { pathname, searchParams } = new URL(request.url, "http://collector.example");
  if (pathname !== "/collect") {
    response.writeHead(404);
    response.end();
    return;
  }
  const event = {
    time: new Date().toISOString(),
    remote_addr: request.socket.remoteAddress,
    user_agent: request.headers["user-agent"],
    referer: request.headers["referer"],
    ...Object.fromEntries(searchParams),
  };
  fs.writeSync(file, JSON.stringify(event) + "\n");
  response.writeHead(200, { "Content-Type": "text/plain", "Cache-Control": "no-store" });
  response.end(String(Math.floor(Date.now() / 1000)));
});
server.keepAliveTimeout = 75000;
server.listen(Number(port), "127.0.0.1", 4096);
process.on("SIGTERM", () => process.exit(0));
