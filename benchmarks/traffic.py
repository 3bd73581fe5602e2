"""Distinct requests as players send them, in files: making them takes longer than sending them."""

import json
import re
import zlib
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from hashlib import shake_128
from pathlib import Path
from urllib.parse import parse_qsl, quote

from kanalony.simulate.viewers import SimulatedEvent, simulate

_PAGE = "watch?v=1"  # the simulator's one page of all videos
_PAGE_IN_QUERY = quote(quote(_PAGE, safe=""), safe="")


_VERSION = re.compile(r"((?:Chrome|Firefox|rv|Version|Tizen)[/: ])(\d+)")


def _older(versions: int, found: re.Match[str]) -> str:
    return f"{found[1]}{int(found[2]) - versions}"


def traffic(viewers: int, *, ks: bool = False) -> Iterator[SimulatedEvent]:
    """Yields simulated events without end, with more browser versions than the simulator has and a page for each video.

    Args:
        viewers: Concurrent viewers.
        ks: Whether each session has an incompressible token of its own, as sites with logged-in viewers send it.
    """
    for event in simulate(viewers, "1"):
        session = event.key.partition(" ")[0]
        number = zlib.crc32(session.encode())
        user_agent = _VERSION.sub(partial(_older, number % 12), event.user_agent)
        user_agent = user_agent.replace("Pixel 8", f"SM-{'AGS'[number % 3]}{number // 3 % 400:03}B")
        found = re.search(r"entryId=([^&]+)", event.query)
        page = f"watch?v={found[1]}" if found else _PAGE
        query = event.query.replace(_PAGE_IN_QUERY, quote(quote(page, safe=""), safe=""))
        if ks:
            token = b64encode(shake_128(session.encode()).digest(110)).decode()
            query += "&ks=" + quote("djJ8" + token, safe="")
        yield replace(event, user_agent=user_agent, referer=event.referer.replace(_PAGE, page), query=query)


def to_get(event: SimulatedEvent) -> bytes:
    """Returns the bytes of a GET."""
    return _request("GET /collect?" + event.query, event, b"")


def to_json(event: SimulatedEvent) -> bytes:
    """Returns the parameters of an event as a JSON object, numbers as text, as players send them."""
    return json.dumps(dict(parse_qsl(event.query)), separators=(",", ":")).encode()


def to_post(event: SimulatedEvent, objects: Sequence[bytes]) -> bytes:
    """Returns the bytes of one POST of an array of events, with the headers of one of them."""
    return _request("POST /collect", event, b"[" + b",".join(objects) + b"]")


def _request(line: str, event: SimulatedEvent, body: bytes) -> bytes:
    headers = [
        f"{line} HTTP/1.1",
        "Host: collector.example",
        f"User-Agent: {event.user_agent}",
        "Accept: */*",
        "Accept-Encoding: gzip, deflate, br",
    ]
    if event.referer:
        headers.append(f"Referer: {quote(event.referer, safe='%/:?=&;+,')}")
    if body:
        headers += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(headers).encode() + b"\r\n\r\n" + body


def write_requests(path: Path, requests: Iterable[bytes]) -> None:
    """Writes a file for `load.send`."""
    with path.open("wb") as file:
        for request in requests:
            file.write(request + b"\0")
