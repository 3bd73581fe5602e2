"""A load that records which events were acknowledged, and the events read back."""

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from harness.server import Server
from kanalony.cli import main


def cat(data: Path, *paths: Path) -> list[dict[str, Any]]:
    """Returns the events that `kanalony cat` prints. Runs the command in this process: a process takes 0.4 s more.

    Args:
        data: The data directory.
        paths: Segments and journals to read instead of all of it.

    Raises:
        AssertionError: A file is damaged.
    """
    done = CliRunner().invoke(main, ["cat", *map(str, paths), "--data", str(data)])
    assert done.exit_code == 0, done.stderr or done.exception
    return [json.loads(line) for line in done.stdout.splitlines()]


class Load:
    """GET requests over keep-alive connections until `stop`, each with a key of its own.

    A request whose answer never arrived may be stored or not: it is in `sent` and not in `acked`.

    Attributes:
        acked: Keys answered with 200.
        sent: All keys that were sent.
        errors: Other answers and exceptions, counted.
    """

    def __init__(self, server: Server, *, connections: int = 4, limit: int = 3000, prefix: str = "k") -> None:
        """Starts sending.

        Args:
            server: The server to load.
            connections: Connections at a time, each with a thread.
            limit: Requests per connection after which it stops by itself.
            prefix: Start of every key, to tell loads on one data directory apart.
        """
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
                with self._server.connect(30) as connection:
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

    def until(self, acknowledged: int) -> None:
        """Waits until this many events have been acknowledged."""
        self._server.wait_for(lambda: len(self.acked) >= acknowledged)

    def stop(self) -> None:
        """Sends nothing more, and waits for answers that are due."""
        self._stopping.set()
        self.wait()

    def wait(self, seconds: float = 120) -> None:
        """Waits until every connection has sent its limit.

        Raises:
            AssertionError: A connection has not finished after `seconds`.
        """
        for thread in self._threads:
            thread.join(seconds)
            assert not thread.is_alive()


def keys_of(events: list[dict[str, Any]]) -> Counter[str]:
    """Counts each key of a `Load` among events."""
    return Counter(event["params"]["sessionId"] for event in events if "sessionId" in event["params"])
