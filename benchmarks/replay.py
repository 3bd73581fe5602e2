"""What an event costs that comes with others, in one POST: batches from a proxy's queue, or a replay of old traffic."""

from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from benchmarks.ingest import VIEWERS, ask
from benchmarks.load import CONNECTIONS
from benchmarks.outcome import Outcome, interleaved, workspace
from benchmarks.receivers import BUFFERED, FLUSHED, WRITTEN, Receiver, check_programs, kanalony
from benchmarks.traffic import to_get, to_json, to_post, traffic, write_requests

SECONDS = 4  # at most, of each round
GETS = 200_000
SIZES = {1: 100_000, 10: 400_000, 100: 400_000, 1000: 400_000}  # events in a POST, and how many of them at most
KANALONY = replace(WRITTEN, command=kanalony("--journal-blocks", "512"))
CAVEATS = """\
caveats   Two ways of sending are compared, as much as two receivers: nginx, whose log has a line for a request, gets
          the same events one by one, as GETs. As in `ingest`, the client is on the same machine, and the server on one
          core of it: batches come faster than that core can also compress them, so kanalony gets a journal that holds
          them meanwhile (`--journal-blocks 512`; with the usual 32 some would be refused with 503). Processor time is
          counted until all are compressed and synced. Collecting stores a body as it came: reading its JSON is left to
          `kanalony compact`, and not in these figures."""


def measure(rounds: int, events: int, directory: Path | None) -> Outcome:
    """Nginx takes single GETs, kanalony GETs and POSTs; of each size of batch at most `events` events."""
    outcome = Outcome()
    check_programs()
    with workspace(directory) as work:
        sent = list(islice(traffic(VIEWERS), min(max(SIZES.values()), events)))
        gets = work / "gets"
        write_requests(gets, map(to_get, sent[:GETS]))
        runs = [
            partial(_take, outcome, one, work / "at", gets, 1, len(sent[:GETS]))
            for one in (BUFFERED, FLUSHED, KANALONY)
        ]
        objects = [to_json(event) for event in sent]
        for size, most in SIZES.items():
            posts = work / f"posts-{size}"
            starts = range(0, max(1, min(most, len(sent)) - size + 1), size)
            write_requests(posts, (to_post(sent[start], objects[start : start + size]) for start in starts))
            runs.append(partial(_take, outcome, KANALONY, work / "at", posts, size, len(starts)))
        interleaved(rounds, runs)
    for size in SIZES:
        aim = 1.0 if size >= 10 else None
        batch, single = outcome.get(_name(KANALONY, size), "CPU"), outcome.get(_name(BUFFERED, 1, "GET"), "CPU")
        outcome.ratio(f"POST of {size} to nginx, buffered", batch, single, at_most=aim)
    return outcome


def _name(receiver: Receiver, size: int, method: str = "POST") -> str:
    return f"{receiver.name}: {method}" + ("" if method == "GET" else f" of {size:,}")


def _take(outcome: Outcome, receiver: Receiver, work: Path, requests: Path, size: int, count: int) -> None:
    connections = max(1, min(CONNECTIONS, count // 10))
    _, cpu, stored, _ = ask(receiver, work, requests, SECONDS, batch=size, connections=connections)
    name = _name(receiver, size, "GET" if requests.name == "gets" else "POST")
    outcome.measure(name, "CPU", "µs/event", cpu / stored * 1e6)
    outcome.measure(name, "rate by CPU", "events/s", stored / max(cpu, 0.01))
