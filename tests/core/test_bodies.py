"""The events of a request: those that a body holds, and the problem of a body that cannot be read."""

import gzip
import json
import zlib
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode

import pytest

from kanalony.aggregate.columns import Columns
from kanalony.bodies import MAX_EVENT, read_events
from kanalony.core.frames import MAX_EXPANDED
from kanalony.core.journal import build_record
from kanalony.segments.reader import Request

JSON = b"application/json"
FORM = b"application/x-www-form-urlencoded; charset=UTF-8"
PLAIN = b"text/plain;charset=UTF-8"

# Values that a page may send: other scripts, reserved characters, an emoji beyond the first plane.
VALUES = {"title": "Ελληνικά 日本語 é", "signs": "a&b=c%d+e f;g#h", "emoji": "👩\u200d🚀", "empty": "", "quote": '"\\/'}


def request(
    body: bytes | None,
    content_type: bytes | None = JSON,
    encoding: bytes | None = None,
    *,
    query: bytes | None = None,
    user_agent: bytes | None = None,
) -> Request:
    return Request(
        worker_id=1,
        sequence=1,
        received_at=0,
        method=b"POST",
        path=b"/collect",
        user_agent=user_agent,
        query=query,
        body=body,
        content_type=content_type,
        content_encoding=encoding,
    )


def events(request: Request) -> tuple[list[list[tuple[str, str]]], str | None]:
    """(names and values of every event, the problem)."""
    found = read_events(request)
    pairs = [[(name.decode(), value.decode()) for name, value in event] for event in found.parameters]
    return pairs, found.problem


@pytest.mark.parametrize("content_type", [JSON, PLAIN, FORM, None, b"application/octet-stream"])
def test_json_is_recognized_under_any_content_type(content_type: bytes | None) -> None:
    body = json.dumps(VALUES, ensure_ascii=False).encode()
    assert events(request(body, content_type)) == ([list(VALUES.items())], None)
    assert events(request(b"\xef\xbb\xbf \n" + body, content_type)) == ([list(VALUES.items())], None)


@pytest.mark.parametrize("content_type", [JSON, PLAIN, FORM, None])
def test_form_pairs_are_recognized_under_any_content_type(content_type: bytes | None) -> None:
    body = urlencode(VALUES).encode()
    assert events(request(body, content_type)) == ([list(VALUES.items())], None)


def test_a_form_may_look_like_another_format() -> None:
    for body in [b"{a}=1", b"[0]=1&b", b"no pairs", b"a\nb=1"]:
        assert events(request(body, FORM)) == ([parse_qsl(body.decode(), keep_blank_values=True)], None)


def test_broken_json_is_not_a_form_under_any_content_type() -> None:
    for body in [b'{"a":"b=c&d', b"{a:1,b=2}", b'[{"a":1']:
        problem = events(request(body, FORM, query=b"q=1"))[1]
        assert problem == "not valid JSON"


def test_each_event_of_a_batch_has_the_parameters_of_the_query_first() -> None:
    lines = [{"eventType": 3, "partnerId": 7}, {"eventType": 99}]
    expected = [
        [("partnerId", "5"), ("a", "+ "), ("eventType", "3"), ("partnerId", "7")],
        [("partnerId", "5"), ("a", "+ "), ("eventType", "99")],
    ]
    for body in [json.dumps(lines), "\n".join(map(json.dumps, lines)), "\n".join(map(json.dumps, lines)) + "\r\n\r\n"]:
        assert events(request(body.encode(), query=b"partnerId=5&a=%2B+")) == (expected, None)


def test_every_request_is_at_least_one_event() -> None:
    alone = [[("eventType", "3")]]
    for body, problem in [
        (None, None),
        (b" \r\n", None),
        (b"[]", None),
        (b"{}", None),
        (b"[", "not valid JSON"),
        (b'{"a":', "not valid JSON"),
        (b"<xml a='b'/>", "neither JSON nor form-encoded"),
        (b"hello", "neither JSON nor form-encoded"),
        (b"a=1\x00", "neither JSON nor form-encoded"),
        (b'"a=1"', "neither JSON nor form-encoded"),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--\r\n", "neither JSON nor form-encoded"),
    ]:
        assert events(request(body, PLAIN, query=b"eventType=3")) == (alone, problem), body


def test_objects_before_a_mistake_are_read() -> None:
    assert events(request(b'[{"a":1},{"a":2},{"a"')) == ([[("a", "1")], [("a", "2")]], "not valid JSON")


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        (b"gzip", gzip.compress),
        (b"X-GZIP ", gzip.compress),
        (b"gzip", lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:])),
        (b"deflate", zlib.compress),
        (b"deflate", raw_deflate),
        (b"identity", bytes),
        (b"deflate, gzip", lambda data: gzip.compress(zlib.compress(data))),
        (b"identity,,gzip", gzip.compress),
    ],
)
def test_content_codings_are_decoded(encoding: bytes, encode: Callable[[bytes], bytes]) -> None:
    body = encode(json.dumps(VALUES).encode())
    assert events(request(body, JSON, encoding)) == ([list(VALUES.items())], None)


@pytest.mark.parametrize(
    ("encoding", "body", "problem"),
    [
        (b"br", b"{}", "unknown content coding 'br'"),
        (b"gzip", b"{}", "does not match its Content-Encoding"),
        (b"deflate", b"\xff\xff", "does not match its Content-Encoding"),
        (b"gzip", gzip.compress(b'{"a":1}' * 99)[:-9], "ends early"),
        (b"gzip", gzip.compress(b"{}") + b"more", "does not match its"),
        (b"deflate", zlib.compress(b"{}") + b"more", "more bytes behind"),
        (b"gzip, gzip, gzip", b"{}", "3 content codings"),
        (b"gzip", gzip.compress(b"") * 20, "more than 16 gzip members"),
        (b"gzip", gzip.compress(bytes(MAX_EXPANDED + 1)), "more than 16,777,216 bytes"),
        (b"gzip, gzip", gzip.compress(gzip.compress(bytes(1 << 30))), "more than 16,777,216 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # bodies of gzip have the time in them
)
def test_a_body_that_cannot_be_decompressed_is_a_problem(encoding: bytes, body: bytes, problem: str) -> None:
    found, reason = events(request(body, JSON, encoding, query=b"a=1"))
    assert found == [[("a", "1")]]
    assert reason
    assert problem in reason


@pytest.mark.parametrize(
    ("query", "user_agent", "most"),
    [
        (b"q" * 768, None, 1 + MAX_EXPANDED // (768 + 32 + 64 + 256)),
        (b"q=1", b"x" * 8000, 1 + MAX_EXPANDED // (3 + 8000 + 32 + 64 + 256)),
        (b"&".join([b"q"] * 1000), None, 1 + MAX_EXPANDED // (1999 + 32 + 1000 * 64 + 256)),
    ],
)
def test_the_number_of_events_is_limited(query: bytes, user_agent: bytes | None, most: int) -> None:
    body = gzip.compress(b"[" + b"{}," * (1 << 20) + b"{}]")
    found = read_events(request(body, JSON, b"gzip", query=query, user_agent=user_agent))
    assert found.problem == f"more than {most:,} events"
    assert sum(1 for _ in found.parameters) == most


def test_the_size_of_an_event_is_limited() -> None:
    names = b"&".join([b"a"] * (MAX_EVENT // 2))
    assert len(events(request(names + b"&", FORM))[0][0]) == MAX_EVENT // 2
    assert events(request(names + b"&b", FORM, query=b"q=1")) == (
        [[("q", "1")]],
        f"more than {MAX_EVENT:,} bytes in one event",
    )
    largest = b'{"a": "' + b"x" * (MAX_EVENT - 9) + b'"}'
    larger = largest.replace(b"x", b"xx", 1)
    found, problem = events(request(b"[" + larger + b"," + largest + b',{"b":1}]'))
    assert [event[0][0] for event in found] == ["a", "b"]
    assert problem == f"more than {MAX_EVENT:,} bytes in one event"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"a=1",
        b"no pairs",
        b'[{"a":1},{"b":2}]',
        b'\xef\xbb\xbf {"a":1}\n{"b":',
        b"[" + b"{}," * 70_000 + b"{}]",
        b'[{"a":"' + b"x" * MAX_EVENT + b'"},{"b":2}]',
        b"a=" + b"x" * MAX_EVENT,
    ],
    ids=range(9),
)
@pytest.mark.parametrize("content_type", [JSON, FORM])
@pytest.mark.parametrize("encoding", [None, b"gzip", b"br"])
def test_compact_finds_the_same_events(body: bytes, content_type: bytes, encoding: bytes | None) -> None:
    sent = request(gzip.compress(body) if encoding else body, content_type, encoding, query=b"q=1&r=2")
    found = read_events(sent)
    columns = Columns(1 << 30)
    added = columns.add(build_record(1, 1, 0, *sent.fields), 1, 1, 1, 1, 2)
    assert added
    assert (added.events, added.unread) == (sum(1 for _ in found.parameters), found.problem is not None)
