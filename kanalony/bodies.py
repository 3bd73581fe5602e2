"""The events of a request, each with its parameters: docs/requests.md describes them.

A GET is one event. A body may hold several: a JSON object, an array of objects, NDJSON, form-encoded pairs. Each event
has the parameters of the query first, then its own. Every request is at least one event.
`read_body` finds the events for `cat` and `verify`, for `compact` and for redaction.
"""

import re
import sys
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from kanalony.core.frames import MAX_EXPANDED, event_limit
from kanalony.core.json import members, split
from kanalony.core.querystring import parse
from kanalony.segments.reader import Request

Parameters = list[tuple[bytes, bytes]]

MAX_EVENT = 2 << 20
"""The most bytes of a body that one event may take."""

_MAX_CODINGS = 2
_MAX_MEMBERS = 16  # gzip members in one body; each is copied once for each one before it
_FORM = b"application/x-www-form-urlencoded"
_TOO_LARGE = f"more than {MAX_EVENT:,} bytes in one event"
_FIRST_PAIR = re.compile(rb"[\w.:~%*\[\]{}-]+=")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_BOM = b"\xef\xbb\xbf"
_NOTHING = [(0, 0)]  # the events of a body without parameters


class UnreadableError(ValueError):
    """A body that cannot be decoded."""


class Body(NamedTuple):
    """A decoded body.

    `events` has the (start, end) in `text` of each event's parameters, at least one: JSON objects if `is_json`, else
    form-encoded pairs. A single (0, 0) stands for a body without parameters. `problem` describes what cannot be read.
    """

    text: bytes
    events: list[tuple[int, int]]
    is_json: bool
    problem: str | None

    @property
    def objects(self) -> list[tuple[int, int]]:
        """The (start, end) of every JSON object."""
        return self.events if self.is_json else []

    @property
    def form(self) -> tuple[int, int] | None:
        """The (start, end) of form-encoded pairs."""
        return self.events[0] if not self.is_json and self.events != _NOTHING else None


class Events(NamedTuple):
    """The events of a request, and the part of its body that cannot be read, if any."""

    parameters: Iterator[Parameters]
    problem: str | None


def read_events(request: Request) -> Events:
    """Returns the events of a request, at least one.

    Names and values are decoded: percent-encoding and `+` in a query and a form, escapes in JSON. Names may repeat.
    """
    common = parse(request.query or b"")
    if not request.body:
        return Events(iter([common]), None)
    body = read_body(
        request.body, request.content_type or b"", request.content_encoding or b"", event_limit(request.fields)
    )
    return Events(_merge(common, body), body.problem)


def _merge(common: Parameters, body: Body) -> Iterator[Parameters]:
    """Yields one event after another: a list of all could fill the memory for a small request."""
    text = memoryview(body.text)
    for start, end in body.events:
        yield common + (members(text, start, end) if body.is_json else parse(text[start:end]))


def read_body(
    body: bytes,
    content_type: bytes,
    content_encoding: bytes,
    max_events: int = sys.maxsize,
    max_expanded: int = MAX_EXPANDED,
    max_compressed: int = sys.maxsize,
) -> Body:
    """Finds the events of a body. The first bytes count for more than the type: players send JSON under any name.

    Args:
        body: as it was received.
        content_type: the `Content-Type` header, or nothing.
        content_encoding: the `Content-Encoding` header, or nothing.
        max_events: the most events that are returned; further ones are a problem.
        max_expanded: the most bytes of the decompressed body.
        max_compressed: the most bytes that are decompressed, in sum over the content codings.
    """
    try:
        text = _decompress(body, content_encoding, max_expanded, max_compressed)
    except UnreadableError as error:
        return Body(b"", _NOTHING, False, str(error))
    start = len(_BOM) if text.startswith(_BOM) else 0
    content = text[start:].strip()
    if content[:1] in (b"{", b"["):
        found, sound = split(memoryview(text)[start:], max_events)
        objects = [(begin + start, end + start) for begin, end in found if end - begin <= MAX_EVENT]
        problem = None
        if not sound:
            problem = f"more than {max_events:,} events" if len(found) == max_events else "not valid JSON"
        elif len(objects) < len(found):
            problem = _TOO_LARGE
        if not found and problem and _is_form(content_type) and is_plain_form(content):
            return _form(text, content)
        return Body(text, objects or _NOTHING, bool(objects), problem)
    if content and (_is_form(content_type) or is_plain_form(content)):
        return _form(text, content)
    return Body(text, _NOTHING, False, "neither JSON nor form-encoded" if content else None)


def _form(text: bytes, content: bytes) -> Body:
    if len(content) > MAX_EVENT:
        return Body(text, _NOTHING, False, _TOO_LARGE)
    start = text.index(content)
    return Body(text, [(start, start + len(content))], False, None)


def is_plain_form(content: bytes) -> bool:
    """Whether content of any type looks like form-encoded pairs: one line that begins with a name and `=`."""
    return _FIRST_PAIR.match(content) is not None and not _CONTROL.search(content)


def _is_form(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip().lower() == _FORM


def _decompress(body: bytes, content_encoding: bytes, limit: int, max_compressed: int) -> bytes:
    """Undoes the content codings; the only place that does.

    Raises:
        UnreadableError: the body is damaged, decompresses to more than `limit` bytes, takes decompressing more than
            `max_compressed` bytes, or has codings other than gzip and deflate.
    """
    codings = [coding.strip().lower() for coding in content_encoding.split(b",")]
    codings = [coding for coding in codings if coding not in (b"", b"identity")]
    if len(codings) > _MAX_CODINGS:
        raise UnreadableError(f"{len(codings)} content codings")
    for coding in reversed(codings):
        if not body:
            break
        max_compressed -= len(body)
        if max_compressed < 0:
            raise UnreadableError("more compressed bytes than allowed")
        if coding in (b"gzip", b"x-gzip"):
            body = _inflate(body, zlib.MAX_WBITS | 16, limit)
        elif coding == b"deflate":
            # Some clients leave out the zlib header (RFC 9110, section 8.4.1.2). RFC 1950 has its format.
            has_header = body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
            body = _inflate(body, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS, limit)
        else:
            raise UnreadableError(f"unknown content coding {coding.decode(errors='replace')!r}")
    return body


def _inflate(body: bytes, window_bits: int, limit: int) -> bytes:
    parts = []
    room = limit
    for _ in range(_MAX_MEMBERS):
        decompressor = zlib.decompressobj(window_bits)
        try:
            parts.append(decompressor.decompress(body, room + 1))
        except zlib.error as error:
            raise UnreadableError("does not match its Content-Encoding") from error
        room -= len(parts[-1])
        if room < 0:
            raise UnreadableError(f"more than {limit:,} bytes when decompressed")
        if not decompressor.eof:
            raise UnreadableError("compressed data ends early")
        body = decompressor.unused_data
        if not body:
            return b"".join(parts)
        if window_bits < zlib.MAX_WBITS | 16:  # deflate is one stream
            raise UnreadableError("more bytes behind the compressed data")
    raise UnreadableError(f"more than {_MAX_MEMBERS} gzip members")
