"""The collector over HTTP: requests of players, responses, stored events."""

import base64
import http.client
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.load import Load, cat, keys_of
from harness.server import Server, serving
from tests.files import API_QUERY, COLLECT_QUERY
from tests.tools import tool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("serve") / "data") as server:
        yield server


def stored(server: Server, key: str) -> dict[str, Any]:
    """Returns the one event whose query holds the key."""
    (event,) = [event for event in cat(server.data) if key in event.get("query", "")]
    return event


def parts(answer: bytes) -> tuple[bytes, dict[str, str], bytes]:
    """Returns status line, headers by lower-case name, and body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    return status, {name.lower(): value for name, value in (line.decode().split(": ", 1) for line in lines)}, body


def test_the_answer_is_exactly_the_time_in_seconds(server: Server) -> None:
    before = int(time.time())
    status, headers, body = parts(server.get("/collect?eventType=3"))
    assert status == b"HTTP/1.1 200 OK"
    assert re.fullmatch(rb"\d{10}", body)
    assert before <= int(body) <= time.time()
    assert headers["content-type"] == "text/plain"
    assert headers["content-length"] == "10"
    assert headers["access-control-allow-origin"] == "*"
    assert headers["cache-control"] == "no-store"
    assert headers["connection"] == "Keep-Alive"


def test_the_curl_example_is_stored_byte_for_byte(server: Server) -> None:
    curl = tool("curl")
    query = API_QUERY.decode() + "&via=curl"
    url = f"http://{server.host}:{server.port}/api_v3/index.php?{query}"
    answer = subprocess.run([curl, "-sS", url], check=True, capture_output=True, timeout=60)
    assert re.fullmatch(rb"\d{10}", answer.stdout)
    event = stored(server, "via=curl")
    assert event["query"] == query
    assert event["path"] == "/api_v3/index.php"
    assert event["user_agent"].startswith("curl/")
    assert event["params"]["referrer"] == "http%3A//abc.go.com/shows/the-bachelorette/video/most-recent/VDKA0_lawz79v7"


@pytest.mark.parametrize("example", ["XMLHttpRequest", "jQuery"])
def test_the_browser_examples_are_stored_byte_for_byte(server: Server, example: str) -> None:
    query = COLLECT_QUERY.decode() + f"&via={example}"
    headers = {
        "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        "Accept": "*/*",
        "Accept-Encoding": "gzip, deflate, br",
        "Origin": "http://abc.go.com",
        "Referer": "http://abc.go.com/shows/",
        "Connection": "keep-alive",
    }
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    connection.request("GET", f"/collect?{query}", headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.getheader("Access-Control-Allow-Origin") == "*"
    assert answer.read().isdigit()
    connection.close()
    event = stored(server, f"via={example}")
    assert event["query"] == query
    assert event["user_agent"] == headers["User-Agent"]
    assert event["referer"] == headers["Referer"]
    assert event["remote_addr"] == "127.0.0.1"
    assert event["method"] == "GET"


@pytest.mark.parametrize(
    "path",
    [
        "/collect",
        "/collect/",
        "//collect",
        "/api_v3/index.php",
        "//api_v3/index.php",
        "//api_v3/index.php/",
        "/api_v3/index.php/",
    ],
)
def test_every_form_of_the_tracking_paths_is_stored(server: Server, path: str) -> None:
    key = f"form={path.replace('/', '.')}"
    assert b" 200 " in server.get(f"{path}?service=stats&action=collect&event%3AentryId=1&{key}")
    event = stored(server, key)
    assert event["path"] == path
    assert event["params"]["event:entryId"] == "1"


@pytest.mark.parametrize(
    "query",
    [
        b"partnerId=1&partnerId=2&partnerId=1",
        b"bad=%zz&worse=%&cut=%4",
        b"empty=&none&=value&&&",
        b"ks=YWJj==&plus=a+b&unescaped=http://a.b/c,d:e",
        b"raw=\xc3\xa9\xff\x80",
        b"double=http%253A%2F%2F",
        b"callback=jQuery1_2&_=1459671407",
        b"q=1?q=2;q=3",
        b"quote=\"'<>|^`{}\\[]",
        b"long=" + b"x" * 8100,
    ],
    ids=lambda query: query[:12].decode("latin-1"),
)
def test_a_query_is_neither_validated_nor_altered(server: Server, query: bytes) -> None:
    before = len(cat(server.data))
    assert b" 200 " in server.get(b"/collect?" + query)
    event = cat(server.data)[before]
    if query.startswith(b"raw="):
        assert base64.b64decode(event["query_base64"]) == query
    else:
        assert event["query"] == query.decode()


def test_no_query_at_all_is_stored(server: Server) -> None:
    before = len(cat(server.data))
    for target in ("/collect", "/collect?"):
        assert b" 200 " in server.get(target)
    events = cat(server.data)[before:]
    assert [(event["query"], event["params"], event["body"]) for event in events] == [("", {}, "")] * 2


def test_repeated_and_decoded_parameters_come_in_order(server: Server) -> None:
    server.get("/collect?b=1&a=%C3%A9+%2B&b=2&b=&key=order")
    event = stored(server, "key=order")
    assert list(event["params"].items()) == [("b", ["1", "2", ""]), ("a", "é +"), ("key", "order")]


def test_head_is_stored_and_answered_without_a_body(server: Server) -> None:
    answer = server.exchange(b"HEAD /collect?key=head HTTP/1.1\r\nHost: t\r\n\r\n")
    status, headers, body = parts(answer)
    assert status == b"HTTP/1.1 200 OK"
    assert body == b""
    assert headers["content-length"] == "10"
    assert stored(server, "key=head")["method"] == "HEAD"


def test_a_body_of_a_get_is_stored(server: Server) -> None:
    plain = b"GET /collect?key=plainbody HTTP/1.1\r\nHost: t\r\nContent-Length: 6\r\n\r\nb\xffd\r\n\0"
    head = b"GET /collect?key=chunkedbody HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert b" 200 " in server.exchange(plain)
    assert b" 200 " in server.exchange(chunked)
    assert stored(server, "key=plainbody")["body_base64"] == "Yv9kDQoA"
    assert stored(server, "key=chunkedbody")["body"] == "abcde"


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"GET /collector?eventType=3 HTTP/1.1", b"404"),
        (b"GET /api_v3 HTTP/1.1", b"404"),
        (b"GET /collect/more HTTP/1.1", b"404"),
        (b"DELETE /collect HTTP/1.1", b"405"),
        (b"PUT /api_v3/index.php HTTP/1.1", b"405"),
    ],
)
def test_anything_else_is_answered_with_the_paths_and_not_stored(
    server: Server, request_line: bytes, status: bytes
) -> None:
    before = len(cat(server.data))
    line, headers, body = parts(server.exchange(request_line + b"\r\nHost: t\r\n\r\n"))
    assert status in line
    assert headers["content-type"] == "text/plain"
    assert b"events are tracked by GET or POST on /collect, /api_v3/index.php, /pixel.gif" in body
    assert len(cat(server.data)) == before


def test_interleaved_keep_alive_connections_keep_their_own_addresses(server: Server) -> None:
    def connect(source: str) -> socket.socket:
        return socket.create_connection((server.host, server.port), timeout=60, source_address=(source, 0))

    with connect("127.0.0.2") as first, connect("127.0.0.3") as second:
        for number in range(3):
            for name, connection in (("first", first), ("second", second)):
                request = f"GET /collect?key=address-{name}-{number} HTTP/1.1\r\nHost: t\r\n"
                connection.sendall(f"{request}X-Forwarded-For: 10.9.8.7, 10.1.1.1\r\n\r\n".encode())
                assert b" 200 " in connection.recv(4096)
    events = [event for event in cat(server.data) if "key=address-" in event.get("query", "")]
    expected = [f"127.0.0.{2 + (name == 'second')}" for _ in range(3) for name in ("first", "second")]
    assert [event["remote_addr"] for event in events] == expected
    assert {event["forwarded_for"] for event in events} == {"10.9.8.7, 10.1.1.1"}


def test_pipelined_requests_are_each_stored_in_order(server: Server) -> None:
    requests = b"".join(b"GET /collect?key=pipe-%d HTTP/1.1\r\nHost: t\r\n\r\n" % n for n in range(20))
    with server.connect() as connection:
        connection.sendall(requests)
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 20:
            piece = connection.recv(65536)
            assert piece
            answers += piece
    queries = [event["query"] for event in cat(server.data) if "key=pipe-" in event.get("query", "")]
    assert queries == [f"key=pipe-{n}" for n in range(20)]


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_seals_everything_and_leaves_no_journal(tmp_path: Path, workers: int) -> None:
    with serving(tmp_path / "data", "--workers", str(workers)) as server:
        load = Load(server, limit=200)
        load.wait()
        assert len(load.acked) == 800
        assert server.stop() == 0
        data = server.data
    assert keys_of(cat(data)) == dict.fromkeys(load.sent, 1)
    assert list((data / "journal").iterdir()) == []
    assert list((data / "segments" / "open").iterdir()) == []
    for segment in (data / "segments" / "sealed").iterdir():
        subprocess.run([tool("lz4"), "-t", segment], check=True, capture_output=True)


@pytest.mark.parametrize("wait", [0, 0.05, 0.1, 0.2])
def test_a_worker_stops_when_the_signal_comes_while_it_starts(tmp_path: Path, wait: float) -> None:
    with serving(tmp_path / "data", "--workers", "4") as server:  # ready as soon as one of them is
        time.sleep(wait)
        assert server.stop() == 0
        assert list((server.data / "journal").iterdir()) == [], "it took the arbiter's kill -9"


def test_ctrl_c_ends_it_cleanly_too(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server:
        server.get("/collect?key=1")
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(timeout=60) == 0
        assert list((server.data / "journal").iterdir()) == []
        assert "Traceback" not in server.log.read_text()


def test_two_collectors_may_share_a_data_directory(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as first, serving(tmp_path / "data") as second:
        first.get("/collect?key=first")
        second.get("/collect?key=second")
        assert sorted(event["query"] for event in cat(first.data)) == ["key=first", "key=second"]
