"""Cost of a single GET: kanalony, the server below it, and alternatives that players could send to."""

import shutil
from functools import partial
from itertools import islice
from pathlib import Path

from benchmarks import load
from benchmarks.outcome import Outcome, interleaved, workspace
from benchmarks.receivers import ALL, BARE, BUFFERED, FLUSHED, PROTOTYPE, WRITTEN, Receiver, check_programs
from benchmarks.traffic import to_get, traffic, write_requests

VIEWERS = 20_000
MOST = 500_000  # requests per second: more than any receiver answers on one core
CAVEATS = """\
caveats   The client is on the same machine and keeps the server as busy as possible: latencies are those of 64
          concurrent requests for one core, not those of players. The sender pays part of a packet's way through the
          kernel. nginx does less (it logs, escaped, the values that kanalony stores byte for byte) and is configured
          for nothing else; Node, FastAPI and Flask do more: they parse the query, which kanalony leaves to `kanalony
          compact`. CPU is user and system time of all server processes from the first request until they are idle
          again, with compression and sync, without start and end of the processes and without kernel threads, which
          write to the disk."""


def measure(rounds: int, seconds: int, directory: Path | None) -> Outcome:
    """Sends the same requests to each receiver in turn, each round with an empty directory."""
    outcome = Outcome()
    check_programs()
    with workspace(directory) as work:
        requests = work / "requests"
        write_requests(requests, map(to_get, islice(traffic(VIEWERS), seconds * MOST)))
        interleaved(rounds, [partial(take, outcome, one, work / "at", requests, seconds) for one in ALL])
    outcome.lines += [f"where an event is that {one.name} acknowledges: {one.promise}" for one in ALL]
    written = outcome.get(WRITTEN.name, "CPU")
    outcome.ratio("CPU, GET, to bare meinheld", written, outcome.get(BARE.name, "CPU"), at_most=1.35)
    for peer in (BUFFERED, FLUSHED):
        outcome.ratio(f"CPU, GET, to {peer.name}", written, outcome.get(peer.name, "CPU"))
    prototype = outcome.get(PROTOTYPE.name, "CPU")
    outcome.ratio(f"CPU, the prototype to {FLUSHED.name}", prototype, outcome.get(FLUSHED.name, "CPU"))
    return outcome


def take(outcome: Outcome, receiver: Receiver, work: Path, requests: Path, seconds: int) -> None:
    """Measures one round of a receiver.

    Raises:
        RuntimeError: The requests ran out, or as `ask`.
    """
    answers, cpu, stored, size = ask(receiver, work, requests, seconds)
    if answers.ended:
        raise RuntimeError(f"{receiver.name} answered more than {MOST:,} requests a second: the requests ran out")
    outcome.measure(receiver.name, "CPU", "µs/event", cpu / answers.answered * 1e6)
    outcome.measure(receiver.name, "rate", "events/s", answers.answered / answers.seconds)
    for name in ("p50", "p99", "p999"):
        outcome.measure(receiver.name, name, "ms", getattr(answers, name))
    if receiver.stored:
        outcome.measure(receiver.name, "disk", "bytes/event", size / stored)


def ask(
    receiver: Receiver, work: Path, requests: Path, seconds: int, *, batch: int = 1, connections: int = load.CONNECTIONS
) -> tuple[load.Answers, float, int, int]:
    """Starts a receiver, sends, stops it, and counts the stored events.

    Args:
        receiver: The receiver.
        work: Directory for it, which is made and removed.
        requests: File of requests.
        seconds: Time limit.
        batch: Events in each request.
        connections: Connections at a time.

    Returns:
        The answers, seconds of CPU time, stored events and their bytes.

    Raises:
        RuntimeError: A request was refused, an answered one is not stored whole, or more are stored than were sent.
    """
    work.mkdir()
    stored = size = 0
    try:
        port = load.free_port()
        with load.running(receiver.command(work, port), port, work / "log") as process:
            before = process.cpu()
            answers = load.send(port, requests, seconds, connections)
            cpu = process.settled_cpu() - before
            process.stop()
        if answers.failed or not answers.answered:
            raise RuntimeError(f"{receiver.name}: {answers}; {(work / 'log').read_text()[-2000:]}")
        if receiver.stored:
            stored, size = receiver.stored(work)
            # Requests on their way when the client left may be stored, answered or not. wrk cannot stop between two
            # requests: at the end of its file every connection sends the last one again.
            on_their_way = connections * (2 if answers.ended else 1)
            if stored % batch or not 0 <= stored // batch - answers.answered <= on_their_way:
                acknowledged = answers.answered * batch
                raise RuntimeError(f"{receiver.name}: {acknowledged:,} acknowledged, {stored:,} stored")
    finally:
        shutil.rmtree(work)
    return answers, cpu, stored, size
