"""The floor: meinheld, configured as in kanalony, sends the same answer and stores nothing."""

import sys

from meinheld import server

BODY = b"1767225600"
HEADERS = [
    ("Content-Type", "text/plain"),
    ("Content-Length", "10"),
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Resource-Policy", "cross-origin"),
    ("Access-Control-Allow-Origin", "*"),
]


def app(environ, start_response):  # type: ignore[no-untyped-def]
    start_response("200 OK", HEADERS[:])
    return [BODY]


server.set_access_logger(None)
server.set_keepalive(75)
server.set_picoev_max_fd(4096)
server.listen(("127.0.0.1", int(sys.argv[1])))
server.run(app)
