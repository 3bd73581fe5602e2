"""Segments to lake: CPU per event, memory, and kill -9 during a compaction."""

import itertools
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.outcome import Outcome, interleaved, workspace
from harness.server import KANALONY, run, started
from kanalony.aggregate.columns import Columns, decompress
from kanalony.aggregate.lake import ReadOnlyLake
from kanalony.aggregate.ledger import read_ledger
from kanalony.aggregate.rollups import DIRECTORY as ROLLUPS
from kanalony.reports.execution import Reports
from kanalony.reports.query import Query
from kanalony.segments.directory import DataDirectory
from kanalony.segments.reader import Segment
from kanalony.segments.store import Store
from kanalony.settings.serving import ServeSettings
from kanalony.simulate.viewers import SimulatedEvent, simulate

VIEWERS = 2000
SIMULATED = 200_000  # distinct events; simulating more would take longer than all the rest
BATCH_SIZE = 128 << 20
COLUMNS_AIM = 400_000
LAKE_AIM = 150_000
LINEAR = 1.15  # aim: cost of an event among sixteen times as many events
CAVEATS = """\
caveats   Simulated traffic: few user agents and referrers, no ks, no bodies; all of it received within minutes, so all
          of it is in the window of duplicates. Rates per core are events per second of CPU time of all threads. `to the
          lake` is a whole run without its rollups; it includes the start of the process, as the figures of the peers
          do. The peers do less: they find no duplicates, look up no browser and no page, convert a dozen parameters,
          and can lose data when they die. They read a log of the same events as nginx writes it."""
PEERS = {
    "DuckDB, from nginx's JSON log": "duckdb_compact.py",
    "Python loop (urllib, pyarrow)": "python_compact.py",
}


def traffic(events: int, seed: int = 1) -> Iterator[SimulatedEvent]:
    """Yields simulated events. After `SIMULATED` of them the same viewers return in other sessions."""
    simulated = list(itertools.islice(simulate(VIEWERS, str(seed)), min(events, SIMULATED)))
    for number in range(events):
        again, place = divmod(number, SIMULATED)
        event = simulated[place]
        if again:
            query = event.query.replace("sessionId=", f"sessionId={again}")
            event = replace(event, query=query, key=f"{again}{event.key}")
        yield event


def fill(data: DataDirectory, events: int, *, seed: int = 1, segment_size: int = 64 << 20) -> Counter[str]:
    """Seals segments of simulated events, and returns their keys: session, space, index.

    Args:
        data: The data directory.
        events: Number of events.
        seed: Seed of the simulation.
        segment_size: Size of a segment in bytes.
    """
    store = Store(data, ServeSettings(data=data.root, segment_size=segment_size))
    keys: Counter[str] = Counter()
    for event in traffic(events, seed):
        while store.journal.blocks.full_blocks > 8:
            time.sleep(0.001)
        address = ip_address(event.address).packed
        if not store.append("GET", "/collect", address, None, event.user_agent, event.referer, event.query):
            raise RuntimeError("the journal was full in spite of the wait above")
        keys[event.key] += 1
    store.close()
    return keys


def measure(sizes: Sequence[int], rounds: int, memory: str, directory: Path | None) -> Outcome:
    """Measures every size by stage; the smallest also with the peers, in turn with kanalony."""
    outcome = Outcome()
    for events in sorted(sizes):
        with workspace(directory) as work:
            data = DataDirectory.writable(work / "data")
            fill(data, events)
            run_stages = partial(_stages, outcome, data, events, memory)
            if events > min(sizes):
                run_stages()
                continue
            log = work / "events.json"
            write_log(log, traffic(events))
            interleaved(rounds, [run_stages, *(partial(_ask_peer, outcome, name, log, events) for name in PEERS)])
    smallest = _subject(min(sizes))
    to_lake = outcome.get(smallest, "to the lake")
    outcome.rate("to columns, per core", outcome.get(smallest, "to columns").median, COLUMNS_AIM)
    outcome.rate("to the lake, per core", to_lake.median, LAKE_AIM)
    if len(sizes) > 1:
        most = outcome.get(_subject(max(sizes)), "to the lake")
        outcome.ratio("cost an event, most to fewest", to_lake, most, at_most=LINEAR, paired=False)
    for name in PEERS:
        aim = 5.0 if "DuckDB" in name else None
        outcome.ratio(f"kanalony to {name}", to_lake, outcome.get(name, "to the lake"), at_least=aim)
    return outcome


def _subject(events: int) -> str:
    return f"kanalony, {events:,} events"


def _stages(outcome: Outcome, data: DataDirectory, events: int, memory: str) -> None:
    """Measures columns alone, a whole run, a run that only makes the rollups, and a run with nothing to do.

    Raises:
        RuntimeError: An event is not in the lake.
    """
    subject = _subject(events)
    shutil.rmtree(data.lake, ignore_errors=True)
    data.lake.mkdir()
    columns = _columns_rate(data, events)
    cpu, seconds, most = _run_compact(data, memory)
    shutil.rmtree(data.lake / ROLLUPS)
    again_cpu, _, again_most = _run_compact(data, memory)
    start_cpu, _, _ = _run_compact(data, memory)
    rollups_cpu = max(again_cpu - start_cpu, 0.01)
    outcome.measure(subject, "to columns", "events/s/core", columns)
    outcome.measure(subject, "to the lake", "events/s/core", events / (cpu - rollups_cpu))
    outcome.measure(subject, "rollups", "events/s/core", events / rollups_cpu)
    outcome.measure(subject, "all of it", "events/s/core", events / cpu)
    outcome.measure(subject, "all of it", "events/s", events / seconds)
    outcome.measure(subject, "memory", "MiB", max(most, again_most))
    lake = ReadOnlyLake(data.lake / "events")
    outcome.measure(subject, "disk", "bytes/row", sum(file.size for file in lake.files) / events)
    ledger = read_ledger(data)
    if ledger.lake_rows != events or not ledger.balanced:
        raise RuntimeError(f"{ledger.lake_rows:,} of {events:,} events are in the lake; see `kanalony ledger`")


def _ask_peer(outcome: Outcome, name: str, log: Path, events: int) -> None:
    """Measures a peer.

    Raises:
        RuntimeError: The peer did not write a row for every event.
    """
    script = Path(__file__).parent / "peers" / PEERS[name]
    output = log.with_name("events.parquet")
    output.unlink(missing_ok=True)
    cpu, seconds, most = _run([sys.executable, str(script), str(log), str(output)])
    if pq.ParquetFile(output).metadata.num_rows != events:
        raise RuntimeError(f"{name} lost events")
    outcome.measure(name, "to the lake", "events/s/core", events / cpu)
    outcome.measure(name, "all of it", "events/s", events / seconds)
    outcome.measure(name, "memory", "MiB", most)
    outcome.measure(name, "disk", "bytes/row", output.stat().st_size / events)


def write_log(path: Path, events: Iterable[SimulatedEvent]) -> None:
    """Writes the log that nginx writes of such requests with benchmarks/peers/nginx.conf."""
    with path.open("w", encoding="utf-8") as file:
        for event in events:
            line = {
                "time": f"{event.time:.3f}",
                "remote_addr": event.address,
                "forwarded_for": "",
                "user_agent": event.user_agent,
                "referer": event.referer,
                "query": event.query,
            }
            file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


def _run_compact(data: DataDirectory, memory: str) -> tuple[float, float, int]:
    return _run([*KANALONY, "compact", "--data", str(data.root), "--memory", memory])


def _run(command: list[str]) -> tuple[float, float, int]:
    """Runs a command, and returns seconds of CPU time, seconds of wall time, and the peak of resident MiB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors, started(command, stderr=errors) as process:
        most = 0
        while process.poll() is None:
            most = _most_memory(process.pid) or most
            time.sleep(0.05)
        seconds = time.monotonic() - start
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {errors.read()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds, most


def _most_memory(pid: int) -> int:
    """Returns the peak of resident memory of a process in MiB; 0 when it has ended.

    The figure of wait() would include the memory of this process at the fork.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) // 1024 if found else 0


def _columns_rate(data: DataDirectory, events: int) -> float:
    """Returns events per second of CPU time, from segment bytes to Arrow columns."""
    columns = Columns(BATCH_SIZE)
    rows = 0
    start = time.process_time()
    for path in sorted(data.sealed.iterdir()):
        with Segment(path, sealed=True) as segment:
            for frame in segment.frames():
                content = decompress(frame)
                first = frame.prefix.first_sequence
                while content and first < frame.prefix.first_sequence + frame.prefix.request_count:
                    prefix = frame.prefix
                    added = columns.add(
                        content, prefix.worker_id, prefix.first_sequence, prefix.request_count, first, 1 << 62
                    )
                    if added is None:
                        raise RuntimeError("a frame is damaged")
                    first = added.end
                    if columns.is_full:
                        rows += columns.finish()[0].num_rows
    rows += columns.finish()[0].num_rows
    seconds = time.process_time() - start
    if rows != events:
        raise RuntimeError(f"{rows:,} rows of {events:,} events")
    return events / seconds


def crash(rounds: int, directory: Path | None) -> Outcome:
    """Kills a compaction at a random moment, while new segments arrive, repeatedly."""
    outcome = Outcome()
    rng = random.Random(1)
    killed = 0
    with workspace(directory) as work:
        data = DataDirectory.writable(work / "data")
        expected: Counter[str] = Counter()
        for number in range(rounds):
            expected += fill(data, rng.randrange(20_000, 80_000), seed=number, segment_size=1 << 20)
            command = [*KANALONY, "compact", "--data", str(data.root), "--memory", "512MiB", "--keep-segments", "0"]
            with started(command, stderr=subprocess.DEVNULL) as process:
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
        report = Reports(data).run(Query(("events",)))
        outcome.figure("events in reports", report.totals["events"], expected.total())
        outcome.figure("which come from", ", ".join(report.tables), "hour")
    return outcome
