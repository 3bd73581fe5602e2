"""The WSGI application without a server: the same responses on both paths, full journals, forks."""

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from kanalony.collector.app import Collector, create_app
from kanalony.core.frames import OTHER_TYPE, parse_header
from kanalony.errors import StorageError, UsageError
from kanalony.segments.check import check_data
from kanalony.segments.directory import DataDirectory
from kanalony.segments.writer import SegmentWriter
from kanalony.settings.loading import load_settings
from kanalony.settings.serving import ServeSettings
from tests.collector.wsgi import SMALL, call, stored


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    return ServeSettings(data=tmp_path / "data", **SMALL)


@pytest.fixture
def app(settings: ServeSettings) -> Iterator[Collector]:
    app = create_app(settings)
    yield app
    app.close()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_fast_path_answers_what_the_general_path_answers(
    app: Collector, settings: ServeSettings, method: str
) -> None:
    request = {"REQUEST_METHOD": method, "QUERY_STRING": "a=1&a=2", "HTTP_USER_AGENT": "x"}
    fast = call(app, **request)
    general = call(app.respond_generally, **request)
    assert fast[0] == general[0] == "200 OK"
    assert fast[1] == general[1]
    assert len(fast[2]) == len(general[2]) == (10 if method == "GET" else 0)
    first, second = stored(settings)
    assert first[3:] == second[3:]


def test_the_application_keeps_to_the_wsgi_standard(app: Collector, settings: ServeSettings) -> None:
    status, _, _ = call(validator(app), REQUEST_METHOD="GET", QUERY_STRING="x=1")
    assert status == "200 OK"
    (event,) = stored(settings)
    assert (event.query, event.address) == (b"x=1", "192.0.2.7")


@pytest.mark.parametrize(
    ("remote", "address"), [("192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::1"), ("", None), ("unix:", None)]
)
def test_addresses_from_other_servers_are_trusted(
    app: Collector, settings: ServeSettings, remote: str, address: str | None
) -> None:
    call(app, REMOTE_ADDR=remote)
    assert [event.address for event in stored(settings)] == [address]


def test_a_body_is_read_to_its_announced_length_and_no_further(app: Collector, settings: ServeSettings) -> None:
    call(app, "/collect", **{"CONTENT_LENGTH": "3", "wsgi.input": io.BytesIO(b"abcdef")})
    assert [event.body for event in stored(settings)] == [b"abc"]


def test_a_full_journal_is_503_with_retry_after_and_nothing_is_half_stored(
    app: Collector, settings: ServeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    query = "x" * 6000
    with monkeypatch.context() as patch:
        patch.setattr("kanalony.segments.store.SegmentWriter", refuse)
        answers = [call(app, QUERY_STRING=query) for _ in range(60)]
    statuses = [status for status, _, _ in answers]
    acknowledged = statuses.count("200 OK")
    assert 0 < acknowledged < 60
    assert statuses == ["200 OK"] * acknowledged + ["503 Service Unavailable"] * (60 - acknowledged)
    _, headers, body = answers[-1]
    assert headers["retry-after"] == "1"
    assert headers["access-control-allow-origin"] == "*"
    assert b"no room" in body
    assert len(stored(settings)) == acknowledged
    # The disk has come back: what was kept is sealed and events are taken again.
    app.close()
    assert len(stored(settings)) == acknowledged
    assert list((settings.data / "journal").iterdir()) == []


def test_an_event_too_large_for_the_journal_is_413(app: Collector, settings: ServeSettings) -> None:
    status, _, body = call(app, QUERY_STRING="x" * (128 << 10))
    assert status == "413 Content Too Large"
    assert b"a request of 131,125 bytes exceeds a journal block of 131,072 bytes" in body
    assert stored(settings) == []


def test_nothing_is_acknowledged_after_close(app: Collector, settings: ServeSettings) -> None:
    call(app, QUERY_STRING="n=1")
    app.close()
    assert call(app, QUERY_STRING="n=2")[0] == "503 Service Unavailable"
    assert [event.query for event in stored(settings)] == [b"n=1"]


def test_a_failed_sync_is_503_and_the_event_is_not_known_to_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(ServeSettings(data=tmp_path / "data", ack="synced", **SMALL))

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    app._intake.append = fail
    status, headers, body = call(app)
    assert status == "503 Service Unavailable"
    assert headers["retry-after"] == "1"
    assert b"not known to be stored" in body
    app.close()


def test_verify_counts_events_by_type_however_it_is_spelled_and_wherever_it_stands(
    app: Collector, settings: ServeSettings
) -> None:
    batch = b'[{"eventType": 3}, {"event:eventType": "99"}, {"eventType": [4]}, {}]'
    for query in ("eventType=3", "event:eventType=3", "event%54ype=%33&eventType=5", "a=3", "eventType=x"):
        call(app, QUERY_STRING=query)
    posted: dict[str, Any] = {"CONTENT_LENGTH": str(len(batch)), "wsgi.input": io.BytesIO(batch)}
    call(app, REQUEST_METHOD="POST", **posted)
    app.close()
    check = check_data(DataDirectory.existing(settings.data))
    assert check.damaged == []
    assert (check.requests, check.events) == (6, 9)
    assert check.types == {3: 4, 99: 1, OTHER_TYPE: 4}


def test_a_method_that_is_not_allowed_is_answered_with_those_that_are(app: Collector) -> None:
    for path, allowed in [("/collect", "GET, HEAD, OPTIONS, POST"), ("/robots.txt", "GET, HEAD, OPTIONS")]:
        status, headers, _ = call(app, path, REQUEST_METHOD="PUT")
        assert status == "405 Method Not Allowed"
        assert sorted(headers["allow"].split(", ")) == allowed.split(", ")


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("http://t.example/collect", "GET", "200 OK"),
        ("https://t.example//api_v3/index.php/", "HEAD", "200 OK"),
        ("http://t.example", "GET", "404 Not Found"),
        ("/collect///", "GET", "404 Not Found"),
        ("/collect///", "POST", "404 Not Found"),
        ("/collect", "OPTIONS", "200 OK"),
        ("/collect/", "POST", "200 OK"),
        ("//collect/", "PUT", "405 Method Not Allowed"),
    ],
)
def test_forms_of_a_path_are_answered_alike(app: Collector, path: str, method: str, status: str) -> None:
    assert call(app, path, REQUEST_METHOD=method)[0] == status


def test_a_length_that_is_no_number_is_400(app: Collector, settings: ServeSettings) -> None:
    assert call(app, CONTENT_LENGTH="many")[0] == "400 Bad Request"
    assert stored(settings) == []


def test_a_failed_rename_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServeSettings(data=tmp_path / "data", sync_interval=0.1, segment_age=1, **SMALL)
    app = create_app(settings)
    real = Path.rename
    failed: list[Path] = []

    def rename(self: Path, target: Path) -> Path:
        if len(failed) < 2 and self.suffix == ".lz4":
            failed.append(self)
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    for number in range(300):
        assert call(app, QUERY_STRING=f"n={number}")[0] == "200 OK"
        time.sleep(0.01)
    app.close()
    assert len(failed) == 2
    assert sorted(event.query or b"" for event in stored(settings)) == sorted(b"n=%d" % n for n in range(300))
    assert list((settings.data / "segments" / "open").iterdir()) == []


def test_segments_go_to_the_spool_when_the_data_directory_is_full_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, spool = tmp_path / "data", tmp_path / "spool"
    settings = ServeSettings(data=data, spool=(spool,), sync_interval=0.1, segment_age=1, **SMALL)
    full: set[Path] = set()
    real = SegmentWriter._write

    def write(self: SegmentWriter, *parts: bytes) -> None:
        if any(self.path.is_relative_to(place) for place in full):
            raise OSError(28, "No space left on device")
        real(self, *parts)

    monkeypatch.setattr(SegmentWriter, "_write", write)
    app = create_app(settings)
    sent = 0

    def send_until(place: Path) -> None:
        """Sends events until a segment in that place has been sealed with the last of them."""
        nonlocal sent
        before = set((place / "segments" / "sealed").iterdir())
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert call(app, QUERY_STRING=f"n={sent}")[0] == "200 OK"
            sent += 1
            if set((place / "segments" / "sealed").iterdir()) - before:
                return
            time.sleep(0.02)
        raise AssertionError(f"no segment was sealed in {place}")

    send_until(data)
    full.add(data)
    send_until(spool)
    full.add(spool)
    full.discard(data)
    send_until(data)
    full.clear()
    app.close()
    found = [event.query or b"" for event in stored(settings)]
    assert sorted(found) == sorted(f"n={number}".encode() for number in range(sent))
    assert list((data / "segments" / "open").iterdir()) == []
    assert list((spool / "segments" / "open").iterdir()) == []
    # Without the spool, readers of the data directory raise an error.
    spool.rename(tmp_path / "unmounted")
    with pytest.raises(StorageError, match="spool directory"):
        stored(settings)


@pytest.mark.parametrize("call_name", ["fdatasync", "write", "fsync"])
def test_a_call_to_the_disk_that_fails_now_and_then_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call_name: str
) -> None:
    settings = ServeSettings(data=tmp_path / "data", sync_interval=0.1, segment_age=1, **SMALL)
    app = create_app(settings)
    real = getattr(os, call_name)
    calls = 0
    failed: set[str] = set()
    again: set[str] = set()

    def failing(fd: int, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        target = str(Path(f"/proc/self/fd/{fd}").readlink())
        again.update(failed & {target} if target.endswith(".lz4") else ())
        if calls % 3 == 0 and "/segments/" in target:
            failed.add(target)
            raise OSError(5, "Input/output error")
        return real(fd, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call_name, failing)
        acknowledged = []
        for number in range(200):
            if call(app, QUERY_STRING=f"n={number}")[0] == "200 OK":
                acknowledged.append(b"n=%d" % number)
            time.sleep(0.01)
    app.close()
    assert failed
    assert not again, "a file was written or synced again after that had failed"
    assert sorted(event.query or b"" for event in stored(settings)) == sorted(acknowledged)
    assert list((settings.data / "journal").iterdir()) == []
    assert list((settings.data / "segments" / "open").iterdir()) == []


def test_a_forked_child_gets_a_journal_of_its_own(app: Collector, settings: ServeSettings) -> None:
    call(app, QUERY_STRING="n=parent")
    child = os.fork()
    if child == 0:
        try:
            call(app, QUERY_STRING="n=child")
            call(app, QUERY_STRING="n=child")
            app.close()
        finally:
            os._exit(0)
    call(app, QUERY_STRING="n=parent")
    assert os.waitpid(child, 0)[1] == 0
    found = sorted((event.query or b"", event.sequence) for event in stored(settings))
    assert found == [(b"n=child", 1), (b"n=child", 2), (b"n=parent", 1), (b"n=parent", 2)]


@pytest.mark.parametrize("ack", ["written", "synced"])
def test_each_segment_holds_the_ack_level(tmp_path: Path, ack: str) -> None:
    settings = ServeSettings(data=tmp_path / "data", ack=ack, **SMALL)
    app = create_app(settings)
    assert call(app)[0] == "200 OK"
    app.close()
    (segment,) = (settings.data / "segments" / "sealed").iterdir()
    header = parse_header(segment.read_bytes())
    assert header
    assert header.ack == ["written", "synced"].index(ack)


def test_segments_are_sealed_by_size(tmp_path: Path) -> None:
    settings = ServeSettings(data=tmp_path / "data", segment_size=64 << 10, **{**SMALL, "journal_blocks": 8})
    app = create_app(settings)
    sealed = settings.data / "segments" / "sealed"
    count = 0
    while len(list(sealed.iterdir())) < 3:
        assert count < 5000, "no segment was sealed"
        query = os.urandom(2000).hex()  # does not compress well
        count += call(app, QUERY_STRING=query)[0] == "200 OK"
    app.close()
    assert len(stored(settings)) == count
    assert all(path.stat().st_size < 3 * 64 << 10 for path in sealed.iterdir())


def test_segments_are_sealed_by_age_without_further_traffic(tmp_path: Path) -> None:
    settings = ServeSettings(data=tmp_path / "data", segment_age=1, sync_interval=0.1, **SMALL)
    app = create_app(settings)
    call(app)
    sealed = settings.data / "segments" / "sealed"
    end = time.monotonic() + 60
    while not list(sealed.iterdir()):
        assert time.monotonic() < end, "no segment was sealed"
        time.sleep(0.05)
    assert len(list(sealed.iterdir())) == 1
    app.close()


def test_settings_come_from_the_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kanalony.toml").write_text('data = "from-file"\nhost_id = "from-file"\njournal_blocks = 2\n')
    monkeypatch.setenv("KANALONY_HOST_ID", "from-environment")
    app = create_app()
    app.close()
    assert (app.settings.data, app.settings.host_id) == (Path("from-file"), "from-environment")
    (tmp_path / "kanalony.toml").write_text('path = ["/e", "/f"]\n')
    monkeypatch.setenv("KANALONY_REDACT", "ks, userId")
    monkeypatch.setenv("KANALONY_ALLOW_ORIGIN", '["https://a.example"]')
    settings = load_settings(ServeSettings)
    assert (settings.path, settings.redact, settings.allow_origin) == (
        ("/e", "/f"),
        ("ks", "userId"),
        ("https://a.example",),
    )
    (tmp_path / "kanalony.toml").write_text("journal_block = 2\n")
    with pytest.raises(UsageError, match="unknown option 'journal_block'"):
        create_app()
