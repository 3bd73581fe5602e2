"""Runs the real collector in a subprocess on 127.0.0.1, talks to it and kills it. Every wait is bounded."""

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
    """Runs a kanalony command to its end.

    Args:
        arguments: The command and its arguments.
        cwd: Its working directory.
        timeout: Seconds.

    Raises:
        subprocess.TimeoutExpired: The command took longer.
    """
    return subprocess.run([*KANALONY, *map(str, arguments)], cwd=cwd, timeout=timeout, capture_output=True, text=True)


@contextlib.contextmanager
def started(command: list[str], **options: Any) -> "Iterator[subprocess.Popen[Any]]":
    """Starts a process in a session of its own, and kills the whole session at the end of the `with`.

    That holds whatever happens, also when Ctrl-C arrives while the process starts.

    Args:
        command: The command and its arguments.
        options: Options of Popen.
    """
    with contextlib.ExitStack() as stack:
        with _interrupt_held():  # an interrupted Popen would lose a process that it has already forked
            process = stack.enter_context(subprocess.Popen(command, start_new_session=True, **options))
            stack.callback(kill, process)
        yield process


@contextlib.contextmanager
def _interrupt_held() -> Iterator[None]:
    """Delays Ctrl-C until the end of the `with`."""
    signals: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: signals.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if signals:
            signal.raise_signal(signal.SIGINT)


def kill(process: "subprocess.Popen[Any]") -> None:
    """Kills a process of `started` and all its descendants at once with SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)


class Server:
    """A running `kanalony serve`.

    Attributes:
        process: The parent of the workers.
        data: Its data directory.
        log: The file that its stdout and stderr go to.
        host: Address that it listens on.
        port: Port that it listens on.
    """

    def __init__(self, process: "subprocess.Popen[Any]", data: Path, log: Path, start: int) -> None:
        """Waits until the server answers.

        Args:
            process: The server's process.
            data: Its data directory.
            log: The file that it logs to.
            start: Bytes of the log that are older than this process.

        Raises:
            AssertionError: The server ended, or does not answer in time.
        """
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
        """Waits until a condition is true, and returns its value.

        Args:
            condition: A function without arguments; its result counts as true or false.
            seconds: The limit: far more than any condition takes, also where every core is busy.

        Raises:
            AssertionError: The server ended, or the limit passed.
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
        """Whether the server answers a request that is no event."""
        try:
            return b" 404 " in self.exchange(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n", timeout=1)
        except OSError:
            return False

    def connect(self, timeout: float = 30) -> socket.socket:
        """Opens a connection; `timeout` in seconds, also of its reads and writes."""
        return socket.create_connection((self.host, self.port), timeout=timeout)

    def exchange(self, request: bytes, timeout: float = 30) -> bytes:
        """Sends bytes on a connection of their own, and returns the first piece of the answer."""
        with self.connect(timeout) as connection:
            connection.sendall(request)
            return connection.recv(65536)

    def get(self, target: bytes | str, *headers: str) -> bytes:
        """Sends a GET, and returns the answer with its headers.

        Args:
            target: Path and query, sent exactly as they are.
            headers: Header lines without their ends.
        """
        target = target if isinstance(target, bytes) else target.encode()
        lines = "".join(f"{header}\r\n" for header in headers).encode()
        return self.exchange(b"GET " + target + b" HTTP/1.1\r\nHost: t\r\n" + lines + b"\r\n")

    def workers(self) -> list[int]:
        """Returns the process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def worker(self) -> int:
        """Returns the process id of the only worker, as soon as there is exactly one.

        A dead worker is listed until it is reaped, and its successor starts later.
        """
        return self.successors((), 1)[0]

    def successors(self, of: Collection[int], count: int = 1) -> list[int]:
        """Returns the process ids of the workers that replace others, as soon as all others have ended.

        Args:
            of: Process ids of the replaced workers.
            count: Number of workers to wait for.
        """
        found: list[int] = []

        def are_there() -> bool:
            found[:] = self.workers()
            return len(found) == count and not set(of) & set(found)

        self.wait_for(are_there)
        return found

    def stop(self) -> int:
        """Stops the server with SIGTERM, and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        """Kills the server and all its workers at once with SIGKILL."""
        kill(self.process)


@contextlib.contextmanager
def serving(data: Path, *arguments: str) -> Iterator[Server]:
    """Serves a data directory, and kills the server at the end of the `with`.

    Args:
        data: The data directory. The log is written beside it.
        arguments: Further arguments of `kanalony serve`.
    """
    command = [*KANALONY, "serve", "--port", "0", "--journal-blocks", "4", *arguments, "--data", str(data)]
    path = data.parent / f"{data.name}.log"
    with path.open("ab") as log:
        start = log.tell()  # before the process writes: it shares the position
        with started(command, stderr=log, stdout=log) as process:
            yield Server(process, data, path, start)
