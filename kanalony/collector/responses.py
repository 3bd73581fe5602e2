"""Responses to stored requests: the time of receipt as text or JSON, or a pixel."""

from functools import lru_cache
from typing import Any

from falcon import mediatypes

from kanalony.core.querystring import parse

Headers = list[tuple[str, str]]
Response = tuple[str, Headers, bytes]
"""Status line, headers, body."""

TEXT = "text/plain"
JSON = "application/json"
_GIF = "image/gif"
_OK = "200 OK"
_ALWAYS = [
    ("Cache-Control", "no-store"),
    # Pages with Cross-Origin-Embedder-Policy load only what carries this header.
    ("Cross-Origin-Resource-Policy", "cross-origin"),
]
_PIXEL = bytes.fromhex(  # GIF89a, 1 x 1, transparent
    "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"
)


def compose(status: str, content_type: str, body: bytes, cors: Headers, *more: tuple[str, str]) -> Response:
    """Returns a response with the headers that every response to an event has.

    Args:
        status: The status line, as "200 OK".
        content_type: A media type.
        body: The body of the response.
        cors: Headers from `Cors.response_headers`.
        more: Further headers.
    """
    return (
        status,
        [("Content-Type", content_type), ("Content-Length", str(len(body))), *_ALWAYS, *cors, *more],
        body,
    )


def time_response(second: int, cors: Headers) -> Response:
    """Returns the response to a request that was received in a second since 1970."""
    return compose(_OK, TEXT, b"%d" % second, cors)


def json_response(second: int, cors: Headers, *, views_enabled: bool) -> Response:
    """Returns the same as JSON. Players stop sending views when `viewEventsEnabled` is false or missing."""
    enabled = b"true" if views_enabled else b"false"
    return compose(_OK, JSON, b'{"time": %d, "viewEventsEnabled": %b}' % (second, enabled), cors)


def pixel_response(second: int, cors: Headers) -> Response:
    """Returns a transparent pixel, the same in every second."""
    return compose(_OK, _GIF, _PIXEL, cors)


def wants_json(environ: dict[str, Any]) -> bool:
    """Whether a request asks for JSON, by `format=json` in its query or by its Accept header."""
    query = environ.get("QUERY_STRING")
    if query and "format=json" in query and (b"format", b"json") in parse(query.encode("latin-1")):
        return True
    accept = environ.get("HTTP_ACCEPT") or ""
    return "json" in accept and _prefers_json(accept)


@lru_cache(maxsize=256)  # bounded: an Accept header is up to 8 KB of the client's choice
def _prefers_json(accept: str) -> bool:
    """Whether an Accept header prefers JSON to text (RFC 9110, section 12.5.1)."""
    try:
        return mediatypes.best_match([TEXT, JSON], accept) == JSON
    except ValueError:
        return False  # not a valid Accept header
