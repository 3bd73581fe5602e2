"""Run the real collector in a subprocess on 127.0.0.1, talk to it, kill it; every wait is bounded. Tests use it too."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

KANALONY = [sys.executable, "-m", "kanalony"]


def run(*arguments: str | Path, cwd: Path | None = None, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    """A kanalony command, run to its end."""
    return subprocess.run([*KANALONY, *map(str, arguments)], cwd=cwd, timeout=timeout, capture_output=True, text=True)


@contextlib.contextmanager
def started(command: list[str], **options: Any) -> "Iterator[subprocess.Popen[Any]]":
    """A process in a session of its own, with options of Popen. It is killed at the end with all that it started,
    whatever happens: also when Ctrl-C comes while it starts.
    """
    with contextlib.ExitStack() as stack:
        with _interrupt_held():  # Popen would forget a process it has started but not yet heard from
            process = stack.enter_context(subprocess.Popen(command, start_new_session=True, **options))
            stack.callback(kill, process)
        yield process


@contextlib.contextmanager
def _interrupt_held() -> Iterator[None]:
    """Ctrl-C in here takes effect at the end of it."""
    signals: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: signals.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if signals:
            signal.raise_signal(signal.SIGINT)


def kill(process: "subprocess.Popen[Any]") -> None:
    """Kill -9 of a process of `started` and of all that it started, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)


class Server:
    """`kanalony serve` that was started on a data directory and writes to a log, from a byte of it on."""

    def __init__(self, process: "subprocess.Popen[Any]", data: Path, log: Path, start: int) -> None:
        """Returns when it answers. Raises AssertionError when it does not."""
        self.process = process
        self.data = data
        self.log = log
        ready = self.wait_for(
            lambda: re.search(rb"collecting on http://(.*):(\d+) into", self.log.read_bytes()[start:])
        )
        self.host = ready[1].decode().strip("[]")
        self.port = int(ready[2])
        self.wait_for(self.answers)

    def wait_for(self, condition: Any, seconds: float = 60) -> Any:
        """What a condition returns, as soon as that is true. Raises AssertionError when the server ends, or after so
        many seconds: far more than it takes, also where every core is busy.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = condition()
            if found:
                return found
            assert self.process.poll() is None, f"the server ended: {self.log.read_text()}"
            time.sleep(0.02)
        raise AssertionError(f"the server was not ready in {seconds} s: {self.log.read_text()}")

    def answers(self) -> bool:
        """Whether it answers something that is not an event."""
        try:
            return b" 404 " in self.exchange(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n", timeout=1)
        except OSError:
            return False

    def connect(self, timeout: float = 10) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=timeout)

    def exchange(self, request: bytes, timeout: float = 10) -> bytes:
        """Send bytes on a connection of their own, and the answer's first piece."""
        with self.connect(timeout) as connection:
            connection.sendall(request)
            return connection.recv(65536)

    def get(self, target: bytes | str, *headers: str) -> bytes:
        """GET a target exactly as given; the answer, headers and body."""
        target = target if isinstance(target, bytes) else target.encode()
        lines = "".join(f"{header}\r\n" for header in headers).encode()
        return self.exchange(b"GET " + target + b" HTTP/1.1\r\nHost: t\r\n" + lines + b"\r\n")

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def worker(self) -> int:
        """Process id of the only worker, as soon as there is exactly one: a dead one is listed until it is reaped, and
        its successor is not there at once.
        """
        return self.successors((), 1)[0]

    def successors(self, of: Collection[int], count: int = 1) -> list[int]:
        """Process ids of the workers, as soon as there are `count` and none of the old ones is left."""
        found: list[int] = []

        def are_there() -> bool:
            found[:] = self.workers()
            return len(found) == count and not set(of) & set(found)

        self.wait_for(are_there)
        return found

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        """Kill -9 of everything at once."""
        kill(self.process)


@contextlib.contextmanager
def serving(data: Path, *arguments: str) -> Iterator[Server]:
    """A collector that is killed at the end whatever happens."""
    command = [*KANALONY, "serve", "--port", "0", "--journal-blocks", "4", *arguments, "--data", str(data)]
    path = data.parent / f"{data.name}.log"
    with path.open("ab") as log:
        start = log.tell()  # before the process writes: it shares the position
        with started(command, stderr=log, stdout=log) as process:
            yield Server(process, data, path, start)
