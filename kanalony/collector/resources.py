"""What the collector answers on its tracking paths."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import falcon

if TYPE_CHECKING:
    from wsgiref.types import StartResponse

Environ = dict[str, Any]
Answer = tuple[str, list[tuple[str, str]], bytes]

TRACKING_PATHS = ("/collect", "/api_v3/index.php")

_HEADERS = [
    ("Content-Type", "text/plain"),
    # Pages are served from elsewhere; without this header the player sees an error though the event is stored.
    ("Access-Control-Allow-Origin", "*"),
    ("Cache-Control", "no-store"),
]
_FULL = b"503: there is no room to store this event.\n"
_FAILED = b"503: the disk failed; this event is not known to be stored.\n"
_TOO_LARGE = b"413: the event is too large to be stored.\n"
_MALFORMED = b"400: the request is malformed; nothing was stored.\n"
_RETRY = ("Retry-After", "1")


def _answer(status: str, body: bytes, *more: tuple[str, str]) -> Answer:
    return status, [*_HEADERS, ("Content-Length", str(len(body))), *more], body


class TrackResource:
    """Stores every request to a tracking path, then answers the time of receipt."""

    def __init__(
        self,
        append: Callable[..., int],
        address: Callable[[Environ], bytes | None],
        on_error: Callable[[Exception], object],
    ) -> None:
        """`append` is Blocks.append, `address` tells a request's client; `on_error` hears of what kept an event from
        being stored."""
        self.append = append
        self._address = address
        self._on_error = on_error
        self._answer: tuple[int, Answer] = 0, _answer("200 OK", b"0")  # of the last second

    def track(self, environ: Environ) -> Answer:
        """Store the request and answer it: 200 once it is stored, 503 when it cannot be, 413 when it is too large."""
        get = environ.get
        try:
            received_at = self.append(
                environ["REQUEST_METHOD"],
                environ["PATH_INFO"],
                self._address(environ),
                get("HTTP_X_FORWARDED_FOR"),
                get("HTTP_USER_AGENT"),
                get("HTTP_REFERER"),
                get("QUERY_STRING"),
                _read_body(environ) if get("CONTENT_LENGTH") or get("HTTP_TRANSFER_ENCODING") else None,
            )
        except OverflowError:
            return _answer("413 Content Too Large", _TOO_LARGE)
        except ValueError:
            return _answer("400 Bad Request", _MALFORMED)
        except OSError as error:
            self._on_error(error)
            return _answer("503 Service Unavailable", _FAILED, _RETRY)
        if not received_at:
            return _answer("503 Service Unavailable", _FULL, _RETRY)
        second, answer = self._answer
        if received_at // 1_000_000 != second:
            second = received_at // 1_000_000
            answer = _answer("200 OK", b"%d" % second)
            self._answer = second, answer
        return answer

    def respond(self, environ: Environ, start_response: "StartResponse") -> Iterable[bytes]:
        """The WSGI form of `track`: the short path."""
        status, headers, body = self.track(environ)
        start_response(status, headers[:])  # servers may add to the list
        return [body] if environ["REQUEST_METHOD"] != "HEAD" else []

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.status, headers, resp.data = self.track(req.env)
        resp.set_headers(headers)

    on_head = on_get

    def on_options(self, req: falcon.Request, resp: falcon.Response) -> None:
        raise falcon.HTTPMethodNotAllowed(["GET", "HEAD"])


def _read_body(environ: Environ) -> bytes:
    stream = environ["wsgi.input"]
    if environ.get("wsgi.input_terminated"):
        body: bytes = stream.read()  # the server ends the stream, chunked bodies included
    else:
        body = stream.read(int(environ.get("CONTENT_LENGTH") or 0))
    return body
