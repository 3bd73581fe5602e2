"""Segments to the lake: what an event costs, how much memory it takes, and whether kill -9 can harm it."""

import itertools
import random
import re
import resource
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.outcome import Outcome, workspace
from benchmarks.server import KANALONY, run
from kanalony.aggregate.columns import Columns
from kanalony.aggregate.lake import ReadOnlyLake
from kanalony.aggregate.ledger import read_ledger
from kanalony.aggregate.rollups import DIRECTORY as ROLLUPS
from kanalony.reports.query import Query, Reports
from kanalony.segments.names import DataDirectory
from kanalony.segments.reader import Segment
from kanalony.segments.store import Store
from kanalony.settings import Settings
from kanalony.simulate.viewers import simulate

VIEWERS = 2000
SIMULATED = 200_000  # events that are made up anew; that takes longer than all the rest
BATCH_SIZE = 128 << 20
COLUMNS_AIM = 400_000
LAKE_AIM = 150_000
CAVEATS = """\
caveats   Simulated traffic: few user agents and referrers, no ks, no bodies; all of it received within minutes, so all
          of it is in the window of duplicates. `per core` is events by seconds of processor time of all threads; the
          start of the process is in it."""


def fill(data: DataDirectory, events: int, *, seed: int = 1, segment_size: int = 64 << 20) -> Counter[str]:
    """Seal segments of so many simulated events. Their keys: session, space, index."""
    store = Store(data, Settings(data=data.root, segment_size=segment_size))
    simulated = list(itertools.islice(simulate(VIEWERS, str(seed)), min(events, SIMULATED)))
    keys: Counter[str] = Counter()
    for number in range(events):
        event = simulated[number % SIMULATED]
        # After so many the same people come again, in other sessions.
        again = f"{number // SIMULATED}" if number >= SIMULATED else ""
        while store.journal.blocks.full_blocks > 8:
            time.sleep(0.001)
        query = event.query.replace("sessionId=", f"sessionId={again}") if again else event.query
        address = bytes([203, 0, number % 101, number % 89])
        if not store.append("GET", "/collect", address, None, event.user_agent, event.referer, query):
            raise RuntimeError("the journal was full, which the wait above should rule out")
        keys[again + event.key] += 1
    store.close()
    return keys


def measure(outcome: Outcome, events: int, memory: str, directory: Path | None) -> None:
    """Columns alone, then everything, with the memory that takes."""
    with workspace(directory) as work:
        data = DataDirectory.writable(work / "data")
        fill(data, events)
        outcome.figure("events", events)
        # As often as it takes for a figure that holds, of what is measured in the same run.
        rate = max(_columns_rate(data, events) for _ in range(3))
        outcome.rate("to columns, per core", rate, COLUMNS_AIM)
        cpu, seconds, most = _run_compact(data, memory)
        # Again with nothing to do but the rollups, which the first run has made too.
        shutil.rmtree(data.lake / ROLLUPS)
        rollups_cpu, rollups_seconds, rollups_most = _run_compact(data, memory)
        cpu, seconds = cpu - rollups_cpu, seconds - rollups_seconds
        outcome.rate("to the lake, per core", events / cpu, LAKE_AIM)
        outcome.figure("to the lake, by the clock", f"{events / seconds:,.0f} events/s")
        outcome.figure("rollups, per core", f"{events / rollups_cpu:,.0f} events/s")
        outcome.figure("most memory, MiB", most)
        outcome.figure("of the rollups alone, MiB", rollups_most)
        lake = ReadOnlyLake(data.lake / "events")
        outcome.figure("bytes a row in the lake", sum(file.size for file in lake.files) // events)
        outcome.figure("files", len(lake.files))
        ledger = read_ledger(data)
        outcome.figure("rows in the lake", ledger.lake_rows, events)
        outcome.figure("ledger", "balanced" if ledger.balanced else "not balanced", "balanced")


def _run_compact(data: DataDirectory, memory: str) -> tuple[float, float, int]:
    """`kanalony compact`: its seconds of processor time, those by the clock, and the most MiB it had resident."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    command = [*KANALONY, "compact", "--data", str(data.root), "--memory", memory]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        most = 0
        while process.poll() is None:
            most = _most_memory(process.pid) or most
            time.sleep(0.1)
    seconds = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise RuntimeError(f"kanalony compact ended with {process.returncode}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds, most


def _most_memory(pid: int) -> int:
    """The most that a process had resident so far, in MiB; 0 when it has ended. What wait() tells would include what
    this process had when it forked."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) // 1024 if found else 0


def _columns_rate(data: DataDirectory, events: int) -> float:
    """Events per second of processor time, from segment bytes to Arrow columns."""
    columns = Columns(BATCH_SIZE)
    rows = 0
    start = time.process_time()
    for path in sorted(data.sealed.iterdir()):
        with Segment(path, sealed=True) as segment:
            for frame in segment.frames():
                content = frame.records()
                first = frame.prefix.first_sequence
                while content and first < frame.prefix.first_sequence + frame.prefix.request_count:
                    told = frame.prefix
                    added = columns.add(
                        content, told.worker_id, told.first_sequence, told.request_count, first, 1 << 62
                    )
                    if added is None:
                        raise RuntimeError("a frame is not what it should be")
                    first = added.end
                    if columns.is_full:
                        rows += columns.finish()[0].num_rows
    rows += columns.finish()[0].num_rows
    seconds = time.process_time() - start
    if rows != events:
        raise RuntimeError(f"{rows:,} rows of {events:,} events")
    return events / seconds


def crash(rounds: int, directory: Path | None) -> Outcome:
    """kill -9 of a compaction at a random moment, while segments keep coming, again and again."""
    outcome = Outcome()
    rng = random.Random(1)
    killed = 0
    with workspace(directory) as work:
        data = DataDirectory.writable(work / "data")
        expected: Counter[str] = Counter()
        for number in range(rounds):
            expected += fill(data, rng.randrange(20_000, 80_000), seed=number, segment_size=1 << 20)
            command = [*KANALONY, "compact", "--data", str(data.root), "--memory", "512MiB", "--keep-segments", "0"]
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
                time.sleep(rng.uniform(0.6, 1.8))
                killed += process.poll() is None
                process.kill()
        done = run("compact", "--data", data.root, timeout=600)
        stored: Counter[str] = Counter()
        for file in ReadOnlyLake(data.lake / "events").files:
            table = pq.ParquetFile(file.path).read(["sessionId", "eventIndex"]).to_pydict()
            stored.update(f"{s} {i}" for s, i in zip(table["sessionId"], table["eventIndex"], strict=True))
        ledger = read_ledger(data)
        outcome.figure("rounds of kill -9", rounds)
        outcome.figure("while it was at work", killed)
        outcome.figure("exit status of the last run", done.returncode, 0)
        outcome.figure("events", expected.total())
        outcome.figure("rows in the lake", ledger.lake_rows, expected.total())
        outcome.figure("events missing", (expected - stored).total(), 0)
        outcome.figure("stored twice", (stored - expected).total(), 0)
        outcome.figure("ledger", "balanced" if ledger.balanced else "not balanced", "balanced")
        told = Reports(data).run(Query(("events",)))
        outcome.figure("events in reports", told.totals["events"], expected.total())
        outcome.figure("which come from", ", ".join(told.tables), "hour")
    return outcome
