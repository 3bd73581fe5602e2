"""Adopts what dead workers left: seals their open segments, and writes their journals' pending requests to segments.

Every step may be repeated after a crash at any point: worker id and sequence number name a request, and what a sealed
segment already holds is not written again. Nothing is deleted that is not durable elsewhere; damaged bytes are copied
to quarantine first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Self

from kanalony import durable
from kanalony.core.journal import RECEIVED_AT_OFFSET
from kanalony.errors import FormatError
from kanalony.segments.coverage import Coverage
from kanalony.segments.damage import Damage
from kanalony.segments.directory import DataDirectory, in_some_place
from kanalony.segments.journal import JournalContents, RecordRange, read_journal
from kanalony.segments.locks import LOCK_MODE, locked
from kanalony.segments.names import YOUNG_JOURNAL, SegmentName, segments_of, worker_name
from kanalony.segments.quarantine import quarantine
from kanalony.segments.reader import Segment
from kanalony.segments.writer import SegmentWriter

STAGED = ".recovering"
"""Suffix of a segment that recovery has not finished."""


@dataclass
class Adopted:
    """The result for one dead worker.

    Attributes:
        worker_id: The worker.
        requests: Number of requests recovered from its journal.
        lost: Number of sequence numbers that neither journal nor segments hold.
        segments: Names of the segments that were sealed.
        damaged: Damaged ranges, copied to quarantine.
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
def _recovering(data: DataDirectory) -> Iterator[None]:
    """Holds the recovery lock of a data directory; waits for it.

    Two recoveries would take each other's unfinished copies for those of a dead one.
    """
    while True:
        data.recovery_lock.touch(mode=LOCK_MODE)
        with locked(data.recovery_lock, wait=True) as is_locked:
            if is_locked:
                yield
                return


def adopt_journals(data: DataDirectory) -> Iterator[Adopted]:
    """Adopts every journal and open segment that no process holds, one worker after another.

    Waits while another process does the same.

    Yields:
        The result for each worker.

    Raises:
        FormatError: Some files are no journals or segments, or of a later version. They stay as they are; raised for
            the first of them, after all others are adopted.
        OSError: The disk refuses. What was not adopted is still there.
    """
    foreign: FormatError | None = None
    with _recovering(data):
        _clear_unfinished(data)
        waiting = data.journals()
        while waiting:
            refused: OSError | None = None
            refusing = []
            for path in waiting:
                with locked(path) as is_locked:
                    try:
                        if is_locked:
                            journal = read_journal(path)
                            yield _adopt(data, journal, _left_open(data, journal.worker_id))
                    except FormatError as error:
                        foreign = foreign or error
                    except OSError as error:
                        refused = error
                        refusing.append(path)
            if refused and len(refusing) == len(waiting):
                raise refused
            waiting = refusing  # adopting the others has freed disk space
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
    """Adopts journals of dead workers until at most `leave` of them are left.

    A worker does this before it creates its journal, so that workers that die fast do not fill the disk. The worker
    cannot serve before it is done, so it does not wait for another process. The lock of a journal is enough, because
    only what the journal holds is sealed; open segments are left to `adopt_journals`. Files that are no journals or of
    a later version stay as they are.

    Yields:
        The result for each worker.

    Raises:
        OSError: The disk refused; raised for the last such journal, after all others are adopted.
    """
    refused: OSError | None = None
    _clear_unfinished(data)
    for path in data.journals():
        with locked(path) as is_locked:
            if is_locked and leave > 0:
                leave -= 1
            elif is_locked:
                try:
                    yield _adopt(data, read_journal(path), [])
                except FormatError:
                    pass
                except OSError as error:
                    refused = error
    if refused:
        raise refused


def _clear_unfinished(data: DataDirectory) -> None:
    """Deletes young journals of workers that died before these were ready: they hold no requests."""
    for place in data.places():
        for path in place.journal.glob(f"*{YOUNG_JOURNAL}"):
            with locked(path) as is_locked:
                if is_locked:
                    path.unlink()


def _left_open(data: DataDirectory, worker_id: int) -> list[Path]:
    """Returns a dead worker's open segments. A locked one has a live writer, even if its journal is not known here."""
    left = []
    for path in segments_of((place.open for place in data.places()), worker_id):
        with locked(path) as is_locked:
            if is_locked and SegmentName.parse(path.name):
                left.append(path)
    return left


def _open_segments(data: DataDirectory) -> list[Path]:
    return [path for place in data.places() for path in place.open.glob("*.lz4")]


def _adopt(data: DataDirectory, of: JournalContents | int, left: list[Path]) -> Adopted:
    """Moves one worker's requests to sealed segments.

    Args:
        data: The data directory.
        of: The worker's journal, locked by the caller; or the worker id when it has none.
        left: The worker's open segments.
    """
    journal, worker_id = (None, of) if isinstance(of, int) else (of, of.worker_id)
    damaged = journal.damaged if journal else []
    content = journal.path.read_bytes() if journal and damaged else b""
    for damage in damaged:
        in_some_place(data.places(), partial(quarantine, damage=damage, content=content[damage.start : damage.end]))
    adopted = in_some_place(data.places(), lambda place: _seal_all(data, place, worker_id, left, journal))
    adopted.damaged += damaged
    for path in left:
        durable.remove(path)  # its frames are durable in sealed segments, its damaged bytes in quarantine
    if journal:
        durable.remove(journal.path)
    return adopted


def _seal_all(
    data: DataDirectory, place: DataDirectory, worker_id: int, left: list[Path], journal: JournalContents | None
) -> Adopted:
    """Writes to sealed segments in `place` what open segments and the journal hold, and no sealed segment yet."""
    adopted = Adopted(worker_id)
    firsts = [name.first_sequence for path in left if (name := SegmentName.parse(path.name))]
    firsts += [journal.watermark + 1] if journal else []
    if not firsts:
        return adopted  # another process has adopted it
    covered = _sealed_coverage(data, worker_id, min(firsts))
    with _Copy(place, worker_id, journal, covered) as copy:
        for path in left:
            copy.take_segment(path, adopted)
        for records in covered.missing_records(worker_id, journal.pending if journal else []):
            copy.take(records, _received_at(records))
            adopted.requests += records.request_count
    adopted.segments = copy.sealed
    end = max(copy.end, journal.watermark + 1 if journal else 0)
    adopted.lost = sum(stop - begin for begin, stop in covered.missing(worker_id, min(firsts), end))
    return adopted


def seal_abandoned(data: DataDirectory, path: Path) -> None:
    """Seals what is durable in an open segment that its writer, still running, has abandoned: copies it to a new one.

    A file that is missing has been sealed already.

    Raises:
        OSError: Every disk refuses.
    """
    name = SegmentName.parse(path.name)
    with _recovering(data):
        if name and path.exists():
            in_some_place(data.places(), lambda place: _seal_all(data, place, name.worker_id, [path], None))
            durable.remove(path)


def _sealed_coverage(data: DataDirectory, worker_id: int, first_sequence: int) -> Coverage:
    """Returns what the worker's sealed segments hold from first_sequence on."""
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


def _received_at(records: RecordRange) -> int:
    """Returns when the first request was received, µs since 1970."""
    return int.from_bytes(records.content[RECEIVED_AT_OFFSET : RECEIVED_AT_OFFSET + 8], "little")


class _Copy:
    """Writes records to staged segments in one place, a new one after each gap in the sequence numbers, and seals them.

    `covered` is what sealed segments hold already; it grows with what is taken. `end` is the sequence number after the
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
            path.unlink()  # left by a recovery that died: what it copied is still in the original

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

    def take(self, records: RecordRange, created_at: int) -> None:
        """Writes records that no sealed segment holds.

        Args:
            records: The records.
            created_at: µs since 1970; names the segment if the records begin one.
        """
        if records.first_sequence != self.end:
            self._seal()
        if self._writer is None:
            self._writer = SegmentWriter(
                self._place,
                self._host,
                self._worker_id,
                self._ack,
                records.first_sequence,
                created_at=created_at,
                suffix=STAGED,
            )
        self._writer.add(records.content, records.first_sequence)
        self.end = records.end_sequence
        self._covered.add(self._worker_id, records.first_sequence, records.end_sequence)

    def take_segment(self, path: Path, adopted: Adopted) -> None:
        """Writes the good frames of an open segment, and copies the rest to quarantine."""
        with Segment(path, sealed=False) as segment:
            if segment.header:
                self._host, self._ack = segment.header.host, segment.header.ack
            name = SegmentName.parse(path.name)
            assert name
            for frame in segment.frames():
                content = frame.records()
                if content is None or frame.requests() is None:
                    segment.note_bad_content(frame)
                    continue
                whole = RecordRange(content, frame.prefix.first_sequence, frame.prefix.request_count)
                for records in self._covered.missing_records(self._worker_id, [whole]):
                    self.take(records, name.created_at)
            content = path.read_bytes() if segment.torn or segment.damaged else b""
            # Otherwise the journal still holds the requests of the torn tail, or a segment sealed from it does.
            if (
                segment.torn
                and (self._journal is None or segment.next_sequence <= self._journal.watermark)
                and self._covered.missing(self._worker_id, segment.next_sequence, segment.next_sequence + 1)
            ):
                start = len(content) - segment.torn
                segment.damaged.append(Damage(path, start, len(content), "the last frame is incomplete"))
            for damage in segment.damaged:
                quarantine(self._place, damage, content[damage.start : damage.end])
            adopted.damaged += segment.damaged
