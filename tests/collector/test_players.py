"""What players, pages and proxies send besides a plain GET, under both servers: bodies, batches, preflights, pixels."""

import base64
import gzip
import http.client
import json
import re
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from harness.load import cat
from harness.server import Server, run, serving

VALUES = {"title": "Ελληνικά 日本語", "signs": "a&b=c%d+e f", "emoji": "👩\u200d🚀", "empty": ""}
JSON = {"Content-Type": "application/json"}
PAGE = {"Origin": "https://videos.example"}
MAX_BODY = 50_000


@pytest.fixture(scope="module", params=["meinheld", "granian"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ["--server", request.param, "--path", "/e", "--path", "/p/one.gif", "--max-body", str(MAX_BODY)]
    with serving(tmp_path_factory.mktemp("players") / "data", *options) as server:
        yield server


def send(
    server: Server, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers by lower-case name, body) of the response. A body that is a list is sent in chunks."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    try:
        connection.request(method, target, body, headers or {}, encode_chunked=isinstance(body, list))
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def stored(server: Server, key: str) -> list[dict[str, Any]]:
    """Returns the events of the request whose query holds the key."""
    return [event for event in cat(server.data) if f"key={key}&" in event["query"] + "&"]


BODIES: dict[str, tuple[bytes, str | None]] = {
    "json": (json.dumps(VALUES).encode(), "application/json"),
    "utf8": (json.dumps(VALUES, ensure_ascii=False).encode(), "application/json; charset=utf-8"),
    "text": (json.dumps(VALUES).encode(), "text/plain;charset=UTF-8"),
    "form": (urlencode(VALUES).encode(), "application/x-www-form-urlencoded"),
    "textform": (urlencode(VALUES).encode(), "text/plain"),
    "untyped": (json.dumps(VALUES).encode(), None),
}


@pytest.mark.parametrize("target", ["/collect", "//api_v3/index.php/", "/e", "/pixel.gif"])
@pytest.mark.parametrize("kind", BODIES)
def test_a_post_is_stored_byte_for_byte_and_its_parameters_are_those_sent(
    server: Server, kind: str, target: str
) -> None:
    body, content_type = BODIES[kind]
    key = f"{kind}{target.count('/')}{len(target)}"
    headers = {"Content-Type": content_type} if content_type else {}
    assert send(server, "POST", f"{target}?key={key}&signs=q", body, headers)[0] == 200
    (event,) = stored(server, key)
    assert event["method"] == "POST"
    assert event["body"] == body.decode()
    assert event["content_type"] == content_type
    assert event["params"] == {"key": key, **VALUES, "signs": ["q", VALUES["signs"]]}


def test_a_body_that_breaks_off_is_no_event_and_no_200(server: Server) -> None:
    head = b"POST /collect?key=broken HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(head + b'{"a":1}')
        connection.shutdown(socket.SHUT_WR)  # and still listens
        assert b" 200 " not in connection.recv(4096)
    assert stored(server, "broken") == []


def test_chunked_bodies_are_whole(server: Server) -> None:
    body = json.dumps(VALUES).encode()
    chunks = [body[start : start + 7] for start in range(0, len(body), 7)]
    assert send(server, "POST", "/collect?key=chunks", chunks, JSON)[0] == 200
    (event,) = stored(server, "chunks")
    assert event["body"].encode() == body
    assert event["params"] == {"key": "chunks", **VALUES}


@pytest.mark.parametrize(("encoding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies_are_stored_as_sent_and_read_decoded(server: Server, encoding: str, encode: Any) -> None:
    body = encode(json.dumps([VALUES, VALUES]).encode())
    headers = {**JSON, "Content-Encoding": encoding}
    assert send(server, "POST", f"/collect?key={encoding}", body, headers)[0] == 200
    first, second = stored(server, encoding)
    assert first["params"] == second["params"] == {"key": encoding, **VALUES}
    assert zlib.decompress(base64.b64decode(first["body_base64"]), 47) == json.dumps([VALUES] * 2).encode()
    assert first["content_encoding"] == encoding


def test_a_batch_of_100_is_100_events_in_order(server: Server) -> None:
    batch = [{"eventType": 99, "eventIndex": number, "deep": {"n": [number]}} for number in range(100)]
    bodies = {"array": json.dumps(batch), "ndjson": "\n".join(map(json.dumps, batch))}
    before = verified(server)
    for key, body in bodies.items():
        assert send(server, "POST", f"/api_v3/index.php?key={key}&partnerId=5", body.encode(), JSON)[0] == 200
        events = stored(server, key)
        assert [event["index"] for event in events] == list(range(100))
        assert [event["params"]["eventIndex"] for event in events] == [str(number) for number in range(100)]
        assert all(event["params"]["partnerId"] == "5" for event in events)
        assert events[7]["params"]["deep"] == '{"n": [7]}'
        assert len({(event["worker"], event["sequence"]) for event in events}) == 1
        assert [event["body"] for event in events] == [body] + [None] * 99
    after = verified(server)
    assert (after[0] - before[0], after[1] - before[1]) == (2, 200)


def verified(server: Server) -> tuple[int, int]:
    """Returns the requests and events that `kanalony verify` counts, once all are in frames (half a second)."""
    count = len({(event["worker"], event["sequence"]) for event in cat(server.data)})

    def counted() -> tuple[int, int] | None:
        match = re.search(r"([\d,]+) requests, ([\d,]+) events", run("verify", "--data", server.data).stdout)
        assert match
        requests, events = (int(text.replace(",", "")) for text in match.groups())
        return (requests, events) if requests == count else None

    found: tuple[int, int] = server.wait_for(counted)
    return found


def test_a_body_that_cannot_be_read_is_stored_and_counted(server: Server) -> None:
    for body in [b'{"a": 1', b"\x89PNG\r\n\x1a\n", b"plain words"]:
        assert send(server, "POST", "/collect?key=unread&eventType=3", body, JSON)[0] == 200
    events = stored(server, "unread")
    assert [event["params"]["eventType"] for event in events] == ["3"] * 3
    assert [event.get("body") for event in events] == ['{"a": 1', None, "plain words"]
    server.wait_for(lambda: "; 3 bodies that could not be read" in run("verify", "--data", server.data).stdout)


def test_an_empty_post_is_an_event(server: Server) -> None:
    for body in (None, b"", b" \n"):
        assert send(server, "POST", "/collect?key=empty", body)[0] == 200
    assert [event["body"] for event in stored(server, "empty")] == ["", "", " \n"]


def test_the_largest_body_is_stored_and_a_larger_one_is_413_with_its_limit(server: Server) -> None:
    largest = b'{"a": "' + b"x" * (MAX_BODY - 9) + b'"}'
    assert send(server, "POST", "/collect?key=largest", largest, JSON)[0] == 200
    assert [event["body"] for event in stored(server, "largest")] == [largest.decode()]
    bodies: list[Any] = [largest + b" ", [largest, b" "], b"x" * 3_000_000, [b"x" * 1000] * 3000]
    for body in bodies:
        status, headers, text = send(server, "POST", "/collect?key=larger", body, {**JSON, **PAGE})
        assert status == 413
        assert b"50,000" in text
        assert headers["access-control-allow-origin"] == PAGE["Origin"]
    assert stored(server, "larger") == []
    assert "bodies above max_body answered with 413: 1, 1 since the start" in server.log.read_text()


def test_a_preflight_grants_what_is_requested(server: Server) -> None:
    requested = {
        **PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-player",
    }
    for target in ("/collect", "//api_v3/index.php?service=analytics&action=trackEvent&eventType=3", "/e"):
        status, headers, body = send(server, "OPTIONS", target, None, requested)
        assert (status, body) == (200, b"")
        assert headers["access-control-allow-origin"] == PAGE["Origin"]
        assert headers["access-control-allow-credentials"] == "true"
        assert headers["access-control-allow-headers"] == "content-type,x-player"
        assert {"GET", "POST"} <= set(headers["access-control-allow-methods"].split(", "))
        assert int(headers["access-control-max-age"]) >= 7200
        assert "Origin" in headers["vary"]
    assert all(event["method"] != "OPTIONS" for event in cat(server.data))


def test_a_preflight_echoes_nothing_that_is_no_header_name(server: Server) -> None:
    requested = {**PAGE, "Access-Control-Request-Headers": "x; <script>"}
    assert "access-control-allow-headers" not in send(server, "OPTIONS", "/collect", None, requested)[1]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_pages_of_any_origin_may_read_every_response(server: Server, method: str) -> None:
    for target in ("/collect", "/collect?format=json", "/pixel.gif", "/e"):
        for page in (PAGE, {"Origin": "null"}, {}, {**PAGE, "Cookie": "a=1"}):
            status, headers, _ = send(server, method, target, b"{}" if method == "POST" else None, page)
            assert status == 200
            # A page that sends cookies, or may, is shown no answer for `*`.
            named = page.get("Origin") if method == "POST" or "Cookie" in page else None
            assert headers["access-control-allow-origin"] == (named or "*")
            assert headers.get("access-control-allow-credentials") == ("true" if named else None)
            assert ("Origin" in headers.get("vary", "")) == bool(named)
            assert headers["cross-origin-resource-policy"] == "cross-origin"
            assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("target", ["/pixel.gif", "/p/one.gif"])
def test_the_pixel_is_a_gif_of_one_pixel_and_an_event(server: Server, target: str) -> None:
    key = target.strip("/.gif")
    status, headers, body = send(server, "GET", f"{target}?key={key}&format=json", None, {"Accept": "image/*"})
    assert (status, headers["content-type"]) == (200, "image/gif")
    assert (body[:6], body[6:10], body[-1:]) == (b"GIF89a", b"\1\0\1\0", b";")
    (event,) = stored(server, key)
    assert event["path"] == target


@pytest.mark.parametrize(
    ("query", "accept", "is_json"),
    [
        ("format=json", "*/*", True),
        ("a=1&format=json&b", None, True),
        ("format=jsonp", None, False),
        ("xformat=json", None, False),
        ("a=format=json", None, False),
        ("", "application/json", True),
        ("", "application/json, text/javascript, */*; q=0.01", True),
        ("", "text/plain, application/json;q=0.9", False),
        ("", "application/json;q=0.5, */*;q=0.8", False),
        ("", "application/json;q=0", False),
        ("", "json", False),
        ("", "*/*", False),
        ("", None, False),
    ],
)
def test_the_response_is_json_when_that_is_preferred(
    server: Server, query: str, accept: str | None, is_json: bool
) -> None:
    status, headers, body = send(server, "GET", f"/collect?{query}", None, {"Accept": accept} if accept else {})
    assert status == 200
    assert int(headers["content-length"]) == len(body)
    if is_json:
        assert headers["content-type"] == "application/json"
        answer = json.loads(body)
        assert list(answer) == ["time", "viewEventsEnabled"]
        assert abs(answer["time"] - int(send(server, "GET", "/collect")[2])) <= 2
        assert answer["viewEventsEnabled"] is True
    else:
        assert headers["content-type"] == "text/plain"
        assert body.isdigit()


def test_search_engines_are_kept_out_and_no_icon_is_not_logged(server: Server) -> None:
    before = server.log.read_text(), len(cat(server.data))
    status, _, body = send(server, "GET", "/robots.txt")
    assert (status, body) == (200, b"User-agent: *\nDisallow: /\n")
    status, headers, body = send(server, "GET", "/favicon.ico")
    assert (status, body) == (404, b"")
    assert "max-age" in headers["cache-control"]
    assert (server.log.read_text(), len(cat(server.data))) == before


def test_a_chunked_body_that_meinheld_does_not_read_is_never_a_200(tmp_path: Path) -> None:
    head = b"POST /collect?key=lower HTTP/1.1\r\nHost: t\r\ntransfer-encoding: chunked\r\n\r\n"
    with serving(tmp_path / "data") as server:
        for pieces in ([head, b"5\r\nabcde\r\n0\r\n\r\n"], [head + b"5\r\nabcde\r\n0\r\n\r\n"]):
            with server.connect() as connection:
                answer = b""
                for piece in pieces:
                    connection.sendall(piece)
                    answer = answer or connection.recv(4096)
                assert answer.startswith((b"HTTP/1.1 411", b"HTTP/1.0 400"))
        assert cat(server.data) == []


@pytest.mark.parametrize("header", ["Content-Length : 7", "Transfer-Encoding : chunked"])
def test_a_body_behind_a_malformed_header_is_no_200(server: Server, header: str) -> None:
    with server.connect() as connection:
        connection.sendall(f'POST /collect?key=space HTTP/1.1\r\nHost: t\r\n{header}\r\n\r\n{{"a":1}}'.encode())
        assert b" 400 " in connection.recv(4096)
    assert stored(server, "space") == []


def test_only_pages_on_the_list_may_read_responses_and_preflight(tmp_path: Path) -> None:
    with serving(
        tmp_path / "data", "--allow-origin", "https://Videos.example:443", "--allow-origin", "http://a:81"
    ) as server:
        for origin in ("https://videos.example", "http://a:81"):
            for method in ("GET", "POST"):
                headers = send(server, method, "/collect", None, {"Origin": origin})[1]
                assert (headers["access-control-allow-origin"], headers["vary"]) == (origin, "Origin")
            status, headers, _ = send(server, "OPTIONS", "/collect", None, {"Origin": origin})
            assert (status, headers["access-control-allow-origin"]) == (200, origin)
        for origin in ("https://videos.example.evil", "http://videos.example", "null"):
            # Stored all the same: the browser only keeps the answer from the page.
            status, headers, _ = send(server, "GET", "/collect", None, {"Origin": origin})
            assert (status, "access-control-allow-origin" in headers) == (200, False)
            status, headers, body = send(server, "OPTIONS", "/collect", None, {"Origin": origin})
            assert (status, "access-control-allow-origin" in headers) == (403, False)
            assert b"origin" in body
        assert "preflights of origins that are not allowed" in server.log.read_text()
        assert len(cat(server.data)) == 7
