"""Cost of an event in a batch, one POST: from the queue of a proxy, or a replay of old traffic."""

from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from benchmarks.ingest import VIEWERS, ask
from benchmarks.load import CONNECTIONS
from benchmarks.outcome import Outcome, interleaved, workspace
from benchmarks.receivers import BUFFERED, FLUSHED, WRITTEN, Receiver, check_programs, kanalony
from benchmarks.traffic import to_get, to_json, to_post, traffic, write_requests

SECONDS = 4  # limit of each round
GETS = 200_000
SIZES = {1: 100_000, 10: 400_000, 100: 400_000, 1000: 400_000}  # events in a POST: most events in all
KANALONY = replace(WRITTEN, command=kanalony("--journal-blocks", "512"))
CAVEATS = """\
caveats   The comparison is between two ways of sending as much as between two receivers: nginx, whose log has a line
          for a request, gets the same events one by one, as GETs. As in `ingest`, the client is on the same machine
          and the server on one core: batches arrive faster than that core also compresses them, so kanalony gets a
          journal that holds them (`--journal-blocks 512`; with the default of 32 it would refuse some with 503). CPU
          time counts until all are compressed and synced. The collector stores a body as it arrived: `kanalony
          compact` reads its JSON, and these figures do not include that."""


def measure(rounds: int, events: int, directory: Path | None) -> Outcome:
    """Sends single GETs to nginx, GETs and POSTs to kanalony; at most `events` events for each size of batch."""
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
