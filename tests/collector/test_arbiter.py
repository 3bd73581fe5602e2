"""The workers of a collector under meinheld are replaced in time and without loss, whatever fails."""

import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.abuse import Watch
from harness.load import Load, cat, keys_of
from harness.server import Server, serving, started
from kanalony.segments.directory import DataDirectory
from tests.files import fields, new_journal
from tests.tools import mounted

JOURNAL_BYTES = 4096 + 4 * ((1 << 20) + (96 << 10))  # of `serving`, which asks for four blocks

FAILING = """
import os, sys, tempfile
from pathlib import Path
from kanalony.cli import main

def failing(real, switch, hits):
    def call(*arguments, **options):
        if switch.exists():
            hits.write_text(hits.read_text() + "x")
            raise OSError(int(switch.read_text()), "it was made to fail")
        return real(*arguments, **options)
    return call

owner, name, switch, hits, *sys.argv[1:] = sys.argv[1:]
owner = sys.modules[owner]
setattr(owner, name, failing(getattr(owner, name), Path(switch), Path(hits)))
main()
"""


class Fault:
    """A function of the arbiter that fails while `errno` is set. `hits` counts the failures."""

    def __init__(self, directory: Path, function: str) -> None:
        self._switch = directory / "switch"
        self._hits = directory / "hits"
        self._hits.write_text("")
        self.command = [sys.executable, "-c", FAILING, *function.split("."), str(self._switch), str(self._hits)]

    def begin(self, errno: int) -> None:
        whole = self._switch.with_suffix(".new")
        whole.write_text(str(errno))
        whole.rename(self._switch)

    def end(self) -> None:
        self._switch.unlink()

    @property
    def hits(self) -> int:
        return len(self._hits.read_text())


@contextlib.contextmanager
def serving_with(fault: Fault, data: Path, *options: str) -> Iterator[Server]:
    command = [*fault.command, "serve", "--port", "0", "--journal-blocks", "4", "--data", str(data), *options]
    log = data.parent / "log"
    with log.open("wb") as output, started(command, stdout=output, stderr=output) as process:
        yield Server(process, data, log, 0)


def umask_of(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    (umask,) = [line for line in status.splitlines() if line.startswith("Umask:")]
    return umask


@pytest.mark.parametrize(
    ("function", "errno"),
    [("os.fork", 11), pytest.param("os.fork", 12, marks=pytest.mark.slow), ("tempfile.mkstemp", 28)],
)
def test_a_worker_that_cannot_be_started_is_tried_again(tmp_path: Path, function: str, errno: int) -> None:
    fault = Fault(tmp_path, function)
    with serving_with(fault, tmp_path / "data") as server:
        (victim,) = server.workers()
        umask = umask_of(victim)
        fault.begin(errno)
        os.kill(victim, signal.SIGKILL)
        server.wait_for(lambda: fault.hits >= 3)
        fault.end()
        server.wait_for(server.answers)
        assert [umask_of(pid) for pid in server.workers()] == [umask]
        assert server.log.read_text().count("cannot start a worker") == 1
        assert "Allow more processes" in server.log.read_text()
        assert server.stop() == 0


def test_a_worker_that_fails_while_it_starts_does_not_end_the_others(tmp_path: Path) -> None:
    """After an error in its own part of a worker's start, gunicorn would stop everything."""
    fault = Fault(tmp_path, "os.pipe")
    with serving_with(fault, tmp_path / "data") as server:
        (victim,) = server.workers()
        fault.begin(24)
        os.kill(victim, signal.SIGKILL)
        server.wait_for(lambda: fault.hits >= 3)
        fault.end()
        server.wait_for(server.answers)
        assert "worker not started: [Errno 24] it was made to fail" in server.log.read_text()
        assert server.stop() == 0


def test_a_reload_that_cannot_start_workers_leaves_the_old_ones_serving_and_is_done_later(tmp_path: Path) -> None:
    fault = Fault(tmp_path, "os.fork")
    with serving_with(fault, tmp_path / "data") as server:
        old = set(server.workers())
        fault.begin(11)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: fault.hits >= 3)
        assert set(server.workers()) == old
        assert b" 200 " in server.get("/collect?sessionId=still")
        fault.end()
        server.wait_for(lambda: server.workers() and not old & set(server.workers()))
        server.wait_for(server.answers)
        assert server.stop() == 0


def test_a_worker_that_has_grown_is_replaced_and_no_request_is_lost(tmp_path: Path) -> None:
    config = tmp_path / "kanalony.toml"
    config.write_text('worker_memory = "16MiB"\n')
    data = tmp_path / "data"
    with serving(data, "--config", str(config)) as server:
        before = set(server.workers())
        load = Load(server, limit=1_000_000)
        sent = 0
        end = time.monotonic() + 120
        while before & set(server.workers()) and time.monotonic() < end:
            with contextlib.suppress(ConnectionError):  # it is refused before it is read to its end
                server.get(b"/collect?" + b"x" * 9_000)
            sent += 1
        load.stop()
        assert not before & set(server.workers()), f"not replaced after {sent} requests that leak"
        assert "has grown by" in server.log.read_text()
        assert load.errors == {}
        assert load.acked == load.sent
        assert server.stop() == 0
    assert keys_of(cat(data)) == dict.fromkeys(load.sent, 1)


def open_files(pid: int) -> list[str]:
    """Returns the targets of a process's file descriptors; none when it has ended."""
    found = []
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(str(descriptor.readlink()))
    return found


def worker_behind(server: Server, connection: socket.socket) -> int | None:
    """Returns the worker that has accepted a connection."""
    ports = f":{server.port:04X}", f":{connection.getsockname()[1]:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(ports[0]) and fields[2].endswith(ports[1]):
            return next((pid for pid in server.workers() if f"socket:[{fields[9]}]" in open_files(pid)), None)
    return None


def answer_to(connection: socket.socket) -> bytes:
    connection.sendall(b"GET /collect?sessionId=one HTTP/1.1\r\nHost: t\r\n\r\n")
    return connection.recv(4096)


def test_a_connection_that_comes_while_a_worker_retires_is_answered_though_no_other_comes(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server, server.connect() as idle, server.connect() as probe:
        for connection in (idle, probe):  # which keep the worker for as long as `keepalive`
            assert b" 200 " in answer_to(connection)
        server.process.send_signal(signal.SIGHUP)
        is_retiring = False
        after = 0
        while after < 3:
            with server.connect(8) as connection:
                assert b" 200 " in answer_to(connection)
            is_retiring = is_retiring or b"Connection: close" in answer_to(probe)
            after += is_retiring
        assert server.stop() == 0


@pytest.mark.slow
def test_workers_that_retire_are_stopped_when_there_are_many(tmp_path: Path) -> None:
    """An idle connection keeps each of them, for as long as `keepalive`."""
    with serving(tmp_path / "data") as server, contextlib.ExitStack() as stack:
        kept: list[int] = []

        def keep_another() -> bool:
            idle = stack.enter_context(server.connect())
            idle.sendall(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
            assert idle.recv(4096)
            worker = worker_behind(server, idle)
            if worker is None or worker in kept:
                return False
            kept.append(worker)
            return True

        for number in range(5):
            if number:
                server.process.send_signal(signal.SIGHUP)
            server.wait_for(keep_another)
        server.wait_for(lambda: len(server.workers()) == 3)
        assert set(server.workers()) == set(kept[-3:])
        assert server.stop() == 0


def has_journal(pid: int) -> bool:
    return any(name.endswith(".journal") for name in open_files(pid))


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_workers_that_die_fast_fill_no_disk(tmp_path: Path, workers: int) -> None:
    """Each worker is killed as soon as it has a journal."""
    with serving(tmp_path / "data", "--workers", str(workers)) as server:
        killed: set[int] = set()
        end = time.monotonic() + 300
        with Watch(server) as watch:
            while len(killed) < 12 and time.monotonic() < end:
                for pid in filter(has_journal, set(server.workers()) - killed):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
                time.sleep(0.01)
        assert len(killed) >= 12
        assert watch.journal_bytes <= (workers + 2) * JOURNAL_BYTES
        server.wait_for(server.answers)
        server.wait_for(lambda: len(list((server.data / "journal").iterdir())) == workers)
        assert server.stop() == 0


def fill_with_dead_journals(data: DataDirectory) -> int:
    """Creates journals of dead workers, each with an event, until the disk is full. Returns how many."""
    count = 0
    with contextlib.suppress(OSError):
        while True:
            journal = new_journal(data, block_size=(1 << 20) + (96 << 10))
            assert journal.blocks.append(*fields(0, b"sessionId=dead-%d" % count))
            journal._file.close()  # the lock goes with it
            count += 1
    return count


def test_dead_workers_journals_keep_nobody_from_starting_on_a_small_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 7 * JOURNAL_BYTES // 2) as disk:
        data = DataDirectory.writable(disk / "data")
        assert fill_with_dead_journals(data) == 3
        with serving(data.root) as server:
            assert b" 200 " in server.get("/collect?sessionId=first")
            server.wait_for(lambda: shutil.disk_usage(disk).free > 2 * JOURNAL_BYTES)
            (victim,) = server.workers()
            assert fill_with_dead_journals(data) >= 2
            os.kill(victim, signal.SIGKILL)
            server.wait_for(lambda: victim not in server.workers() and server.answers())
            assert b" 200 " in server.get("/collect?sessionId=second")
            assert server.stop() == 0
        found = keys_of(cat(data.root))
        assert {"dead-0", "dead-1", "dead-2", "first", "second"} <= set(found)
        assert found["dead-0"] == 2
