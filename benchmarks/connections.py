"""Cost of ten thousand idle connections, and their effect on active ones."""

import resource
import socket
import time
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path

from benchmarks import load
from benchmarks.ingest import MOST, VIEWERS
from benchmarks.outcome import Outcome, interleaved, workspace
from benchmarks.receivers import BUFFERED, GRANIAN, WRITTEN, Receiver, check_programs
from benchmarks.traffic import to_get, traffic, write_requests

IDLE_SECONDS = 5
CAVEATS = """\
caveats   Each idle connection has sent one event. Memory is the growth of the server's processes over their size after
          a load on 64 connections, without the kernel's socket buffers. Latencies are those of 64 concurrent requests
          for one core, as in `ingest`. Both are measured with and without the idle connections, on the same
          processes."""


def measure(count: int, rounds: int, seconds: int, directory: Path | None) -> Outcome:
    """Opens connections, keeps them idle, and sends over others.

    Args:
        count: Idle connections.
        rounds: Rounds.
        seconds: Seconds of load in each round.
        directory: Where to work; None: the default place.

    Raises:
        RuntimeError: The limit of open files is too low, a program is missing, or an event was lost.
    """
    outcome = Outcome()
    check_programs()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 1000:
        raise RuntimeError(f"{count:,} connections need {count + 1000:,} open files; ulimit -Hn allows {hard:,}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 1000), hard))
    with workspace(directory) as work:
        requests = work / "requests"
        write_requests(requests, map(to_get, islice(traffic(VIEWERS), seconds * MOST)))
        receivers = (WRITTEN, GRANIAN, BUFFERED)
        interleaved(rounds, [partial(_take, outcome, one, work, requests, count, seconds) for one in receivers])
    for one in receivers:
        loaded, alone = (outcome.get(_name(one, idle), "CPU") for idle in (count, 0))
        outcome.ratio(f"CPU with to without them, {one.name}", loaded, alone)
    return outcome


def _name(receiver: Receiver, idle: int) -> str:
    return f"{receiver.name}, {idle:,} idle"


def _take(outcome: Outcome, receiver: Receiver, work: Path, requests: Path, count: int, seconds: int) -> None:
    """Measures one round of a receiver.

    Raises:
        RuntimeError: A connection was refused, an idle one was closed, or an event was lost.
    """
    port = load.free_port()
    with (
        workspace(work) as place,
        load.running(receiver.command(place, port), port, place / "log") as process,
        ExitStack() as opened,
    ):
        sent = _send(outcome, _name(receiver, 0), process, port, requests, seconds)
        before = process.memory()
        idle = [opened.enter_context(_event(port, number)) for number in range(count)]
        time.sleep(1)
        start = process.cpu()
        time.sleep(IDLE_SECONDS)
        name = _name(receiver, count)
        outcome.measure(name, "CPU while silent", "ms/s", (process.cpu() - start) / IDLE_SECONDS * 1000)
        outcome.measure(name, "memory", "KiB/connection", max(0, process.memory() - before) / 1024 / count)
        sent += _send(outcome, name, process, port, requests, seconds)
        closed = sum(_is_closed(connection) for connection in idle)
        if closed:
            raise RuntimeError(f"{receiver.name}: {closed:,} of {count:,} idle connections were closed")
        opened.close()
        process.stop()
        assert receiver.stored
        stored, _ = receiver.stored(place)
        if stored < sent + count:
            raise RuntimeError(f"{receiver.name}: {sent + count:,} events acknowledged, {stored:,} stored")


def _send(outcome: Outcome, name: str, process: load.Process, port: int, requests: Path, seconds: int) -> int:
    """Sends for a while, and returns the number of answered requests."""
    start = process.cpu()
    answers = load.send(port, requests, seconds)
    if answers.failed or not answers.answered:
        raise RuntimeError(f"{name}: {answers}")
    outcome.measure(name, "CPU", "µs/event", (process.settled_cpu() - start) / answers.answered * 1e6)
    for quantile in ("p50", "p99", "p999"):
        outcome.measure(name, quantile, "ms", getattr(answers, quantile))
    return answers.answered


def _event(port: int, number: int) -> socket.socket:
    """Opens a connection, and sends one event over it."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    request = (
        f"GET /collect?eventType=1&sessionId=idle{number}&eventIndex=1 HTTP/1.1\r\nHost: collector.example\r\n\r\n"
    )
    connection.sendall(request.encode())
    if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"connection {number:,} was not answered")
    return connection


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
