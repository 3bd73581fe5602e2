"""Run the real collector in a subprocess on 127.0.0.1, talk to it, kill it; every wait is bounded."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KANALONY = [sys.executable, "-m", "kanalony"]


def run(*arguments: str | Path, cwd: Path | None = None, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
    """A kanalony command, run to its end."""
    return subprocess.run([*KANALONY, *map(str, arguments)], cwd=cwd, timeout=timeout, capture_output=True, text=True)


def cat(data: Path, *paths: Path) -> list[dict[str, Any]]:
    """The events that `kanalony cat` prints, without damage."""
    done = run("cat", *paths, "--data", data)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


class Server:
    """`kanalony serve` in a process group of its own."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.data = data
        command = [*KANALONY, "serve", "--port", "0", "--journal-blocks", "4", *arguments, "--data", str(data)]
        self.log = data.parent / f"{data.name}.log"
        with self.log.open("ab") as log:
            start = log.tell()
            self.process = subprocess.Popen(command, stderr=log, stdout=log, start_new_session=True)
        ready = self._await(lambda: re.search(rb"collecting on http://(.*):(\d+) into", self.log.read_bytes()[start:]))
        self.host = ready[1].decode().strip("[]")
        self.port = int(ready[2])
        self._await(self._answers)

    def _await(self, condition: Any, seconds: float = 20) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = condition()
            if found:
                return found
            assert self.process.poll() is None, f"the server ended: {self.log.read_text()}"
            time.sleep(0.02)
        raise AssertionError(f"the server was not ready in {seconds} s: {self.log.read_text()}")

    def _answers(self) -> bool:
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

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def kill(self) -> None:
        """kill -9 of everything at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=10)


@contextlib.contextmanager
def serving(data: Path, *arguments: str) -> Iterator[Server]:
    """A collector that is killed at the end whatever happens."""
    server = Server(data, *arguments)
    try:
        yield server
    finally:
        server.kill()


class Load:
    """Requests over keep-alive connections until `stop`, or `limit` per connection. `acked` are the keys answered with
    200, `sent` all that were sent: a request whose answer never came may or may not be stored."""

    def __init__(self, server: Server, *, connections: int = 4, limit: int = 3000, prefix: str = "k") -> None:
        self.acked: set[str] = set()
        self.sent: set[str] = set()
        self.errors: Counter[str] = Counter()
        self._server = server
        self._limit = limit
        self._prefix = prefix
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(connections)]
        for thread in self._threads:
            thread.start()

    def _send(self, connection_number: int) -> None:
        number = 0
        while not self._stopping.is_set() and number < self._limit:
            try:
                with self._server.connect(5) as connection:
                    while not self._stopping.is_set() and number < self._limit:
                        key = f"{self._prefix}-{connection_number}-{number}"
                        number += 1
                        self.sent.add(key)
                        query = f"eventType=99&sessionId={key}&pad={'x' * (number % 400)}"
                        connection.sendall(f"GET /collect?{query} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
                        answer = connection.recv(4096)
                        if answer.startswith(b"HTTP/1.1 200"):
                            self.acked.add(key)
                        elif answer:
                            self.errors[answer[:12].decode("latin-1")] += 1
                        if not answer or b"Connection: close" in answer:
                            break
            except OSError as error:
                self.errors[type(error).__name__] += 1
                self._stopping.wait(0.01)

    def stop(self) -> None:
        """Send no more, and wait for what is on its way."""
        self._stopping.set()
        self.wait()

    def wait(self, seconds: float = 60) -> None:
        """Wait until every connection has sent its limit."""
        for thread in self._threads:
            thread.join(seconds)
            assert not thread.is_alive()


def keys_of(events: list[dict[str, Any]]) -> Counter[str]:
    """How often each key of a Load is among the events."""
    return Counter(event["params"]["sessionId"] for event in events if "sessionId" in event["params"])
