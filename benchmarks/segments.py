"""Time and size of segment files, beside the formats that events are usually stored in."""

import gzip
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.outcome import Outcome, workspace
from benchmarks.traffic import traffic
from harness.server import run
from kanalony.aggregate.lake import ReadOnlyLake
from kanalony.segments.directory import DataDirectory
from kanalony.segments.reader import Segment
from kanalony.segments.writer import SegmentWriter
from kanalony.simulate.past import past_record
from kanalony.simulate.viewers import SimulatedEvent

FRAME = 1 << 20  # bytes of records, as in blocks of the collector
KINDS = {
    "2,000 viewers": (2_000, False),
    "50,000 viewers": (50_000, False),
    "50,000 viewers, each with a ks": (50_000, True),
}
CAVEATS = """\
caveats   Simulated traffic: the values of real queries vary more and compress worse; the rows with a ks show the
          difference. NDJSON is the output of the peers of `ingest`: an object of all parameters. Times of NDJSON are
          those of compression alone, without making it in Python; times of segments include checksums and fsync.
          Parquet has one column for the raw query. The lake has that column too, beside all the others."""


def measure(events: int, rounds: int, directory: Path | None) -> Outcome:
    """Writes and reads the same events in every format, with as many interleaved sessions as there are viewers."""
    outcome = Outcome()
    for kind, (viewers, ks) in KINDS.items():
        with workspace(directory) as work:
            _measure(outcome, kind, list(islice(traffic(viewers, ks=ks), events)), rounds, work)
    return outcome


def _measure(outcome: Outcome, kind: str, sent: list[SimulatedEvent], rounds: int, work: Path) -> None:
    records = [past_record(event, 1, number) for number, event in enumerate(sent, 1)]
    ndjson = b"".join(_line(event) for event in sent)
    zstd = pa.Codec("zstd", compression_level=3)
    sizes = {"NDJSON": len(ndjson), "raw records": sum(map(len, records))}
    for number in range(rounds):
        data = DataDirectory.writable(work / f"data-{number}")
        frames = _frames(records)
        with _Timing(outcome, kind, "segments", "write", len(sent), sizes["raw records"]):
            path = _write(data, frames)
        sizes["segments"] = path.stat().st_size
        with _Timing(outcome, kind, "segments", "read", len(sent), sizes["raw records"]):
            found = _read(path)
        if found != b"".join(records):
            raise RuntimeError("the records read differ from the records written")
        compressors: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
            "NDJSON + gzip": (lambda text: gzip.compress(text, 6), gzip.decompress),
            "NDJSON + zstd": (
                lambda text: zstd.compress(text, asbytes=True),
                lambda text: zstd.decompress(text, len(ndjson), asbytes=True),
            ),
        }
        for name, (compress, decompress) in compressors.items():
            with _Timing(outcome, kind, name, "write", len(sent), len(ndjson)):
                compressed = compress(ndjson)
            with _Timing(outcome, kind, name, "read", len(sent), len(ndjson)):
                decompressed = decompress(compressed)
            if decompressed != ndjson:
                raise RuntimeError(f"{name} is broken")
            sizes[name] = len(compressed)
        table = _table(sent)
        with _Timing(outcome, kind, "Parquet + zstd", "write", len(sent), table.nbytes):
            pq.write_table(table, work / "events.parquet", compression="zstd")
        with _Timing(outcome, kind, "Parquet + zstd", "read", len(sent), table.nbytes):
            pq.read_table(work / "events.parquet")
        sizes["Parquet + zstd"] = (work / "events.parquet").stat().st_size
    done = run("compact", "--data", work / "data-0", timeout=3600)
    if done.returncode:
        raise RuntimeError(done.stderr)
    files = ReadOnlyLake(work / "data-0" / "lake" / "events").files
    if sum(file.rows for file in files) != len(sent):
        raise RuntimeError("the lake does not have every event")
    sizes["the lake"] = sum(file.size for file in files)
    for name, size in sizes.items():
        outcome.measure(f"{kind}: {name}", "size", "bytes/event", size / len(sent))
    size_of = {name: outcome.get(f"{kind}: {name}", "size") for name in sizes}
    outcome.ratio(f"{kind}: NDJSON to segments", size_of["NDJSON"], size_of["segments"], at_least=6)
    outcome.ratio(f"{kind}: lake to NDJSON + zstd", size_of["the lake"], size_of["NDJSON + zstd"], at_most=1.5)


class _Timing:
    """Measures its `with` block by CPU time of this process: µs per event, and MB of content per second."""

    def __init__(self, outcome: Outcome, kind: str, name: str, what: str, events: int, size: int) -> None:
        self._outcome, self._subject, self._what, self._events, self._size = (
            outcome,
            f"{kind}: {name}",
            what,
            events,
            size,
        )

    def __enter__(self) -> None:
        self._start = time.process_time()

    def __exit__(self, *_: object) -> None:
        seconds = time.process_time() - self._start
        self._outcome.measure(self._subject, self._what, "µs/event", seconds / self._events * 1e6)
        self._outcome.measure(self._subject, self._what, "MB/s", self._size / seconds / 1e6)


def _line(event: SimulatedEvent) -> bytes:
    line = {
        "time": datetime.fromtimestamp(event.time, UTC).isoformat(),
        "remote_addr": event.address,
        "user_agent": event.user_agent,
        "referer": event.referer,
        **dict(parse_qsl(event.query, keep_blank_values=True)),
    }
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _table(sent: list[SimulatedEvent]) -> pa.Table:
    return pa.table(
        {
            "time": pa.array([int(event.time * 1e6) for event in sent], pa.timestamp("us", "UTC")),
            "remote_addr": [event.address for event in sent],
            "user_agent": [event.user_agent for event in sent],
            "referer": [event.referer for event in sent],
            "query": [event.query for event in sent],
        }
    )


def _frames(records: list[bytes]) -> list[tuple[int, bytes]]:
    """Returns (number of the first record, records) of blocks as full as possible."""
    frames = []
    block: list[bytes] = []
    first, size = 1, 0
    for number, record in enumerate(records, 1):
        if size + len(record) > FRAME:
            frames.append((first, b"".join(block)))
            block, first, size = [], number, 0
        block.append(record)
        size += len(record)
    return [*frames, (first, b"".join(block))]


def _write(data: DataDirectory, frames: list[tuple[int, bytes]]) -> Path:
    writer = SegmentWriter(data, "benchmark", 1, 0, 1)
    for first, block in frames:
        writer.add(block, first)
        writer.sync()
    writer.seal()
    return data.sealed / writer.name


def _read(path: Path) -> bytes:
    """Returns the content of every frame, with checksums verified."""
    found = []
    with Segment(path, sealed=True) as segment:
        for frame in segment.frames():
            content = frame.records()
            if content is None:
                raise RuntimeError("a frame is damaged")
            found.append(content)
    return b"".join(found)
