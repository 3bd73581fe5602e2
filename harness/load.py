"""A load that records which events were acknowledged, and the events read back."""

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from harness.server import Server, run


def cat(data: Path, *paths: Path) -> list[dict[str, Any]]:
    """The events that `kanalony cat` prints, without damage."""
    done = run("cat", *paths, "--data", data)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


class Load:
    """Requests over keep-alive connections until `stop`, or `limit` per connection. `acked` are the keys answered with
    200, `sent` all that were sent: a request whose answer never came may or may not be stored.
    """

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
        """Wait until so many events have been acknowledged."""
        self._server.wait_for(lambda: len(self.acked) >= acknowledged)

    def stop(self) -> None:
        """Send no more, and wait for what is on its way."""
        self._stopping.set()
        self.wait()

    def wait(self, seconds: float = 120) -> None:
        """Wait until every connection has sent its limit."""
        for thread in self._threads:
            thread.join(seconds)
            assert not thread.is_alive()


def keys_of(events: list[dict[str, Any]]) -> Counter[str]:
    """How often each key of a Load is among the events."""
    return Counter(event["params"]["sessionId"] for event in events if "sessionId" in event["params"])
