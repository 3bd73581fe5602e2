"""Adopting what dead workers left: their open segments are sealed, their journals' pending requests written to
segments.

Every step may be repeated after a crash at any point: requests are named by worker and sequence number, and what a
segment already holds is not written again. Nothing is deleted that is not durable elsewhere; damaged bytes are copied
to quarantine first.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Self, TypeVar

from kanalony.core.journal import RECEIVED_AT_OFFSET
from kanalony.errors import FormatError
from kanalony.segments.journal import JournalContents, Run, read_journal
from kanalony.segments.names import DataDirectory, SegmentName, segments_of, sync_directory, worker_name
from kanalony.segments.reader import Coverage, Damage, Segment, pending_runs
from kanalony.segments.writer import SegmentWriter

_T = TypeVar("_T")

STAGED = ".recovering"  # behind the name of a segment that recovery has not finished


@dataclass
class Adopted:
    """What was done for one dead worker. `requests` were recovered from its journal, `lost` are missing between
    them.
    """

    worker_id: int
    requests: int = 0
    lost: int = 0
    segments: list[str] = field(default_factory=list)
    damaged: list[Damage] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"worker {worker_name(self.worker_id)}: {self.requests:,} requests recovered from its journal"
        if self.lost:
            text += f", {self.lost:,} lost"
        if self.segments:
            text += f", {len(self.segments)} segments sealed"
        return "\n".join([text, *(f"damaged, copied to quarantine: {damage}" for damage in self.damaged)])


@contextmanager
def _locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a file's lock; false when somebody else has it, unless told to wait, or when the file has gone."""
    try:
        file = path.open("rb+")
    except FileNotFoundError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Its last holder may have removed it between the opening and the lock.
            same = os.fstat(file.fileno()).st_ino == path.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            same = False
        yield same


@contextmanager
def _recovering(data: DataDirectory) -> Iterator[None]:
    """Be the only one who seals what others left in a data directory: two would take each other's half-written copies
    for a dead recovery's.
    """
    while True:
        data.recovery_lock.touch(mode=0o600)  # read permission is enough to lock a file
        with _locked(data.recovery_lock, wait=True) as same:
            if same:
                yield
                return


def adopt_journals(data: DataDirectory) -> Iterator[Adopted]:
    """Adopt everything nobody holds, one worker after another; waits while another process does the same.

    Raises OSError when the disk refuses: what was not done then is still there. Files that are not ours or of a later
    version are left alone, and FormatError is raised for the first of them when all others are adopted.
    """
    foreign: FormatError | None = None
    with _recovering(data):
        _clear_unfinished(data)
        waiting = data.journals()
        while waiting:
            refused: OSError | None = None
            refusing = []
            for path in waiting:
                with _locked(path) as free:
                    try:
                        if free:
                            journal = read_journal(path)
                            yield _adopt(data, journal, _left_open(data, journal.worker_id))
                    except FormatError as error:
                        foreign = foreign or error
                    except OSError as error:
                        refused = error
                        refusing.append(path)
            if refused and len(refusing) == len(waiting):
                raise refused
            waiting = refusing  # what the others took of the disk is free now
        orphans = {name.worker_id for path in _open_segments(data) if (name := SegmentName.parse(path.name))}
        workers = {path.stem for path in data.journals()}
        for worker_id in sorted(orphans):
            try:
                if worker_name(worker_id) not in workers:
                    yield _adopt(data, worker_id, _left_open(data, worker_id))
            except FormatError as error:
                foreign = foreign or error
    if foreign:
        raise foreign


def adopt_surplus(data: DataDirectory, leave: int) -> Iterator[Adopted]:
    """Adopt dead workers' journals until at most `leave` of them are left: before another one is made, so that workers
    that die fast do not fill the disk.

    Their open segments stay for `adopt_journals`, and no other process is waited for, since a worker cannot serve
    before this is done: the lock of a journal is enough while only what the journal holds is sealed. Files that are not
    ours are left alone. Raises OSError of the last journal that the disk refused to seal, when all others are adopted.
    """
    refused: OSError | None = None
    _clear_unfinished(data)
    for path in data.journals():
        with _locked(path) as free:
            if free and leave > 0:
                leave -= 1
            elif free:
                try:
                    yield _adopt(data, read_journal(path), [])
                except FormatError:
                    pass
                except OSError as error:
                    refused = error
    if refused:
        raise refused


def _clear_unfinished(data: DataDirectory) -> None:
    """Remove what workers left that died before their journals were ready: they never stored a request."""
    for place in data.places():
        for path in place.journal.glob("*.new"):
            with _locked(path) as free:
                if free:
                    path.unlink()


def _left_open(data: DataDirectory, worker_id: int) -> list[Path]:
    """A dead worker's open segments; those that are locked have a living writer, whatever it looks like from here."""
    left = []
    for path in segments_of((place.open for place in data.places()), worker_id):
        with _locked(path) as free:
            if free and SegmentName.parse(path.name):
                left.append(path)
    return left


def _open_segments(data: DataDirectory) -> list[Path]:
    return [path for place in data.places() for path in place.open.glob("*.lz4")]


def in_some_place(data: DataDirectory, step: Callable[[DataDirectory], _T]) -> _T:
    """Do a step in the first place that takes it. Raises OSError of the last one when none does."""
    refused: OSError | None = None
    for place in data.places():
        try:
            return step(place)
        except OSError as error:
            refused = error
    assert refused
    raise refused


def _adopt(data: DataDirectory, of: JournalContents | int, left: list[Path]) -> Adopted:
    """Move one worker's requests from its journal, or from none when only its id is known, and from the open segments
    `left` to sealed segments. The journal is locked by the caller.
    """
    journal, worker_id = (None, of) if isinstance(of, int) else (of, of.worker_id)
    damaged = []
    if journal and journal.damaged:
        content = journal.path.read_bytes()
        for start, end, reason in journal.damaged:
            in_some_place(data, lambda place: quarantine(place, journal.path, start, content[start:end]))  # noqa: B023
            damaged.append(Damage(journal.path, start, end, reason))
    adopted = in_some_place(data, lambda place: _seal_all(data, place, worker_id, left, journal))
    adopted.damaged += damaged
    for path in left:
        _remove(path)  # its frames are durable in sealed segments, its damaged bytes in quarantine
    if journal:
        _remove(journal.path)
    return adopted


def _seal_all(
    data: DataDirectory, place: DataDirectory, worker_id: int, left: list[Path], journal: JournalContents | None
) -> Adopted:
    """Write to sealed segments in `place` what is in open segments and the journal and in no sealed one yet."""
    adopted = Adopted(worker_id)
    firsts = [name.first_sequence for path in left if (name := SegmentName.parse(path.name))]
    firsts += [journal.watermark + 1] if journal else []
    if not firsts:
        return adopted  # what was here has gone
    covered = _sealed_coverage(data, worker_id, min(firsts))
    with _Copy(place, worker_id, journal, covered) as copy:
        for path in left:
            copy.take_segment(path, adopted)
        for run in pending_runs(journal.runs if journal else [], worker_id, covered):
            copy.take(run, _received_at(run))
            adopted.requests += run.request_count
    adopted.segments = copy.sealed
    end = max(copy.end, journal.watermark + 1 if journal else 0)
    adopted.lost = sum(stop - begin for begin, stop in covered.missing(worker_id, min(firsts), end))
    return adopted


def seal_abandoned(data: DataDirectory, path: Path) -> None:
    """Seal what is durable in an open segment that its writer, still running, has given up: copy it to a new one.
    Raises OSError when the disk still refuses. A file that is not there any more is done.
    """
    name = SegmentName.parse(path.name)
    with _recovering(data):
        if name and path.exists():
            in_some_place(data, lambda place: _seal_all(data, place, name.worker_id, [path], None))
            _remove(path)


def _remove(path: Path) -> None:
    path.unlink()
    sync_directory(path.parent)


def _sealed_coverage(data: DataDirectory, worker_id: int, first_sequence: int) -> Coverage:
    """What the worker's sealed segments hold, from first_sequence on."""
    covered = Coverage()
    paths = segments_of((place.sealed for place in data.places()), worker_id)
    ends = [name.first_sequence for path in paths[1:] if (name := SegmentName.parse(path.name))]
    for path, end in zip_longest(paths, ends):
        if end is None or end > first_sequence:
            with Segment(path, sealed=True) as segment:
                for frame in segment.frames():
                    first = frame.prefix.first_sequence
                    covered.add(worker_id, first, first + frame.prefix.request_count)
    return covered


def _received_at(run: Run) -> int:
    """When the first request of a run came, µs since 1970."""
    return int.from_bytes(run.records[RECEIVED_AT_OFFSET : RECEIVED_AT_OFFSET + 8], "little")


class _Copy:
    """Writes runs to staged segments in one place, a new one after each gap in the sequence numbers, and seals them.

    `covered` is what sealed segments hold already; it grows with what is taken. `end` is the sequence number behind the
    last one taken.
    """

    def __init__(
        self, place: DataDirectory, worker_id: int, journal: JournalContents | None, covered: Coverage
    ) -> None:
        self._place = place
        self._worker_id = worker_id
        self._journal = journal
        self._host = journal.host if journal else ""
        self._ack = journal.ack if journal else 0
        self._covered = covered
        self._writer: SegmentWriter | None = None
        self.end = 0
        self.sealed: list[str] = []
        for path in place.open.glob(f"*_{worker_name(worker_id)}_*{STAGED}"):
            path.unlink()  # a recovery that died half way: what it copied is still where it came from

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
        begins one.
        """
        if run.first_sequence != self.end:
            self._seal()
        if self._writer is None:
            self._writer = SegmentWriter(
                self._place,
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
                if records is None or frame.requests() is None:
                    segment.note_bad_content(frame)
                    continue
                run = Run(records, frame.prefix.first_sequence, frame.prefix.request_count)
                for part in pending_runs([run], self._worker_id, self._covered):
                    self.take(part, name.created_at)
            content = path.read_bytes() if segment.torn or segment.damaged else b""
            # Else the journal still holds these requests, or a sealed segment does that was made of it.
            if (
                segment.torn
                and (self._journal is None or segment.next_sequence <= self._journal.watermark)
                and self._covered.missing(self._worker_id, segment.next_sequence, segment.next_sequence + 1)
            ):
                start = len(content) - segment.torn
                segment.damaged.append(Damage(path, start, len(content), "the last frame is not complete"))
            for damage in segment.damaged:
                quarantine(self._place, path, damage.start, content[damage.start : damage.end])
            adopted.damaged += segment.damaged


def quarantine(data: DataDirectory, path: Path, start: int, content: bytes) -> None:
    """Keep the bytes found at an offset of a file that is about to go. Doing it again writes the same file again."""
    if content:
        with (data.quarantine / f"{path.name[:200]}.{start}-{start + len(content)}").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # fsync: the copy is durable before the original goes
        sync_directory(data.quarantine)
