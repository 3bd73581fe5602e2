"""The fast path of plain GETs stores and answers exactly what the general path does."""

from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kanalony.collector.app import Collector, create_app
from kanalony.core.fast_path import FastPath, ResponseCache
from kanalony.settings.serving import ServeSettings
from tests.collector.wsgi import SMALL, call, stored
from tests.tools import examples

TEXT = st.text(st.characters(max_codepoint=255), max_size=30)
ALWAYS = {
    "REQUEST_METHOD": st.just("GET"),
    "PATH_INFO": st.sampled_from(["/collect", "/pixel.gif", "/api_v3/index.php"]),
    "QUERY_STRING": TEXT,
}
HARMLESS = {
    "HTTP_USER_AGENT": TEXT,
    "HTTP_REFERER": TEXT,
    "HTTP_X_FORWARDED_FOR": st.sampled_from(["", "203.0.113.9", "203.0.113.9, 10.1.2.3", "nobody"]),
    "HTTP_ACCEPT": st.sampled_from(["*/*", "text/html", ""]),
    "HTTP_ORIGIN": st.sampled_from(["https://videos.example", "https://other.example", "null", "no origin\u00ff"]),
    "REMOTE_ADDR": st.sampled_from(["192.0.2.7", "10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1", "unix:", ""]),
}
ELSEWHERE = {
    "HTTP_ACCEPT": st.sampled_from(["application/json", "text/json;q=0.1, text/plain", "application/JSON"]),
    "HTTP_COOKIE": st.sampled_from(["a=b", ""]),
    "CONTENT_LENGTH": st.sampled_from(["", "0", "3", "-1"]),
    "HTTP_TRANSFER_ENCODING": st.sampled_from(["", "chunked"]),
    "HTTP_CONTENT_LENGTH ": st.just("3"),
    "HTTP_TRANSFER_ENCODING ": st.just("chunked"),
}
PLAIN = st.fixed_dictionaries(ALWAYS, optional=HARMLESS)
ANY = st.fixed_dictionaries(
    {
        "REQUEST_METHOD": st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "PUT"]),
        "PATH_INFO": st.sampled_from(["/collect", "/pixel.gif", "/collect/", "//collect", "/other"]),
        "QUERY_STRING": st.sampled_from(["format=json", "xformat=jsonx", "a=1&format=json", "format%3Djson", "a=1"]),
    },
    optional=HARMLESS | ELSEWHERE,
)
GET = {"REQUEST_METHOD": "GET", "PATH_INFO": "/collect", "QUERY_STRING": "a=1"}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "behind a proxy": {"trusted_proxy": ("10.0.0.0/8",)},
    "for some pages": {"allow_origin": ("https://videos.example",)},
    "private": {"anonymize_ip": "truncate", "redact": ("ks",)},
}


@pytest.fixture(params=CONFIGURATIONS)
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    app = create_app(
        ServeSettings(data=tmp_path / "data", **SMALL | {"journal_blocks": 64}, **CONFIGURATIONS[request.param])
    )
    yield app
    app.close()


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(PLAIN, PLAIN, ANY))
@example({**GET, "HTTP_ORIGIN": "https://videos.example"})
@example({**GET, "HTTP_ORIGIN": "https://other.example"})
@example({**GET, "HTTP_ORIGIN": "https://videos.example", "HTTP_COOKIE": "a=b"})
def test_every_request_is_answered_and_stored_alike_on_both_paths(app: Collector, environ: dict[str, str]) -> None:
    path = environ["PATH_INFO"]
    others = {name: value for name, value in environ.items() if name != "PATH_INFO"}
    before = len(stored(app.settings))
    responses = [call(path_taken, path, **others) for path_taken in (app, app.respond_generally)]
    assert responses[0][:2] == responses[1][:2]
    assert len(responses[0][2]) == len(responses[1][2])
    found = stored(app.settings)[before:]
    assert len(found) == 2 * responses[0][0].startswith("200") * (path != "/other") * (
        environ["REQUEST_METHOD"] in ("GET", "HEAD", "POST")
    )
    assert all(one[3:] == found[0][3:] for one in found)


@pytest.mark.parametrize(
    ("more", "taken"),
    [
        ({}, True),
        ({"HTTP_ORIGIN": "https://videos.example", "HTTP_ACCEPT": "*/*"}, True),
        ({"HTTP_COOKIE": "a=b"}, False),
        ({"HTTP_ACCEPT": "application/json"}, False),
        ({"QUERY_STRING": "format=json"}, False),
        ({"CONTENT_LENGTH": "0"}, False),
        ({"REQUEST_METHOD": "POST"}, False),
        ({"PATH_INFO": "/collect/"}, False),
        ({"HTTP_ACCEPT": None}, True),
        ({"HTTP_ACCEPT": b"text/html"}, False),
    ],
)
def test_plain_gets_take_the_fast_path_and_nothing_else_does(tmp_path: Path, more: dict[str, Any], taken: bool) -> None:
    app = create_app(ServeSettings(data=tmp_path / "data", **SMALL))
    left: list[object] = []

    def general(*arguments: object) -> list[bytes]:
        left.append(arguments)
        return []

    fast = FastPath(app._resources, app._intake, general, ("HTTP_COOKIE",))
    answered: list[object] = []
    fast({**GET, "REMOTE_ADDR": "192.0.2.7", **more}, lambda *answer: answered.append(answer))
    assert (len(answered), len(left)) == ((1, 0) if taken else (0, 1))
    app.close()


@pytest.mark.parametrize(
    ("allowed", "origin", "named"),
    [
        ((), "https://videos.example", "*"),
        (("https://videos.example",), "https://videos.example", "https://videos.example"),
        (("https://videos.example",), "https://other.example", None),
        (("https://videos.example",), None, None),
    ],
)
def test_the_response_names_the_pages_that_may_read_it(
    tmp_path: Path, allowed: tuple[str, ...], origin: str | None, named: str | None
) -> None:
    app = create_app(ServeSettings(data=tmp_path / "data", allow_origin=allowed, **SMALL))
    for _ in range(2):  # the second response comes from the cache
        status, headers, _ = call(app, **{"HTTP_ORIGIN": origin} if origin else {})
        assert (status, headers.get("access-control-allow-origin")) == ("200 OK", named)
    app.close()


@pytest.mark.parametrize(
    ("fails", "status"),
    [
        (OSError(5, "Input/output error"), "503 Service Unavailable"),
        (ValueError("not latin-1"), "400 Bad Request"),
        (OverflowError("too large"), "413 Content Too Large"),
        (None, "503 Service Unavailable"),
    ],
)
def test_a_request_that_is_not_stored_is_refused_alike_on_both_paths(
    tmp_path: Path, fails: Exception | None, status: str
) -> None:
    app = create_app(ServeSettings(data=tmp_path / "data", **SMALL))

    def append(*_: object) -> int:
        if fails:
            raise fails
        return 0

    app._intake.append = append
    responses = [call(path_taken, QUERY_STRING="a=1") for path_taken in (app, app.respond_generally)]
    assert responses[0] == responses[1]
    assert responses[0][0] == status
    app.close()


def test_an_error_of_our_own_is_not_taken_for_a_refusal(tmp_path: Path) -> None:
    app = create_app(ServeSettings(data=tmp_path / "data", **SMALL))

    def append(*_: object) -> int:
        raise RuntimeError("a bug")

    app._intake.append = append
    with pytest.raises(RuntimeError, match="a bug"):
        call(app)
    app.close()


def test_the_response_is_the_second_of_receipt_from_one_second_to_the_next(tmp_path: Path) -> None:
    app = create_app(ServeSettings(data=tmp_path / "data", **SMALL))
    times = iter([1_767_225_600_999_999, 1_767_225_601_000_000, 1_767_225_601_000_001, 1_767_225_602_000_000])
    app._intake.append = lambda *_: next(times)
    assert [call(app)[2] for _ in range(4)] == [b"1767225600", b"1767225601", b"1767225601", b"1767225602"]
    app.close()


def test_the_cache_keeps_the_responses_of_one_second_and_not_too_many() -> None:
    composed: list[tuple[int, str | None]] = []

    def compose(second: int, origin: str | None) -> tuple[str, list[tuple[str, str]], bytes]:
        composed.append((second, origin))
        return f"{second} {origin}", [], b""

    cache = ResponseCache(compose, size=2)
    for second, origin in [(7, None), (7, None), (7, "a"), (7, "a"), (7, "b"), (7, "b"), (8, None), (7, None)]:
        assert cache.get(second, origin)[0] == f"{second} {origin}"
    assert composed == [(7, None), (7, "a"), (7, "b"), (7, "b"), (8, None), (7, None)]


def test_both_paths_share_the_responses_of_a_second(tmp_path: Path) -> None:
    app = create_app(ServeSettings(data=tmp_path / "data", **SMALL))
    app._intake.append = lambda *_: 1_767_225_600_000_000
    environ = {**GET, "REMOTE_ADDR": "192.0.2.7"}
    (fast,) = app(environ, lambda *_: bytes)
    (general,) = app.respond_generally(environ, lambda *_: bytes)
    assert fast is general
    app.close()


def test_a_server_that_adds_to_the_headers_adds_them_to_its_own(tmp_path: Path) -> None:
    app = create_app(ServeSettings(data=tmp_path / "data", **SMALL))

    def server(environ: Any, start_response: Any) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *_: object) -> Any:
            headers.append(("X-Server", "added"))
            return start_response(status, headers)

        return app(environ, start)

    for _ in range(2):
        assert call(server)[1]["x-server"] == "added"
    assert "x-server" not in call(app)[1]
    app.close()


def test_threads_share_an_application(tmp_path: Path) -> None:
    app = create_app(ServeSettings(data=tmp_path / "data", **SMALL | {"journal_blocks": 64}))
    statuses: list[str] = []

    def send(thread: int) -> None:
        for number in range(300):
            status, headers, body = call(
                app, ("/collect", "/pixel.gif")[number % 2], QUERY_STRING=f"k={thread}.{number}"
            )
            assert headers["content-length"] == str(len(body))
            statuses.append(status)

    threads = [Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == ["200 OK"] * 1200
    assert len({event.query for event in stored(app.settings)}) == 1200
    app.close()
