"""Sends simulated events as players do: over keep-alive connections, without retries. Counts acknowledged events."""

import asyncio
import contextlib
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import IO
from urllib.parse import urlsplit

from kanalony.errors import UsageError
from kanalony.paths import COLLECT_PATH
from kanalony.simulate.viewers import SimulatedEvent, simulate

_MAX_CONNECTIONS = 64
_RESPONSE_SECONDS = 10  # a player would wait longer; a test should not


@dataclass
class Result:
    """The outcome of sending events.

    Attributes:
        acknowledged: Events answered with 200.
        lost: Other events, by reason.
        latencies: Seconds between sending an acknowledged event and its response.
        seconds: Duration of the whole.
    """

    acknowledged: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    seconds: float = 0.0

    def percentile(self, share: float) -> float:
        """Returns the latency in ms that this share (0 to 1) of acknowledged events did not exceed."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] * 1000 if ordered else 0.0

    def __str__(self) -> str:
        lines = [
            f"acknowledged  {self.acknowledged:,} in {self.seconds:.1f} s "
            f"({self.acknowledged / max(self.seconds, 1e-9):,.0f}/s)",
            f"lost          {sum(self.lost.values()):,}"
            + "".join(f"; {reason}: {count:,}" for reason, count in self.lost.most_common()),
        ]
        if self.latencies:
            shares = ((0.5, "p50"), (0.99, "p99"), (0.999, "p999"), (1, "max"))
            lines.append(
                "latency       " + ", ".join(f"{name} {self.percentile(share):.2f} ms" for share, name in shares)
            )
        return "\n".join(lines)


class _RefusedError(Exception):
    """A response that is not 200, or a connection that closed without one."""


class _Connection:
    """A keep-alive connection. As browsers do, opens it again when the server has closed it between two requests."""

    def __init__(self, host: str, port: int, base: str) -> None:
        self._host, self._port, self._base = host, port, base
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, event: SimulatedEvent) -> None:
        """Sends one event, and waits for its 200.

        Raises:
            _RefusedError: The status is not 200, or the connection closed without a response.
            OSError: The connection failed.
        """
        if self._reader is None or self._reader.at_eof():
            self.close()
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        assert self._writer
        headers = f"Host: {self._host}:{self._port}\r\nUser-Agent: {event.user_agent}\r\n"
        headers += f"X-Forwarded-For: {event.address}\r\n"
        if event.referer.isascii() and event.referer not in ("", "null"):
            headers += f"Referer: {event.referer}\r\n"
        self._writer.write(f"GET {self._base}?{event.query} HTTP/1.1\r\n{headers}\r\n".encode())
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
            )
            await self._reader.readexactly(length)
        except asyncio.IncompleteReadError:
            raise _RefusedError("closed without a response") from None
        if b"\r\nConnection: close" in head:
            self.close()
        status = head[9:12].decode()
        if status != "200":
            raise _RefusedError(f"status {status}")

    def close(self) -> None:
        if self._writer:
            self._writer.close()
        self._reader = self._writer = None


async def _play(
    connection: _Connection,
    events: "islice[SimulatedEvent]",
    interval: float,
    result: Result,
    acked: IO[str] | None,
    progress: Callable[[int], object],
) -> None:
    """Sends the events of one connection, one every `interval` seconds (0: as responses come)."""
    due = time.perf_counter()
    for event in events:
        due += interval
        if interval:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        start = time.perf_counter()
        try:
            # Not wait_for: before Python 3.12 it may swallow a cancellation, and then Ctrl-C does not end the program.
            async with asyncio.timeout(_RESPONSE_SECONDS):
                await connection.send(event)
        except (OSError, _RefusedError, TimeoutError) as error:
            connection.close()
            result.lost[str(error) if isinstance(error, _RefusedError) else type(error).__name__] += 1
            await asyncio.sleep(0.01)  # a refused connection takes no time: do not spend all events on it
        else:
            result.latencies.append(time.perf_counter() - start)
            result.acknowledged += 1
            if acked:
                acked.write(f"{event.key}\n")
        progress(1)
    connection.close()


def run(
    url: str,
    *,
    viewers: int,
    events: int,
    rate: float | None,
    seed: int,
    acked: IO[str] | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Result:
    """Sends events to a collector, and waits for every response.

    The events of a viewer stay on one connection, in order. Ctrl-C ends it early.

    Args:
        url: Address of the collector, with another path than /collect if need be.
        viewers: Number of viewers at the same time.
        events: Number of events.
        rate: Events per second; None sends as fast as responses come.
        seed: The same seed sends the same events.
        acked: Gets the key of each event whose 200 has arrived, one a line.
        progress: Called with the number of further events that are done.

    Raises:
        UsageError: `url` is not an http address.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port:
        raise UsageError(f"{url!r} is not an http address", "name one like http://127.0.0.1:8000 with --url")
    host = parts.hostname
    base = parts.path.rstrip("/") or COLLECT_PATH
    count = max(1, min(_MAX_CONNECTIONS, viewers, events))
    result = Result()

    async def play_all() -> None:
        plays = []
        for number in range(count):
            mine = len(range(number, events, count))
            source = islice(simulate(len(range(number, viewers, count)), f"{seed}/{number}"), mine)
            interval = count / rate if rate else 0.0
            plays.append(_play(_Connection(host, port, base), source, interval, result, acked, progress))
        await asyncio.gather(*plays)

    start = time.perf_counter()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(play_all())
    result.seconds = time.perf_counter() - start
    return result
