"""The collector under granian: the same responses, events and promises."""

import contextlib
import http.client
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.load import Load, cat, keys_of
from harness.server import Server, run, serving
from tests.collector.test_arbiter import Fault, serving_with

GRANIAN = ("--server", "granian")


def test_granian_answers_and_stores_the_same(tmp_path: Path) -> None:
    with serving(tmp_path / "data", *GRANIAN, "--trusted-proxy", "127.0.0.1/32") as server:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        connection.request("GET", "//collect/?a=%20&a=b&q=%zz", headers={"X-Forwarded-For": "203.0.113.9"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.getheader("Content-Type") == "text/plain"
        assert answer.getheader("Access-Control-Allow-Origin") == "*"
        assert answer.getheader("Content-Length") == "10"
        assert answer.read().isdigit()
        connection.close()
        (event,) = cat(server.data)
    assert event["query"] == "a=%20&a=b&q=%zz"
    assert event["remote_addr"] == "203.0.113.9"


@pytest.mark.parametrize("target", [b'/collect?a="', b"/collect?a=<", b"/collect?a=>", b"/collect?a=\xe9\xff"])
def test_a_url_that_granian_refuses_is_not_stored(refusing: Server, target: bytes) -> None:
    assert b" 400 " in refusing.get(target)
    assert b" 200 " in refusing.get("/collect?a=é'^`{}|[]\\")
    assert {event["query"] for event in cat(refusing.data)} == {"a=é'^`{}|[]\\"}


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("granian") / "data", *GRANIAN) as server:
        yield server


def test_ipv4_and_ipv6_clients_keep_their_own_addresses(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "data", *GRANIAN, "--host", "::1") as server,
        serving(tmp_path / "data4", *GRANIAN) as server4,
        socket.create_connection(("::1", server.port), 10) as six,
        socket.create_connection(("127.0.0.1", server4.port), 10, source_address=("127.0.0.9", 0)) as nine,
        socket.create_connection(("127.0.0.1", server4.port), 10, source_address=("127.0.0.8", 0)) as eight,
    ):
        for number in range(3):
            for connection in (six, nine, eight):
                connection.sendall(f"GET /collect?key=both-{number} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
                assert b" 200 " in connection.recv(4096)
        assert [event["remote_addr"] for event in cat(server.data)] == ["::1"] * 3
        assert [event["remote_addr"] for event in cat(server4.data)] == ["127.0.0.9", "127.0.0.8"] * 3


def test_granian_seals_everything_at_sigterm(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data, *GRANIAN, "--workers", "2") as server:
        # granian loses a signal that comes while a worker starts, so each must have stored something.
        server.wait_for(lambda: server.get("/collect?probe") and len({event["worker"] for event in cat(data)}) == 2)
        load = Load(server, limit=300)
        load.wait()
        assert len(load.acked) == 1200
        assert server.stop() == 0
    assert keys_of(cat(data)) == dict.fromkeys(load.sent, 1)
    assert list((data / "journal").iterdir()) == []


def test_granian_replaces_a_worker_also_when_the_settings_file_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kanalony.toml").write_text('path = ["/e"]\n')
    with serving(tmp_path / "data", *GRANIAN) as server:
        assert b" 200 " in server.get("/e?before")
        (tmp_path / "kanalony.toml").write_text("nonsense = [\n")
        worker = server.worker()
        os.kill(worker, signal.SIGKILL)
        server.successors([worker])
        server.wait_for(lambda: answers(server, "/e?after"))
        assert len(cat(server.data)) == 2


@pytest.mark.slow
def test_a_reload_under_granian_refuses_no_connection(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data, *GRANIAN) as server:
        (before,) = server.workers()
        load = Load(server, limit=1_000_000)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: before not in server.workers(), 60)
        load.stop()
        assert load.errors["ConnectionRefusedError"] == 0
        assert server.stop() == 0
    counted = keys_of(cat(data))
    assert load.acked - set(counted) == set()


def test_granian_goes_on_when_a_worker_dies_again_and_again(tmp_path: Path) -> None:
    with serving(tmp_path / "data", *GRANIAN) as server:
        sent = 0
        while server.log.read_text().count("all workers are started again") < 2:
            server.wait_for(lambda n=sent: answers(server, f"/collect?n={n}"))
            sent += 1
            for worker in server.workers():
                with contextlib.suppress(ProcessLookupError):  # it died of the last one
                    os.kill(worker, signal.SIGKILL)
        server.wait_for(lambda: answers(server, f"/collect?n={sent}"))
        assert sent >= 4, "each restart takes two deaths"
        assert server.stop() == 0
        assert {event["params"]["n"] for event in cat(server.data)} == {str(n) for n in range(sent + 1)}


def test_granian_stops_when_the_signal_comes_between_two_starts(tmp_path: Path) -> None:
    with serving(tmp_path / "data", *GRANIAN) as server:
        while "all workers are started again" not in server.log.read_text():
            for worker in server.workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        assert server.stop() == 0


@pytest.mark.slow
def test_granian_starts_workers_again_after_a_while_without_processes(tmp_path: Path) -> None:
    fault = Fault(tmp_path, "os.fork")
    with serving_with(fault, tmp_path / "data", *GRANIAN, "--workers", "2") as server:
        old = server.workers()
        fault.begin(11)
        os.kill(old[0], signal.SIGKILL)
        server.wait_for(lambda: fault.hits >= 2)
        fault.end()
        server.successors(old, 2)
        server.wait_for(lambda: answers(server, "/collect"))
        assert "cannot start a worker: [Errno 11]" in server.log.read_text()
        assert server.stop() == 0


def test_a_granian_worker_that_cannot_start_is_logged_in_a_line_and_tried_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data, *GRANIAN) as server:
        (data / "quarantine").rmdir()
        (data / "quarantine").touch()
        os.kill(server.worker(), signal.SIGKILL)
        server.wait_for(lambda: "worker not started: " in server.log.read_text())
        (data / "quarantine").unlink()
        server.wait_for(lambda: answers(server, "/collect"))
        assert "Traceback" not in server.log.read_text()
        assert server.stop() == 0


def answers(server: Server, target: str) -> bool:
    with contextlib.suppress(OSError):
        return b" 200 " in server.get(target)
    return False


def test_a_200_from_granian_survives_kill_9_under_load(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data, *GRANIAN, "--workers", "2") as server:
        load = Load(server, limit=20_000)
        load.until(2000)
        server.kill()
        load.stop()
    counted = keys_of(cat(data))
    assert load.acked - set(counted) == set()
    assert set(counted.values()) == {1}
    assert run("recover", "--data", data).returncode == 0
    assert keys_of(cat(data)) == counted
