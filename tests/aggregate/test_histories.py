"""Random histories of a lake against a model: late, damaged and copied segments, and runs that die anywhere."""

import json
import shutil
import struct
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kanalony.aggregate.dedupe import WINDOW, Deduplicator, Fingerprints
from kanalony.aggregate.delta import Table
from kanalony.aggregate.lake import Lake
from kanalony.aggregate.ledger import read_ledger
from kanalony.aggregate.limits import Limits
from kanalony.aggregate.manifest import Manifest
from kanalony.aggregate.parquet import LakeFile
from kanalony.aggregate.waiting import Waiting
from kanalony.errors import FormatError
from kanalony.segments.directory import DataDirectory
from kanalony.units import MINUTE
from tests.aggregate.lakes import MEMORY, NOON, Killed, Sent, compact, rows, seal, tree
from tests.tools import examples

LIMITS = Limits(batch_share=MEMORY // (16 << 10), merge_rows=40, merge_bytes=1 << 30)  # some 10 events a batch
STEPS: list[tuple[Any, str]] = [(Lake, "_write_file"), (Manifest, "add"), (Table, "commit"), (Table, "_sync_log")]


@dataclass
class Segment:
    """A segment, and its expected contents.

    Attributes:
        path: The file.
        worker: The worker that wrote it.
        frames: (sequence number, request) of each frame.
        damaged: Number of the damaged frame; None when all are sound.
        begun: Whether a run that died may have read a part of it, so that damaging it has no certain result.
    """

    path: Path
    worker: int
    frames: list[list[tuple[int, Sent]]]
    damaged: int | None = None
    begun: bool = False


@dataclass
class Model:
    """The expected contents of the lake, and of the segments that wait."""

    data: DataDirectory
    waiting: list[Segment] = field(default_factory=list)
    read: dict[tuple[int, int], Sent] = field(default_factory=dict)
    next_sequence: dict[int, int] = field(default_factory=lambda: defaultdict(lambda: 1))
    copies: int = 0

    def append(self, worker: int, minutes: list[int], payloads: list[int]) -> None:
        requests = [
            # Few payloads, so that many are duplicates; payload 0 has no session, and is never a duplicate.
            Sent(NOON + minute * MINUTE, b"sessionId=%b&eventIndex=1" % (b"s%d" % payload if payload else b""))
            for minute, payload in zip(minutes, payloads, strict=False)
        ]
        first = self.next_sequence[worker]
        self.next_sequence[worker] += len(requests)
        numbered = list(enumerate(requests, first))
        frames = [numbered[start : start + 7] for start in range(0, len(numbered), 7)]
        path = seal(self.data, [[sent for _, sent in frame] for frame in frames], worker=worker, first=first)
        self.waiting.append(Segment(path, worker, frames))

    def damage(self, which: int, frame: int) -> None:
        whole = [segment for segment in self.waiting if segment.damaged is None and not segment.begun]
        if whole:
            segment = whole[which % len(whole)]
            segment.damaged = frame % len(segment.frames)
            content = bytearray(segment.path.read_bytes())
            at = -1
            for _ in range(segment.damaged + 1):
                at = content.index(b"KFRM", at + 1)
            content[at + 120] ^= 0x55
            segment.path.write_bytes(content)

    def copy(self, which: int) -> None:
        if self.waiting:
            segment = self.waiting[which % len(self.waiting)]
            self.copies += 1
            time, _, worker, first = segment.path.name.split("_")
            path = segment.path.with_name(f"{time}_copy{self.copies}_{worker}_{first}")
            shutil.copy(segment.path, path)
            self.waiting.append(Segment(path, segment.worker, segment.frames, segment.damaged))

    def lose(self, what: str, number: int) -> None:
        """Loses a part of the lake, asserts that the lake is refused and left as it is, and puts it back."""
        lake, manifest = self.data.lake, self.data.lake / "segments.ndjson"
        lines = manifest.read_bytes().splitlines(keepends=True) if manifest.exists() else []
        batches = [json.loads(line)["batch"] for line in lines]
        committed = [at for at, batch in enumerate(batches) if batch <= committed_batch(lake)]
        if not committed:
            return
        backup = shutil.copytree(lake, lake.with_name("backup"))
        log = lake / "events" / "_delta_log"
        if what == "manifest":
            manifest.unlink()
        elif what == "line":
            del lines[committed[number % len(committed)]]
            manifest.write_bytes(b"".join(lines))
        elif what == "log":
            shutil.rmtree(log)
        else:
            commits = sorted(log.glob("*.json"))
            for path in commits[1 + number % (len(commits) - 1) :]:
                path.unlink()
        # A run that died leaves the manifest one batch ahead as well: that is not refused.
        if what != "commits" or batches[-1] > committed_batch(lake) + 1:
            before = tree(self.data.root)
            with pytest.raises(FormatError):
                compact(self.data)
            with pytest.raises(FormatError):
                read_ledger(self.data)
            assert tree(self.data.root) == before
        shutil.rmtree(lake)
        backup.rename(lake)

    def compacted(self) -> None:
        for segment in self.waiting:
            for number, frame in enumerate(segment.frames):
                if number != segment.damaged:
                    self.read |= {(segment.worker, sequence): sent for sequence, sent in frame}
        self.waiting = []

    def check(self) -> None:
        """Compares the lake with the model: each request that was read is a row, or a duplicate of one."""
        kept = {(int(row["worker"], 16), row["sequence"]) for row in rows(self.data)}
        assert len(kept) == len(rows(self.data))
        assert kept <= set(self.read)
        times: dict[bytes, list[int]] = defaultdict(list)
        for key in kept:
            times[self.read[key].query].append(self.read[key].at)
        for key in set(self.read) - kept:
            sent = self.read[key]
            assert sent.query[10:11] == b"s", "without a session it is not a duplicate"
            assert any(abs(sent.at - time) <= WINDOW * 1000 for time in times[sent.query])
        for query, met in times.items():
            apart = np.diff(sorted(met))
            assert query[10:11] != b"s" or (apart > WINDOW * 1000).all(), "two rows are duplicates"
        ledger = read_ledger(self.data)
        assert [account for account in ledger.accounts if not account.balanced] == []
        assert not ledger.missing
        assert (ledger.total.read, ledger.total.rows) == (len(self.read), len(kept))
        assert ledger.lake_rows == len(kept)


def committed_batch(lake: Path) -> int:
    return DeltaTable(lake / "events").transaction_version("kanalony-compact") or 0


MINUTES = st.lists(st.integers(-40, 40), min_size=1, max_size=40)
PAYLOADS = st.lists(st.integers(0, 6), min_size=40, max_size=40)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 3), MINUTES, PAYLOADS),
        st.tuples(st.just("damage"), st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("copy"), st.integers(0, 9)),
        st.tuples(st.just("compact")),
        st.tuples(st.just("lose"), st.sampled_from(("manifest", "line", "log", "commits")), st.integers(0, 99)),
        st.tuples(st.just("kill"), st.sampled_from(STEPS), st.integers(1, 4), st.booleans()),
    ),
    min_size=3,
    max_size=14,
)


@given(OPERATIONS)
@settings(max_examples=examples(40), deadline=None, suppress_health_check=list(HealthCheck))
def test_a_lake_holds_the_rows_of_its_history(operations: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        model = Model(DataDirectory.writable(Path(temporary) / "data"))
        waiting = Waiting(model.data)
        for name, *arguments in [*operations, ("compact",)]:
            if name == "compact":
                compact(model.data, limits=LIMITS)
                model.compacted()
                model.check()
            elif name == "kill":
                kill(model.data, *arguments)
                for segment in model.waiting:
                    segment.begun = True
            else:
                getattr(model, name)(*arguments)
            assert waiting.count() == read_ledger(model.data).pending


def kill(data: DataDirectory, step: tuple[Any, str], nth: int, after: bool) -> None:
    """Compacts, and dies at the nth time that a step is taken, before or after it."""
    owner, name = step
    real = getattr(owner, name)
    calls = 0

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and not after:
            raise Killed
        result = real(*arguments, **options)
        if calls == nth:
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dying)
        try:
            compact(data, limits=LIMITS)
        except Killed:
            return


class FakeLake:
    """Files of fingerprints and times, in memory."""

    def __init__(self) -> None:
        self.tables: dict[Path, pa.Table] = {}

    @property
    def files(self) -> list[LakeFile]:
        listed = []
        for path, table in self.tables.items():
            times = table["receivedAt"].cast(pa.int64()).to_pylist()
            listed.append(LakeFile(path, date(2026, 1, 1), len(times), 0, min(times), max(times)))
        return listed


def fingerprint(kind: int) -> bytes | None:
    """Returns a fingerprint. Kinds 1 to 3 and 4 to 6 share first halves, and differ in the other; 0 has none."""
    return struct.pack("<QQ", kind % 3, kind // 4 << 60) if kind else None


TIMES = st.builds(int.__add__, st.integers(0, 4 * WINDOW), st.sampled_from((0, 1 << 32)))


@given(st.lists(st.lists(st.tuples(st.integers(0, 6), TIMES), min_size=1, max_size=30), max_size=8))
@settings(deadline=None)
def test_duplicates_are_those_a_simple_loop_finds(batches: list[list[tuple[int, int]]]) -> None:
    lake = FakeLake()
    deduplicator = Deduplicator(lake)  # type: ignore[arg-type]
    kept_before: list[tuple[int, int]] = []
    base = (1 << 44) - 2 * WINDOW  # in 2527, where the bits of a time wrap
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kanalony.aggregate.dedupe.read_file", lambda path, columns: lake.tables[path].select(columns))
        for number, batch in enumerate(batches):
            events = pa.table(
                {
                    "fingerprint": pa.array([fingerprint(kind) for kind, _ in batch], pa.binary()),
                    "receivedAt": pa.array([(base + time) * 1000 for _, time in batch], pa.timestamp("us", "UTC")),
                }
            )
            fingerprints = Fingerprints.of(
                events["fingerprint"].combine_chunks(), events["receivedAt"].combine_chunks()
            )
            found = set(deduplicator.find(fingerprints).tolist())
            expected = set()
            for row in sorted(range(len(batch)), key=lambda row: (batch[row][1], row)):
                kind, time = batch[row]
                if kind and any(kind == other and abs(time - at) <= WINDOW for other, at in kept_before):
                    expected.add(row)
                else:
                    kept_before.append((kind, time))
            assert found == expected
            kept = np.array([row not in expected for row in range(len(batch))])
            path = Path(str(number))
            if kept.any():
                lake.tables[path] = events.filter(pa.array(kept))
            deduplicator.add(fingerprints, kept, {path})
