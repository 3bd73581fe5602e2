"""docs/nginx.conf passes everything that kanalony reads of a request, and nothing that harms meinheld."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.target import Target, target_of
from harness.load import cat
from kanalony.core.frames import FIELD_NAMES
from tests.tools import tool

HEADERS_ROOM = 7_000  # bytes: docs/operations.md


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    tool("nginx")
    with target_of("nginx", tmp_path_factory.mktemp("nginx"), "--allow-origin", "https://videos.example") as target:
        yield target


def send(target: Target, request: str, *headers: str, body: bytes = b"") -> tuple[str, str]:
    """Returns the status of the response, and its head in lower case."""
    lines = [f"{request} HTTP/1.1", "Host: t", "Connection: close", *headers]
    lines += [f"Content-Length: {len(body)}"] if body else []
    answer = target.send("\r\n".join([*lines, "", ""]).encode() + body).decode("latin-1")
    head = answer.partition("\r\n\r\n")[0]
    return head.partition(" ")[2][:3], head.lower()


def test_every_header_that_is_stored_passes(target: Target) -> None:
    body = gzip.compress(b'{"eventType": 3}')
    status, head = send(
        target,
        "POST /collect?key=stored",
        "User-Agent: Player/1.0",
        "Referer: https://videos.example/page",
        "X-Forwarded-For: 203.0.113.7, 198.51.100.2",
        "Content-Type: application/json",
        "Content-Encoding: gzip",
        "Origin: https://videos.example",
        body=body,
    )
    assert status == "200"
    assert "access-control-allow-origin: https://videos.example" in head
    (event,) = [event for event in cat(target.server.data) if event["params"].get("key") == "stored"]
    assert event["user_agent"] == "Player/1.0"
    assert event["referer"] == "https://videos.example/page"
    assert event["forwarded_for"] == "203.0.113.7, 198.51.100.2, 127.0.0.1"
    assert event["remote_addr"] == "198.51.100.2"
    assert event["content_type"] == "application/json"
    assert event["content_encoding"] == "gzip"
    assert event["params"]["eventType"] == "3"
    missing = [name for name in FIELD_NAMES if not (event.get(name) or event.get(f"{name}_base64"))]
    assert missing == ["address_token"], "nginx.conf drops a field"


def test_every_header_that_a_response_depends_on_passes(target: Target) -> None:
    answer = target.send(b"GET /collect?key=json HTTP/1.1\r\nHost: t\r\nAccept: application/json\r\n\r\n")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["viewEventsEnabled"] is True
    status, head = send(
        target,
        "OPTIONS /collect",
        "Origin: https://videos.example",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: content-type, x-custom",
    )
    assert status in ("200", "204")
    assert "access-control-allow-headers: content-type, x-custom" in head
    assert send(target, "OPTIONS /collect", "Origin: https://other.example")[0] == "403"


def test_a_page_that_sends_cookies_is_answered_by_its_name(tmp_path: Path) -> None:
    tool("nginx")
    with target_of("nginx", tmp_path) as target:
        origin = "Origin: https://videos.example"
        assert "access-control-allow-origin: *" in send(target, "GET /collect", origin)[1]
        head = send(target, "GET /collect", origin, "Cookie: id=secret", f"Cookie: more={'x' * 7_900}")[1]
        assert "access-control-allow-origin: https://videos.example" in head


@pytest.mark.parametrize("name", ["User-Agent", "Referer", "X-Forwarded-For", "Origin", "Accept", "Content-Type"])
def test_headers_above_the_limit_are_refused_and_below_it_stored(target: Target, name: str) -> None:
    def key(length: int) -> str:
        return f"GET /collect?key={name}-{length}"

    room = HEADERS_ROOM - len("t")  # Host counts too
    assert send(target, key(room), f"{name}: {'x' * room}")[0] == "200"
    assert send(target, key(room + 1), f"{name}: {'x' * (room + 1)}")[0] == "431"
    repeated = f"{name}: {'x' * (room // 2 + 10)}"
    assert send(target, key(0), repeated, repeated)[0] in ("200", "400", "431")  # by nginx's version the first, or none
    stored = [event["params"].get("key") for event in cat(target.server.data)]
    assert f"{name}-{room}" in stored
    assert f"{name}-{room + 1}" not in stored


def test_a_preflight_for_as_many_headers_as_there_is_room_for_is_granted(target: Target) -> None:
    origin, name = "https://videos.example", "Access-Control-Request-Headers"
    names = "x" * (HEADERS_ROOM - len("t") - len(origin))
    preflight = [f"Origin: {origin}", "Access-Control-Request-Method: POST"]
    status, head = send(target, "OPTIONS /collect", *preflight, f"{name}: {names}")
    assert status in ("200", "204")
    assert f"access-control-allow-headers: {names}" in head
    assert send(target, "OPTIONS /collect", *preflight, f"{name}: {names}x")[0] == "431"
