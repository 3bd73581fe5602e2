"""Privacy settings leave out what they name before it reaches the disk, and change nothing else."""

import gzip
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.redact import empty_blocks
from harness.load import cat
from harness.server import serving
from kanalony.bodies import read_events
from kanalony.collector.anonymization import AddressKeys, truncated
from kanalony.collector.app import Collector, create_app
from kanalony.collector.redaction import redact_body
from kanalony.core.redact import Redactor
from kanalony.errors import UsageError
from kanalony.segments.reader import Request
from kanalony.settings.loading import SettingsReader
from kanalony.settings.serving import ServeSettings, describe_reload
from tests.collector.wsgi import SMALL, call, stored

SECRET = "djJ8NTg1MjMxfHNlY3JldA"
FOUR, SIX = "203.0.113.77", "2001:db8:1:2:3:4:5:6"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    """Makes applications with the settings of a test, all on one data directory."""
    apps: list[Collector] = []

    def make(**options: Any) -> Collector:
        apps.append(create_app(ServeSettings(data=tmp_path / "data", **SMALL, **options)))
        return apps[-1]

    yield make
    for app in apps:
        app.close()


def post(app: Collector, body: bytes, content_type: str = "application/json", **environ: Any) -> None:
    length = str(len(body))
    environ = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": length, "CONTENT_TYPE": content_type, **environ}
    assert call(app, **{**environ, "wsgi.input": io.BytesIO(body)})[0] == "200 OK"


def parameters(request: Request) -> list[list[tuple[str, str]]]:
    return [[(name.decode(), value.decode()) for name, value in event] for event in read_events(request).parameters]


def test_addresses_are_whole_by_default(make: Any) -> None:
    app = make()
    call(app, REMOTE_ADDR=FOUR, HTTP_X_FORWARDED_FOR=SIX)
    (request,) = stored(app.settings)
    assert (request.address, request.forwarded_for, request.address_token) == (FOUR, SIX.encode(), None)


def test_truncate_keeps_the_network_and_nothing_of_the_host(make: Any) -> None:
    app = make(anonymize_ip="truncate")
    call(app, REMOTE_ADDR=FOUR, HTTP_X_FORWARDED_FOR=f"{FOUR},{SIX} , 198.51.100.1:80,<b>, ")
    call(app, REMOTE_ADDR=SIX)
    call(app, REMOTE_ADDR="")
    call(app, REMOTE_ADDR=f"::ffff:{FOUR}", HTTP_X_FORWARDED_FOR=f"::ffff:{FOUR}")  # as dual-stack sockets report it
    four, six, none, mapped = stored(app.settings)
    assert (four.address, six.address, none.address) == ("203.0.113.0", "2001:db8:1::", None)
    assert (mapped.address, mapped.forwarded_for) == ("203.0.113.0", b"203.0.113.0")
    assert four.forwarded_for == b"203.0.113.0, 2001:db8:1::, unknown, unknown, unknown"


EMBED_IPV4 = [ip_network(text) for text in ("2002::/16", "2001::/32", "::ffff:0:0/96", "64:ff9b::/96")]


@given(st.ip_addresses().filter(lambda address: not any(address in network for network in EMBED_IPV4)))
def test_truncation_is_to_24_bits_of_ipv4_and_48_of_ipv6(address: Any) -> None:
    kept = int(ip_address(truncated(address.packed)))
    dropped = 8 if address.version == 4 else 80
    assert kept == int(address) >> dropped << dropped


@given(st.ip_addresses(v=4), st.binary(min_size=10, max_size=10))
def test_an_ipv6_address_that_embeds_an_ipv4_address_is_truncated_as_that(four: Any, more: bytes) -> None:
    turned = bytes(byte ^ 0xFF for byte in four.packed)  # as Teredo has it (RFC 4380, section 4)
    for six in (
        b"\x20\x02" + four.packed + more,  # 6to4 (RFC 3056)
        b"\x20\x01\0\0" + more[:8] + turned,
        bytes(10) + b"\xff\xff" + four.packed,
        b"\0\x64\xff\x9b" + bytes(8) + four.packed,  # NAT64 (RFC 6052)
    ):
        assert truncated(six) == four.packed[:3] + b"\0"


def test_drop_keeps_nothing(make: Any) -> None:
    app = make(anonymize_ip="drop")
    call(app, REMOTE_ADDR=FOUR, HTTP_X_FORWARDED_FOR=FOUR)
    (request,) = stored(app.settings)
    assert (request.remote_addr, request.forwarded_for, request.address_token) == (None, None, None)


def test_the_address_behind_a_trusted_proxy_is_the_one_that_is_anonymized(make: Any) -> None:
    app = make(anonymize_ip="truncate", trusted_proxy=["192.0.2.0/24"])
    call(app, REMOTE_ADDR="192.0.2.1", HTTP_X_FORWARDED_FOR=FOUR)
    assert [request.address for request in stored(app.settings)] == ["203.0.113.0"]


def test_a_hashed_address_is_the_same_in_every_worker_for_a_day_and_no_longer(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokens(addresses: list[str]) -> list[bytes]:
        before = {(request.worker_id, request.sequence) for request in stored(first.settings)}
        for address in addresses:
            for app in (first, second):
                call(app, REMOTE_ADDR=address, HTTP_X_FORWARDED_FOR=address)
        new = [r for r in stored(first.settings) if (r.worker_id, r.sequence) not in before]
        assert all(request.remote_addr is None and request.forwarded_for is None for request in new)
        return [request.address_token or b"" for request in sorted(new, key=lambda r: (r.worker_id, r.sequence))]

    first, second = make(anonymize_ip="hmac"), make(anonymize_ip="hmac")
    now = time.time()
    four, six, four_too, six_too = tokens([FOUR, SIX])
    assert (four, six) == (four_too, six_too)
    assert four != six
    assert len(four) == len(six) == 16
    keys = first.settings.data / "address-keys"
    (key,) = keys.iterdir()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    old = key.read_bytes()
    assert len(old) == 32

    monkeypatch.setattr(time, "time", lambda: now + 86400)
    next_day, next_day_too = tokens([FOUR])
    assert next_day == next_day_too != four
    (next_key,) = keys.iterdir()
    assert next_key.name == time.strftime("%Y%m%d.key", time.gmtime(now + 86400))
    assert next_key.read_bytes() != old, "the key of the day before is gone"

    # A worker whose clock is behind finds its own key again, and deletes none that others use.
    (keys / "20991231.key").write_bytes(bytes(32))
    (keys / "20200101-1-abcd.young").write_bytes(old)
    make()
    assert sorted(path.name for path in keys.iterdir()) == [next_key.name, "20991231.key"]


def test_a_start_without_hashing_deletes_the_keys_of_days_before(make: Any) -> None:
    app = make()
    keys = app.settings.data / "address-keys"
    assert not keys.exists()
    keys.mkdir()
    for name in ("20200101.key", "20200101-77-0123abcd.young", "20991231.key"):
        (keys / name).write_bytes(bytes(32))
    make(anonymize_ip="drop")
    assert [path.name for path in keys.iterdir()] == ["20991231.key"]


def test_a_restart_in_the_same_day_keeps_the_key(tmp_path: Path) -> None:
    assert AddressKeys(tmp_path / "keys").today() == AddressKeys(tmp_path / "keys").today()


def test_a_disk_that_refuses_the_key_costs_no_event(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make(anonymize_ip="hmac")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86400)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        assert call(app, REMOTE_ADDR=FOUR)[0] == call(app, REMOTE_ADDR=FOUR)[0] == "200 OK"
    first, second = stored(app.settings)
    assert first.address_token == second.address_token
    assert first.address_token
    assert (first.remote_addr, first.forwarded_for) == (None, None)


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("a=1&ks=S&b=%zz", "a=1&ks=redacted&b=%zz"),
        ("ks=S", "ks=redacted"),
        ("ks=S=&ks=S2%3D", "ks=redacted&ks=redacted"),
        ("%6bs=S&event%3Aks=S&event:ks=S", "%6bs=redacted&event%3Aks=redacted&event:ks=redacted"),
        ("event[ks]=S&ks%5B%5D=S&event:ks=", "event[ks]=redacted&ks%5B%5D=redacted&event:ks="),
        ("ks=&ks&xks=1&ksx=1&my_ks=1&&a=ks", "ks=&ks&xks=1&ksx=1&my_ks=1&&a=ks"),
        ("1:ks=S&ks[0]=S&KS=S&a[b][Ks]=S", "1:ks=redacted&ks[0]=redacted&KS=redacted&a[b][Ks]=redacted"),
        ("%256bs=S&%25256bs=S&%2525%36b%73=S", "%256bs=redacted&%25256bs=redacted&%2525%36b%73=redacted"),
        ("a=1;ks=S&b=2", "a=1;ks=redacted&b=2"),
        ("ks=S;S&b=2", "ks=redacted&b=2"),
        ("", None),
    ],
)
def test_redaction_in_a_query_touches_the_value_and_nothing_else(make: Any, query: str, kept: str | None) -> None:
    app = make(redact=["event:ks", "userId"])
    call(app, QUERY_STRING=query, HTTP_REFERER=f"https://a.example/p?{query}")
    (request,) = stored(app.settings)
    assert request.query == (kept.encode() if kept else None)
    assert request.referer == b"https://a.example/p?" + (kept or "").encode()


BODIES = {
    "object": (f'{{ "ks" : "{SECRET}", "a": [1.50, {{"ks": ["{SECRET}"]}}] }}\n', "application/json"),
    "batch": (f'[{{"ks": "{SECRET}"}},\n {{"\\u006bs": {{"x": "{SECRET}"}}}}, {{}}]', "text/plain"),
    "ndjson": (f'{{"ks": "{SECRET}"}}\n{{"a":1}}\n', "application/x-ndjson"),
    "form": (f"a=1&ks={SECRET}&b=%zz", "application/x-www-form-urlencoded"),
    "broken": (f'[{{"ks": "{SECRET}", "a": 1}}, {{"b": 2}}, {{"ks": "{SECRET}', "application/json"),
    "nested lines": (f'{{"t":3}}\n{{"ks": [\n{{"id": "{SECRET}"}}\n], "a": }}', "application/json"),
    "torn in a form": (f'{{"ks": "{SECRET}', "application/x-www-form-urlencoded"),
    "words": (f"the ks is {SECRET}", "text/plain"),
    "in no form": (f'{{"ks":"{SECRET}","b":"c=d&e', "application/x-www-form-urlencoded"),
    "in no pairs": (f'"ks"={SECRET}', "application/x-www-form-urlencoded"),
    "on lines": (f"a=1\nks: {SECRET}", "application/x-www-form-urlencoded"),
    "multipart": (f'--x\r\nContent-Disposition: form-data; name="ks"\r\n\r\n{SECRET}\r\n--x--', "multipart/form-data"),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("encoding", ["", "gzip", "br"])
def test_redaction_leaves_no_secret_in_any_body(make: Any, kind: str, encoding: str) -> None:
    body, content_type = BODIES[kind]
    sent = gzip.compress(body.encode()) if encoding == "gzip" else body.encode()
    plain, private = make(), make(redact=["ks"])
    for app in (plain, private):
        environ = {"HTTP_CONTENT_ENCODING": encoding} if encoding else {}
        post(app, sent, content_type, QUERY_STRING="app=" + ("plain" if app is plain else "private"), **environ)
    by_app = {request.query: request for request in stored(plain.settings)}
    before, after = by_app[b"app=plain"], by_app[b"app=private"]
    assert before.body == sent
    text = after.body or b""
    assert after.content_encoding == before.content_encoding
    if encoding == "gzip":
        text = gzip.decompress(text)
    assert SECRET.encode() not in text
    if kind.startswith(("in no", "on")):
        return  # a form in name only has no parameters to compare
    # Readers find the same events and the same everything else.
    names = ("ks", "app")
    for one, other in zip(parameters(before), parameters(after), strict=True):
        assert [name for name, _ in one] == [name for name, _ in other]
        for (name, value), (_, kept) in zip(one, other, strict=True):
            assert name in names or kept == value.replace(f'["{SECRET}"]', '"redacted"')
    assert (read_events(before).problem is None) == (read_events(after).problem is None)


def test_redaction_in_json_keeps_every_other_byte(make: Any) -> None:
    app = make(redact=["ks"])
    post(app, b' [ {"a" : 1.50, "ks"\t: "x" } ,\n{"ks":null,"t":"\xc3\xa9\\u00e9"}]  ')
    (request,) = stored(app.settings)
    assert request.body == b' [ {"a" : 1.50, "ks"\t: "redacted" } ,\n{"ks":null,"t":"\xc3\xa9\\u00e9"}]  '


def test_redaction_in_a_form_keeps_every_other_byte(make: Any) -> None:
    app = make(redact=["ks"])
    for encoding in ("", "identity"):
        post(app, b"\xef\xbb\xbf \n a=1&ks=x&b=%zz \r\n", "text/plain", HTTP_CONTENT_ENCODING=encoding)
    for request, kept in zip(stored(app.settings), (None, b"identity"), strict=True):
        assert (request.body, request.content_encoding) == (b"\xef\xbb\xbf \n a=1&ks=redacted&b=%zz \r\n", kept)


def test_a_body_that_compresses_worse_without_its_secrets_is_never_refused(make: Any) -> None:
    app = make(redact=["ks"])
    for fill in (os.urandom(11 << 10).hex(), os.urandom(16 << 10).hex()):
        body = json.dumps([{"ks": SECRET, "n": number, "x": fill[number::99]} for number in range(99)]).encode()
        sent = gzip.compress(body, 9)
        assert len(sent) <= app.settings.max_body
        post(app, sent, HTTP_CONTENT_ENCODING="gzip")
    for request in stored(app.settings):
        found = read_events(request)
        assert found.problem is None or request.body == b"redacted"


@pytest.mark.parametrize("pair", [b'"ks":1', b"ks=1"])
def test_a_body_of_many_short_secrets_is_stored_though_it_grows(make: Any, pair: bytes) -> None:
    app = make(redact=["ks"])
    count = app.settings.max_body // (len(pair) + 1)
    body = b"{" + b",".join([pair] * (count - 1)) + b"}" if pair[:1] == b'"' else b"&".join([pair] * count)
    post(app, body, QUERY_STRING="ks=1&" * 1600, HTTP_REFERER="?" + "ks=1&" * 1600, HTTP_USER_AGENT="x" * 8000)
    (request,) = stored(app.settings)
    found = read_events(request)
    assert found.problem is None
    values = [value for event in found.parameters for name, value in event if name == b"ks"]
    assert len(values) >= count - 1
    assert set(values) == {b"redacted"}


def test_every_referer_of_several_is_redacted(make: Any) -> None:
    app = make(redact=["ks"])
    for joined in (f"https://a.example/?x=1, https://b.example/?ks={SECRET}", f"https://a.example/#ks={SECRET}"):
        call(app, HTTP_REFERER=joined)
    assert [request.referer for request in stored(app.settings)] == [
        b"https://a.example/?x=1, https://b.example/?ks=redacted",
        b"https://a.example/#ks=redacted",
    ]


@pytest.mark.parametrize("server", ["meinheld", "granian"])
def test_a_header_that_is_sent_twice_is_redacted_by_the_real_server(tmp_path: Path, server: str) -> None:
    with serving(tmp_path / "data", "--redact", "ks", "--server", server) as running:
        headers = ["Referer: https://a.example/?x=1", f"Referer: https://b.example/?ks={SECRET}"]
        assert b" 200 " in running.get(f"/collect?a=1;KS={SECRET}", *headers)
        (event,) = cat(running.data)
    assert SECRET not in json.dumps(event)
    assert event["query"] == "a=1;KS=redacted"


def test_a_body_too_costly_to_redact_while_a_player_waits_is_not_kept(make: Any) -> None:
    app = make(redact=["ks"])
    limit = app.settings.max_body

    def padded(size: int) -> bytes:
        return b'{"a":"' + b"x" * (size - 8) + b'"}'

    kept = [
        gzip.compress(padded(limit)),  # as much as may come uncompressed
        gzip.compress(b"[" + b"{}," * (limit // 64) + b"{}]"),
    ]
    for body in kept:
        post(app, body, HTTP_CONTENT_ENCODING="gzip")
    assert [request.body for request in stored(app.settings)] == kept
    costly = [
        gzip.compress(padded(limit + 1)),
        gzip.compress(os.urandom(limit // 4)),
        empty_blocks(limit // 32),
        gzip.compress(empty_blocks(limit // 32)),
    ]
    assert gzip.decompress(costly[2]) == b""
    for body in costly:
        assert len(body) <= limit
        post(app, body, HTTP_CONTENT_ENCODING="gzip, gzip" if body is costly[3] else "gzip")
    for request in stored(app.settings)[len(kept) :]:
        assert request.body == b"redacted"
        assert read_events(request).problem
    post(app, b"[" + b'{"a":1},' * (limit // 64 + 1) + b'{"ks":"' + SECRET.encode() + b'"}]')
    beyond = stored(app.settings)[-1]
    assert beyond.body == b'{"a":1}\n' * (limit // 64 + 1) + b"{redacted}"


def test_bodies_that_are_not_stored_whole_are_counted(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = make(redact=["ks"])
    for body in (b'{"ks": "torn', b"no form", b'{"a":1}', b"{}{"):
        post(app, body)
    app.close()
    assert "bodies that could not be read for redaction" in caplog.text
    assert "2, 3 since the start" in caplog.text


def test_the_work_on_a_hostile_body_is_bounded_by_that_on_an_honest_one() -> None:
    """Work is counted in bytes decompressed, read and compressed again. `python -m benchmarks redact` measures time."""
    limit = 1 << 20
    seen: list[int] = []

    class Counting(Redactor):
        def json(self, text: bytes, start: int, end: int) -> bytes:
            seen.append(end - start)
            return super().json(text, start, end)

        def query(self, text: bytes) -> bytes:
            seen.append(len(text))
            return super().query(text)

    def work(body: bytes, encoding: str | None) -> int:
        seen.clear()
        redact_body(body, "application/json", encoding, Counting(["ks"], b"redacted"), limit)
        return sum(seen)

    honest = b"[" + b",".join([b'{"ks":"%b","a":%d}' % (SECRET.encode(), n) for n in range(limit // 50)]) + b"]"
    assert work(honest, None) <= limit
    for unit in (b'{"ks":1}\n', b"[]\n", b'{"a":' * 60 + b"1" + b"}" * 60 + b"\n", b"{},"):
        for size in (limit, 4 * limit, 16 * limit):
            hostile = gzip.compress((unit * (size // len(unit)))[:size])
            assert work(hostile, "gzip") <= limit
            assert work(gzip.compress(hostile), "gzip, gzip") <= limit


def test_a_body_without_secrets_stays_as_it_was_sent(make: Any) -> None:
    app = make(redact=["ks"])
    sent = gzip.compress(json.dumps({"a": "ks"}).encode(), compresslevel=1)
    post(app, sent, HTTP_CONTENT_ENCODING="gzip")
    (request,) = stored(app.settings)
    assert (request.body, request.content_encoding) == (sent, b"gzip")


def test_no_secret_and_no_address_is_anywhere_on_the_disk(tmp_path: Path) -> None:
    data = tmp_path / "data"
    options = ["--redact", "ks", "--anonymize-ip", "hmac", "--trusted-proxy", "127.0.0.0/8", "--workers", "2"]
    with serving(data, *options) as server:
        for number in range(20):
            headers = [f"X-Forwarded-For: {FOUR}", f"Referer: https://a.example/?ks={SECRET}"]
            assert b" 200 " in server.get(f"/collect?n={number}&ks={SECRET}", *headers)
        events = cat(data)
        assert len({event["address_token"] for event in events}) == 1
        for _ in range(2):  # while the journal holds them, and sealed
            for path in data.rglob("*"):
                content = path.read_bytes() if path.is_file() else b""
                assert SECRET.encode() not in content, path
                assert FOUR.encode() not in content, path
                assert path.suffix != ".journal" or ip_address(FOUR).packed not in content
            assert server.stop() == 0
            assert server.stop() == 0
    assert SECRET not in server.log.read_text()
    assert [event["params"]["ks"] for event in cat(data)] == ["redacted"] * 20


PRIVATE = 'redact = ["ks"]\nanonymize_ip = "drop"\nkeepalive = 1\n'
LOST: dict[str, Callable[[Path], object]] = {
    "the file is missing": Path.unlink,
    "it is empty": lambda path: path.write_text(""),
    "it is a link to nothing": lambda path: link(path, "gone.toml"),
    "it is a device": lambda path: link(path, "/dev/null"),
    "it ends early": lambda path: path.write_text(PRIVATE[: PRIVATE.index("anonymize_ip")]),
    "its first line is lost": lambda path: path.write_text(PRIVATE[PRIVATE.index("anonymize_ip") :]),
    "it is not TOML": lambda path: path.write_text(PRIVATE[:9]),
    "it is binary": lambda path: path.write_bytes(bytes(100)),
}


def link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def put(path: Path, content: str) -> None:
    """Writes a regular file in place of whatever is there."""
    path.unlink(missing_ok=True)
    path.write_text(content)


@pytest.mark.parametrize("accident", LOST)
def test_settings_that_an_accident_left_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accident: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Path("kanalony.toml")
    put(config, PRIVATE)
    read = SettingsReader()
    before = read()
    LOST[accident](config)
    with pytest.raises(UsageError):
        describe_reload(before, read())
    put(config, PRIVATE)
    assert describe_reload(before, read()) == ([], [])


def test_a_reload_never_drops_privacy_by_accident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "kanalony.toml"
    put(config, PRIVATE)
    with serving(tmp_path / "data") as server:
        for refused, accident in enumerate(("the file is missing", "it is empty", "it ends early"), 1):
            LOST[accident](config)
            server.process.send_signal(signal.SIGHUP)
            server.wait_for(lambda: server.log.read_text().count("settings not reloaded") == refused)  # noqa: B023
            put(config, PRIVATE)
        assert b" 200 " in server.get(f"/collect?ks={SECRET}")
        (event,) = cat(server.data)
        assert (event["params"]["ks"], event["remote_addr"]) == ("redacted", None)

        put(config, 'redact = []\nanonymize_ip = "no"\nkeepalive = 2\nport = 1\n')
        server.process.send_signal(signal.SIGHUP)

        def is_in_clear() -> bool:
            """Whether an event is stored whole: workers from before the reload may still answer."""
            assert b" 200 " in server.get(f"/collect?ks={SECRET}")
            return any(
                (event["params"]["ks"], event["remote_addr"]) == (SECRET, "127.0.0.1") for event in cat(server.data)
            )

        server.wait_for(is_in_clear, 60)
        log = server.log.read_text()
    assert "WARNING reloaded, redact: ks → none" in log
    assert "WARNING reloaded, anonymize_ip: drop → no" in log
    assert "INFO reloaded, keepalive: 1 → 2" in log
    assert "INFO reloaded, port: 0 → 1, from the next start on" not in log, "the command line wins"


def test_granian_goes_on_with_the_settings_of_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "kanalony.toml"
    put(config, PRIVATE)
    with serving(tmp_path / "data", "--server", "granian") as server:
        for content in ("", 'redact = []\nanonymize_ip = "no"\n'):
            before = server.workers()
            config.write_text(content)
            server.process.send_signal(signal.SIGHUP)
            server.wait_for(lambda: server.workers() and set(server.workers()).isdisjoint(before))  # noqa: B023
            server.wait_for(server.answers)
            assert b" 200 " in server.get(f"/collect?ks={SECRET}")
        assert [event["params"]["ks"] for event in cat(server.data)] == ["redacted"] * 2


def test_a_worker_leaves_no_core_dump_while_something_is_private(tmp_path: Path) -> None:
    code = """import ctypes, resource, sys; from pathlib import Path
from kanalony.collector.app import create_app; from kanalony.settings.serving import ServeSettings
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
before = resource.getrlimit(resource.RLIMIT_CORE)[0]
create_app(ServeSettings(data=Path(sys.argv[1]), journal_blocks=2, **eval(sys.argv[2]))).close()
wanted = before if sys.argv[2] == "{}" else 0
print(resource.getrlimit(resource.RLIMIT_CORE)[0] == wanted, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"""
    for options in {}, {"redact": ["ks"]}, {"anonymize_ip": "truncate"}:
        command = [sys.executable, "-c", code, str(tmp_path / "data"), repr(options)]
        limit, dumpable = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert (limit, dumpable) == ("True", "0" if options else "1")


@pytest.mark.parametrize("server", ["meinheld", "granian"])
def test_the_limit_of_core_dumps_is_zero_in_every_serving_process(tmp_path: Path, server: str) -> None:
    with serving(tmp_path / "data", "--redact", "ks", "--server", server) as running:
        for pid in running.workers():
            limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
            (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
            assert core[4] == "0"


def test_views_are_shed_only_if_configured_and_only_while_the_journal_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for shed in (True, False):
        app = create_app(ServeSettings(data=tmp_path / str(shed), shed_views=shed, **{**SMALL, "journal_blocks": 8}))
        enabled = []
        with monkeypatch.context() as patch:
            patch.setattr("kanalony.segments.store.SegmentWriter", refuse)
            for _ in range(400):
                status, _, body = call(app, QUERY_STRING="format=json&x=" + "x" * 3000)
                if status == "200 OK":
                    enabled.append(json.loads(body)["viewEventsEnabled"])
        assert enabled == [True] * enabled.count(True) + [False] * enabled.count(False)
        assert enabled.count(True) > 200
        assert (enabled.count(False) > 20) == shed
        app.close()
        assert len(stored(app.settings)) == len(enabled)
        # The disk has come back.
        if shed:
            assert f"nearly full: {enabled.count(False) - 1}, {enabled.count(False)} since the start" in caplog.text
