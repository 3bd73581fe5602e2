"""What a request says: the events it stands for, each with its parameters. docs/requests.md tells it to people.

A GET is one event. A body may hold several: a JSON object, an array of objects, NDJSON, form-encoded pairs. Each has
the parameters of the query first, then its own. Every request is at least one event, whatever its body.
"""

import re
import sys
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from kanalony.core.json import members, split
from kanalony.core.querystring import parse
from kanalony.segments.reader import Request

Parameters = list[tuple[bytes, bytes]]

MAX_EXPANDED = 16 << 20
"""Bytes that a request may come to: its body decompressed, and what its events have in common times their number."""

MAX_EVENT = 2 << 20
"""Bytes of a body that may be one event."""

_EVENT_COST = 256  # bytes that each event is counted for beyond what it repeats
_PAIR_COST = 64  # the same for each parameter of the query
_MAX_CODINGS = 2
_MAX_MEMBERS = 16  # gzip files in one body; each is copied once for each one before it
_FORM = b"application/x-www-form-urlencoded"
_TOO_LARGE = f"more than {MAX_EVENT:,} bytes in one event"
_FIRST_PAIR = re.compile(rb"[\w.:~%*\[\]{}-]+=")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_BOM = b"\xef\xbb\xbf"


class UnreadableError(ValueError):
    """A body that cannot be decoded."""


class Body(NamedTuple):
    """A body, decoded. `objects` are the (start, end) of its JSON objects, `form` that of form-encoded pairs, if it
    has them instead; `problem` says what could not be read, if anything.
    """

    text: bytes
    objects: list[tuple[int, int]]
    form: tuple[int, int] | None
    problem: str | None


class Events(NamedTuple):
    """The events of a request, and what of its body could not be read, if anything."""

    parameters: Iterator[Parameters]
    problem: str | None


def read_events(request: Request) -> Events:
    """The events of a request: at least one. Names and values are decoded: percent-encoding and `+` in a query and a
    form, escapes in JSON. Names may repeat.
    """
    if not request.body:
        return Events(iter([parse(request.query or b"")]), None)
    common = parse(request.query or b"")
    repeated = sum(len(part) for part in request if isinstance(part, bytes)) - len(request.body)
    limit = event_limit(repeated, len(common))
    body = read_body(request.body, request.content_type or b"", request.content_encoding or b"", limit)
    return Events(_merge(common, body), body.problem)


def event_limit(repeated: int, parameters: int) -> int:
    """How many events a request may hold whose parts but its body have so many bytes, its query so many parameters:
    each event repeats them, and a small request could become any amount of data.
    """
    return 1 + MAX_EXPANDED // (repeated + _PAIR_COST * parameters + _EVENT_COST)


def _merge(common: Parameters, body: Body) -> Iterator[Parameters]:
    """One event after another: all at once a small request could fill the memory."""
    if body.objects:
        for start, end in body.objects:
            yield common + members(body.text, start, end)
    else:
        yield common + (parse(memoryview(body.text)[slice(*body.form)]) if body.form else [])


def read_body(
    body: bytes,
    content_type: bytes,
    content_encoding: bytes,
    max_events: int = MAX_EXPANDED // _EVENT_COST,
    max_expanded: int = MAX_EXPANDED,
    max_compressed: int = sys.maxsize,
) -> Body:
    """What a body holds. Its first bytes decide more than its type, since players send JSON under any name. The limits
    are for its events, its bytes decompressed, and the bytes that are decompressed, by all of its codings.
    """
    try:
        text = _decompress(body, content_encoding, max_expanded, max_compressed)
    except UnreadableError as error:
        return Body(b"", [], None, str(error))
    start = len(_BOM) if text.startswith(_BOM) else 0
    content = text[start:].strip()
    objects: list[tuple[int, int]] = []
    problem = None
    if content[:1] in (b"{", b"["):
        found, sound = split(memoryview(text)[start:], max_events)
        objects = [(begin + start, end + start) for begin, end in found if end - begin <= MAX_EVENT]
        if not sound:
            problem = f"more than {max_events:,} events" if len(found) == max_events else "not valid JSON"
        elif len(objects) < len(found):
            problem = _TOO_LARGE
        if not found and problem and _is_form(content_type) and is_plain_form(content):
            return _form(text, content)
    elif content and (_is_form(content_type) or is_plain_form(content)):
        return _form(text, content)
    elif content:
        problem = "neither JSON nor form-encoded"
    return Body(text, objects, None, problem)


def _form(text: bytes, content: bytes) -> Body:
    if len(content) > MAX_EVENT:
        return Body(text, [], None, _TOO_LARGE)
    start = text.index(content)
    return Body(text, [], (start, start + len(content)), None)


def is_plain_form(content: bytes) -> bool:
    """Whether that looks like form-encoded pairs whatever its type says: one line that begins with a name and `=`."""
    return _FIRST_PAIR.match(content) is not None and not _CONTROL.search(content)


def _is_form(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip().lower() == _FORM


def _decompress(body: bytes, content_encoding: bytes, limit: int, max_compressed: int) -> bytes:
    """Undo the content codings. Raises UnreadableError for damage, for what decompresses to more than `limit` bytes or
    is more than `max_compressed` of them before, and for codings other than gzip and deflate.
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
            raise UnreadableError("more bytes than are decompressed")
        if coding in (b"gzip", b"x-gzip"):
            body = _inflate(body, zlib.MAX_WBITS | 16, limit)
        elif coding == b"deflate":
            # Some clients leave the zlib header out (RFC 9110, section 8.4.1.2); RFC 1950 says what it looks like.
            has_header = body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
            body = _inflate(body, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS, limit)
        else:
            raise UnreadableError(f"content coding {coding.decode(errors='replace')!r} is not known")
    return body


def _inflate(body: bytes, window_bits: int, limit: int) -> bytes:
    parts = []
    room = limit
    for _ in range(_MAX_MEMBERS):
        decompressor = zlib.decompressobj(window_bits)
        try:
            parts.append(decompressor.decompress(body, room + 1))
        except zlib.error as error:
            raise UnreadableError("not what its Content-Encoding says") from error
        room -= len(parts[-1])
        if room < 0:
            raise UnreadableError(f"more than {limit:,} bytes when decompressed")
        if not decompressor.eof:
            raise UnreadableError("ends before its Content-Encoding does")
        body = decompressor.unused_data
        if not body:
            return b"".join(parts)
        if window_bits < zlib.MAX_WBITS | 16:  # deflate is one stream
            raise UnreadableError("goes on behind what its Content-Encoding says")
    raise UnreadableError(f"more than {_MAX_MEMBERS} gzip members")
