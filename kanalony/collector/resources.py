"""What the collector answers, path by path. docs/requests.md says it to those who send."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import falcon
from falcon import mediatypes

from kanalony.collector.clients import Cors, Headers
from kanalony.collector.counts import Counts
from kanalony.core.querystring import parse

if TYPE_CHECKING:
    from wsgiref.types import StartResponse

Environ = dict[str, Any]
Answer = tuple[str, Headers, bytes]

TRACKING_PATHS = ("/collect", "/api_v3/index.php", "/pixel.gif")

_TEXT = ("Content-Type", "text/plain")
_JSON = ("Content-Type", "application/json")
_GIF = ("Content-Type", "image/gif")
_ALWAYS = [
    ("Cache-Control", "no-store"),
    # A page with Cross-Origin-Embedder-Policy may load nothing that does not say so.
    ("Cross-Origin-Resource-Policy", "cross-origin"),
]
_RETRY = ("Retry-After", "1")
_METHODS = "GET, HEAD, POST, OPTIONS"
_PREFLIGHT_AGE = "86400"  # seconds; browsers cap it at what they think right
_PIXEL = bytes.fromhex(  # GIF89a, 1 x 1, transparent
    "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"
)
_MAX_DISCARDED = 16 << 20  # bytes of a refused body that are still received
_MAX_ANSWERS = 256  # kept at a time; an Origin is a client's choice
_DISCARD_STEP = 64 << 10
_ROBOTS = b"User-agent: *\nDisallow: /\n"


class _RefusedError(Exception):
    """A request that is not stored: the answer's status, its text, why it is so in the counts, and further headers."""

    def __init__(self, status: str, text: str, reason: str, *headers: tuple[str, str]) -> None:
        super().__init__(reason)
        self.status = status
        self.body = f"{status[:3]}: {text}\n".encode("latin-1", "replace")
        self.headers = headers


class Intake:
    """Stores requests. `append` is Blocks.append, or less than that for privacy; `counts` has what was not stored."""

    def __init__(
        self,
        append: Callable[..., int],
        address: Callable[[Environ], bytes | None],
        *,
        max_body: int,
        cors: Cors,
        counts: Counts,
        is_shedding: Callable[[], bool],
    ) -> None:
        """`address` tells a request's client; `is_shedding` whether players are to be told to send no more views."""
        self.append = append
        self.address = address
        self.cors = cors
        self._max_body = max_body
        self._counts = counts
        self._is_shedding = is_shedding

    def store(self, environ: Environ) -> int:
        """Store a request; µs since 1970. Raises _RefusedError when it is not stored, or not known to be."""
        get = environ.get
        try:
            body = content_type = encoding = None
            if get("CONTENT_LENGTH") or get("HTTP_TRANSFER_ENCODING"):
                body, content_type, encoding = self._body(environ), get("CONTENT_TYPE"), get("HTTP_CONTENT_ENCODING")
            elif "HTTP_CONTENT_LENGTH " in environ or "HTTP_TRANSFER_ENCODING " in environ:
                raise ValueError("white space behind a header's name")  # meinheld lets it pass, body and all
            received_at = self.append(
                environ["REQUEST_METHOD"],
                environ["PATH_INFO"],
                self.address(environ),
                get("HTTP_X_FORWARDED_FOR"),
                get("HTTP_USER_AGENT"),
                get("HTTP_REFERER"),
                get("QUERY_STRING"),
                body,
                content_type,
                encoding,
            )
        except (OverflowError, ValueError, OSError) as error:
            raise _refusal(error) from error
        if not received_at:
            raise _refusal(None)
        return received_at

    def _body(self, environ: Environ) -> bytes | None:
        limit = self._max_body
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length < 0:
            raise ValueError("a negative length")
        stream = environ["wsgi.input"]
        if length > limit:
            _discard(stream, length)
            raise _too_large(f"the body has {length:,} bytes, and {limit:,} are the most that is stored")
        if "HTTP_TRANSFER_ENCODING" not in environ:
            body = _read(stream, length)
            if len(body) < length:  # granian passes a body on that broke off, and its sender may still be listening
                raise ValueError("the body ended early")
            return body
        body = _read(stream, limit + 1) if environ.get("wsgi.input_terminated") else b""
        if len(body) > limit:
            _discard(stream, _MAX_DISCARDED)
            raise _too_large(f"the body has more than {limit:,} bytes, which are the most that is stored")
        if not body and ("meinheld.client" in environ or not environ.get("wsgi.input_terminated")):
            # meinheld knows `Transfer-Encoding: chunked` in this spelling only, and takes any other for no body; other
            # servers may know no chunks at all. A 200 could be a lie, so a body that is empty is refused as well.
            raise _RefusedError(
                "411 Length Required",
                "send the body with a Content-Length; nothing was stored.",
                "bodies without Content-Length that are empty or that the server did not read, answered with 411",
            )
        return body

    def views_enabled(self) -> bool:
        """What players are told about sending views; counted when it is no."""
        if not self._is_shedding():
            return True
        self._counts.add("players told to send no views, since the journal is nearly full")
        return False

    def count(self, reason: str) -> None:
        self._counts.add(reason)


def _headers(kind: tuple[str, str], body: bytes, cors: Headers, *more: tuple[str, str]) -> Headers:
    return [kind, ("Content-Length", str(len(body))), *_ALWAYS, *cors, *more]


def _read(stream: Any, size: int) -> bytes:
    """So many bytes, or fewer at the end: one call may return less than there is."""
    parts = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _discard(stream: Any, size: int) -> None:
    """Read what is not wanted: a server that closes instead makes clients miss the answer. Only so much, though."""
    left = min(size, _MAX_DISCARDED)
    while left > 0 and (part := stream.read(min(left, _DISCARD_STEP))):
        left -= len(part)


def _too_large(what: str) -> _RefusedError:
    return _RefusedError(
        "413 Content Too Large", f"{what}; nothing was stored.", "requests too large to store, answered with 413"
    )


def _refusal(error: Exception | None) -> _RefusedError:
    """What a request is told that `append` raised this for; None: it did not take it."""
    if isinstance(error, OverflowError):
        return _too_large("the request is too large for a journal block")
    if isinstance(error, ValueError):
        return _RefusedError(
            "400 Bad Request",
            "the request is malformed; nothing was stored.",
            "malformed requests answered with 400",
        )
    if error:
        return _RefusedError(
            "503 Service Unavailable",
            "the disk failed; this event is not known to be stored.",
            f"events not stored and answered with 503: {error}",
            _RETRY,
        )
    return _RefusedError(
        "503 Service Unavailable",
        "there is no room to store this event.",
        "events not stored and answered with 503: the journal is full",
        _RETRY,
    )


class TrackResource:
    """Stores every request to a tracking path, then answers the time of receipt: as text, or as JSON when asked to."""

    is_pixel = False

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        # The plain answers of the last second, by origin. The two change together: threads may share this.
        self._last: tuple[int, dict[str | None, Answer]] = 0, {}

    def track(self, environ: Environ) -> Answer:
        """Store the request and answer it: 200 once it is stored, 4xx or 503 when it is not."""
        try:
            received_at = self._intake.store(environ)
        except _RefusedError as refused:
            return self._refuse(environ, refused)
        second = received_at // 1_000_000
        origin = self._intake.cors.origin(environ)
        if self._wants_json(environ):
            enabled = b"true" if self._intake.views_enabled() else b"false"
            # Without the key players would stop sending views.
            body = b'{"time": %d, "viewEventsEnabled": %b}' % (second, enabled)
            return "200 OK", _headers(_JSON, body, self._intake.cors.answer(origin)), body
        last, answers = self._last
        if second != last:
            answers = {}
            self._last = second, answers
        answer = answers.get(origin)
        if answer is None:
            answer = self._answer(second, self._intake.cors.answer(origin))
            if len(answers) < _MAX_ANSWERS:
                answers[origin] = answer
        return answer

    def _refuse(self, environ: Environ, refused: _RefusedError) -> Answer:
        self._intake.count(str(refused))
        cors = self._intake.cors.answer(self._intake.cors.origin(environ))
        return refused.status, _headers(_TEXT, refused.body, cors, *refused.headers), refused.body

    def refuse(self, environ: Environ, error: Exception | None) -> Answer:
        """What a request is answered that `append` raised this for, or did not take (None). It is counted."""
        return self._refuse(environ, _refusal(error))

    def answer_at(self, second: int) -> Answer:
        """What an event is answered that was stored in this second since 1970 and asks for nothing special."""
        return self._answer(second, self._intake.cors.answer(None))

    def _answer(self, second: int, cors: Headers) -> Answer:
        body = b"%d" % second
        return "200 OK", _headers(_TEXT, body, cors), body

    def _wants_json(self, environ: Environ) -> bool:
        if self.is_pixel:
            return False
        query = environ.get("QUERY_STRING")
        if query and "format=json" in query and (b"format", b"json") in parse(query.encode("latin-1")):
            return True
        accept = environ.get("HTTP_ACCEPT") or ""
        return "json" in accept and _prefers_json(accept)

    def respond(self, environ: Environ, start_response: "StartResponse") -> Iterable[bytes]:
        """The WSGI form of `track`: the short path."""
        status, headers, body = self.track(environ)
        start_response(status, headers[:])  # servers may add to the list
        return [body] if environ["REQUEST_METHOD"] != "HEAD" else []

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The same by Falcon, for those who route by themselves; the application takes the short path."""
        resp.status, headers, resp.data = self.track(req.env)
        resp.set_headers(headers)

    on_head = on_post = on_get

    def on_options(self, req: falcon.Request, resp: falcon.Response) -> None:
        """A preflight: may a page of this origin send what it is about to?"""
        resp.content_type = "text/plain"
        granted = self._intake.cors.preflight(req.env)
        if granted is None:
            self._intake.count("preflights of origins that are not allowed, answered with 403")
            resp.status = falcon.HTTP_403
            resp.text = "403: pages of this origin may not send events here.\n"
            granted = []
        else:
            granted = [*granted, ("Access-Control-Allow-Methods", _METHODS), ("Access-Control-Max-Age", _PREFLIGHT_AGE)]
        resp.set_headers([("Allow", _METHODS), ("Vary", "Origin, Access-Control-Request-Headers"), *granted])


class PixelResource(TrackResource):
    """The same for pages that load an image: answers one."""

    is_pixel = True

    def _answer(self, second: int, cors: Headers) -> Answer:
        return "200 OK", _headers(_GIF, _PIXEL, cors), _PIXEL


@lru_cache(maxsize=256)  # an Accept is up to 8 KB of a client's choice
def _prefers_json(accept: str) -> bool:
    """Whether JSON is more welcome than text (RFC 9110, section 12.5.1)."""
    try:
        return mediatypes.best_match(["text/plain", "application/json"], accept) == "application/json"
    except ValueError:
        return False  # not an Accept at all


class RobotsResource:
    """Keeps search engines from following what looks like links to events."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = "text/plain"
        resp.data = _ROBOTS

    on_head = on_get


class NoIconResource:
    """What a browser asks for when somebody opens an address of the collector. It need not ask again."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.status = falcon.HTTP_404
        resp.content_type = "text/plain"
        resp.cache_control = ["max-age=604800"]

    on_head = on_get
