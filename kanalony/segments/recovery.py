"""Adopting what dead workers left: their open segments are sealed, their journals' pending events written to segments.

Every step may be repeated after a crash at any point: events are named by worker and sequence number, and what a
segment already holds is not written again. Nothing is deleted that is not durable elsewhere; damaged bytes are copied
to quarantine first.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import IO, Self

from kanalony.segments.journal import RECEIVED_AT, JournalContents, Run, read_journal
from kanalony.segments.names import DataDirectory, SegmentName, segments_of, sync_directory, worker_name
from kanalony.segments.reader import Coverage, Damage, Segment, decode_records, pending_runs
from kanalony.segments.writer import SegmentWriter

STAGED = ".recovering"  # behind the name of a segment that recovery has not finished


@dataclass
class Adopted:
    """What was done for one dead worker. `events` were recovered from its journal, `lost` are missing between them."""

    worker_id: int
    events: int = 0
    lost: int = 0
    segments: list[str] = field(default_factory=list)
    damaged: list[Damage] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"worker {worker_name(self.worker_id)}: {self.events:,} events recovered from its journal"
        if self.lost:
            text += f", {self.lost:,} lost"
        if self.segments:
            text += f", {len(self.segments)} segments sealed"
        return "\n".join([text, *(f"damaged, copied to quarantine: {damage}" for damage in self.damaged)])


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes] | None]:
    """The file, locked; None when somebody else holds it or it has gone."""
    try:
        file = path.open("rb+")
    except FileNotFoundError:
        yield None
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed or renamed it between the opening and the lock.
            same = os.fstat(file.fileno()).st_ino == path.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            same = False
        yield file if same else None


def journals_in_use(data: DataDirectory) -> list[Path]:
    """Journals that a running worker holds."""
    held = []
    for path in data.journals():
        with _locked(path) as file:
            if file is None and path.exists():
                held.append(path)
    return held


def adopt_journals(data: DataDirectory) -> Iterator[Adopted]:
    """Adopt everything nobody holds, one worker after another. Raises OSError when the disk refuses, FormatError for
    files of a later version; what was not done then is still there."""
    for path in data.journals():
        with _locked(path) as file:
            if file is not None:
                journal = read_journal(path)
                yield _adopt(data, journal.worker_id, journal)
    for path in data.journal.glob("*.new"):
        with _locked(path) as file:
            if file is not None:
                path.unlink()  # a worker died before its journal was ready: it never stored an event
    for path in sorted(data.open.glob("*.lz4")):
        name = SegmentName.parse(path.name)
        if name and not data.journal_of(name.worker_id).exists():
            with _locked(path) as file:
                if file is not None:
                    yield _adopt(data, name.worker_id, None)


def _adopt(data: DataDirectory, worker_id: int, journal: JournalContents | None) -> Adopted:
    """Move one worker's events from open segments and journal to sealed segments. Its journal is locked by the
    caller."""
    adopted = Adopted(worker_id)
    for path in data.open.glob(f"*{STAGED}"):
        if (name := SegmentName.parse(path.name.removesuffix(STAGED))) and name.worker_id == worker_id:
            path.unlink()  # a recovery that died half way: what it copied is still where it came from
    left = segments_of(data.open, worker_id)
    runs = journal.runs if journal else []
    firsts = [name.first_sequence for path in left if (name := SegmentName.parse(path.name))]
    firsts += [journal.watermark + 1] if journal else []
    if firsts:
        covered = _sealed_coverage(data, worker_id, min(firsts))
        with _Copy(data, worker_id, journal, covered) as copy:
            for path in left:
                copy.take_segment(path, adopted)
            for run in pending_runs(runs, worker_id, covered):
                copy.take(run, _received_at(run))
                adopted.events += run.event_count
        adopted.segments = copy.sealed
        end = max(copy.end, journal.watermark + 1 if journal else 0)
        adopted.lost = sum(stop - begin for begin, stop in covered.missing(worker_id, min(firsts), end))
    for path in left:
        path.unlink()  # its frames are durable in sealed segments, its damaged bytes in quarantine
    sync_directory(data.open)
    if journal:
        content = journal.path.read_bytes()
        for start, end, reason in journal.damaged:
            _quarantine(data, journal.path, start, content[start:end])
            adopted.damaged.append(Damage(journal.path, start, end, reason))
        journal.path.unlink()
        sync_directory(data.journal)
    return adopted


def _sealed_coverage(data: DataDirectory, worker_id: int, first_sequence: int) -> Coverage:
    """What the worker's sealed segments hold, from first_sequence on."""
    covered = Coverage()
    paths = segments_of(data.sealed, worker_id)
    ends = [name.first_sequence for path in paths[1:] if (name := SegmentName.parse(path.name))]
    for path, end in zip_longest(paths, ends):
        if end is None or end > first_sequence:
            with Segment(path, sealed=True) as segment:
                for frame in segment.frames():
                    first = frame.prefix.first_sequence
                    covered.add(worker_id, first, first + frame.prefix.event_count)
    return covered


def _received_at(run: Run) -> int:
    """When the first event of a run came, µs since 1970."""
    return int.from_bytes(run.records[RECEIVED_AT : RECEIVED_AT + 8], "little")


class _Copy:
    """Writes runs to staged segments, a new one after each gap in the sequence numbers, and seals them.

    `covered` is what sealed segments hold already; it grows with what is taken. `end` is the sequence number behind the
    last one taken.
    """

    def __init__(self, data: DataDirectory, worker_id: int, journal: JournalContents | None, covered: Coverage) -> None:
        self._data = data
        self._worker_id = worker_id
        self._journal = journal
        self._host = journal.host if journal else ""
        self._ack = journal.ack if journal else 0
        self._covered = covered
        self._writer: SegmentWriter | None = None
        self.end = 0
        self.sealed: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._seal()
        elif self._writer:
            self._writer.abandon()

    def _seal(self) -> None:
        if self._writer:
            self._writer.seal()
            self.sealed.append(self._writer.name)
            self._writer = None

    def take(self, run: Run, created_at: int) -> None:
        """Write a run of records that no sealed segment holds. `created_at` (µs since 1970) names the segment if it
        begins one."""
        if run.first_sequence != self.end:
            self._seal()
        if self._writer is None:
            self._writer = SegmentWriter(
                self._data,
                self._host,
                self._worker_id,
                self._ack,
                run.first_sequence,
                created_at=created_at,
                suffix=STAGED,
            )
        self._writer.add(run.records, run.first_sequence)
        self.end = run.end_sequence
        self._covered.add(self._worker_id, run.first_sequence, run.end_sequence)

    def take_segment(self, path: Path, adopted: Adopted) -> None:
        """Write what is good in an open segment, and copy what is not to quarantine."""
        with Segment(path, sealed=False) as segment:
            if segment.header:
                self._host, self._ack = segment.header.host, segment.header.ack
            name = SegmentName.parse(path.name)
            assert name
            for frame in segment.frames():
                records = frame.records()
                if records is None or decode_records(records, self._worker_id, frame.prefix.first_sequence) is None:
                    segment.note_bad_content(frame)
                    continue
                run = Run(frame.offset, records, frame.prefix.first_sequence, frame.prefix.event_count)
                for part in pending_runs([run], self._worker_id, self._covered):
                    self.take(part, name.created_at)
            content = path.read_bytes()
            if segment.torn and (self._journal is None or segment.next_sequence <= self._journal.watermark):
                # Else the journal still holds these events.
                start = len(content) - segment.torn
                segment.damaged.append(Damage(path, start, len(content), "the last frame is not complete"))
            for damage in segment.damaged:
                _quarantine(self._data, path, damage.start, content[damage.start : damage.end])
            adopted.damaged += segment.damaged


def _quarantine(data: DataDirectory, path: Path, start: int, content: bytes) -> None:
    """Keep the bytes found at an offset of a file that is about to go. Doing it again writes the same file again."""
    if content:
        with (data.quarantine / f"{path.name}.{start}-{start + len(content)}").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # fsync: the copy is durable before the original goes
        sync_directory(data.quarantine)
