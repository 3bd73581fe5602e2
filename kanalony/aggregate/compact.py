"""Sealed segments to the lake, exactly once: start reading here.

A run takes whatever is sealed and not in the lake's record yet, batch by batch. Of each batch it writes the files of
rows, then the entries of the record, then the one commit that makes both true. Whatever dies before the commit has done
nothing: the next run takes the same requests again.
"""

import contextlib
import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kanalony.aggregate.columns import Columns, decompress
from kanalony.aggregate.dedupe import Duplicates, Prints
from kanalony.aggregate.delta import drop_what_is_torn
from kanalony.aggregate.enrich import Enricher
from kanalony.aggregate.lake import Lake
from kanalony.aggregate.ledger import FILE_NAME, Entry, Identity, Record, identity_of, read_lake
from kanalony.aggregate.measures import touched_hours
from kanalony.core.columns import release_memory
from kanalony.durable import sync_directory
from kanalony.errors import FormatError, StorageError
from kanalony.segments.coverage import Coverage
from kanalony.segments.damage import Damage
from kanalony.segments.directory import DataDirectory, in_some_place
from kanalony.segments.locks import open_lock
from kanalony.segments.names import worker_name
from kanalony.segments.quarantine import quarantine
from kanalony.segments.reader import Frame, Segment, UnreadableSegment

_BASE = 160 << 20  # bytes that a run takes without any batch
_BATCH_SHARE = 4  # a batch may take this part of the rest: it is held twice, and the window and old buffers beside it
_WINDOW_SHARE = 16  # what duplicates need may be held between runs when it is at most this part of the memory
_BATCH_MAX = 512 << 20  # columns of text count their bytes with 31 bits; bytes that are no UTF-8 become three
_MERGE_ROWS = 1 << 20
_ROW_SIZE = 2 << 10  # bytes that a row may take while files are merged, about
_VACUUM_INTERVAL = 86400.0  # seconds


@dataclass
class Result:
    """What a run did. `misfits` are values that did not fit their column, by column."""

    segments: int = 0
    requests: int = 0
    repeated: int = 0
    quarantined: int = 0
    events: int = 0
    rows: int = 0
    duplicates: int = 0
    unread_bodies: int = 0
    deleted: int = 0
    misfits: Counter[str] = field(default_factory=Counter)
    damaged: list[Damage] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.segments:,} segments, {self.requests:,} requests, {self.events:,} events: "
        text += f"{self.rows:,} rows, {self.duplicates:,} duplicates"
        for count, what in (
            (self.repeated, "requests that other segments held too"),
            (self.quarantined, "requests in quarantine"),
            (self.unread_bodies, "bodies that could not be read"),
            (self.deleted, "old segments deleted"),
        ):
            text += f"; {count:,} {what}" if count else ""
        if self.misfits:
            told = ", ".join(f"{name}: {count:,}" for name, count in self.misfits.most_common())
            text += f"\nvalues that do not fit their column: {told}"
        return text


def _merge_bounds(batch_size: int) -> tuple[int, int]:
    """How many rows, and bytes uncompressed, a merged file may have: what is merged is sorted in memory."""
    return min(_MERGE_ROWS, batch_size // _ROW_SIZE), batch_size // 4


@contextmanager
def _alone(data: DataDirectory) -> Iterator[None]:
    """Hold the lake's lock. Raises StorageError when another compaction has it."""
    path = data.lake / "compact.lock"
    try:
        data.lake.mkdir(exist_ok=True)
        file = open_lock(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}", "check permissions and free space") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StorageError(
                f"another kanalony compact (process {file.read().strip() or 'unknown'}) is at work on {data.root}",
                "nothing was done; wait for it to end",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


class Compaction:
    """Takes segments into the lake of a data directory for as long as it is open; one at a time."""

    def __init__(self, data: DataDirectory, *, memory: int, keep_segments: float, enricher: Enricher) -> None:
        """`memory` is in bytes and about what all of it may take; `keep_segments` is the age in seconds at
        which segments that are in the lake are deleted.
        """
        self._data = data
        self._memory = memory
        self._keep_segments = keep_segments
        self.enricher = enricher
        self.batch_size = min(max(memory - _BASE, memory // 4) // _BATCH_SHARE, _BATCH_MAX)

    def __enter__(self) -> "Compaction":
        """Raises StorageError when another one is at work, FormatError when the lake cannot be read, or has
        lost a part.
        """
        self._lock = _alone(self._data)
        self._lock.__enter__()
        try:
            drop_what_is_torn(self._data.lake / "events")
            self.record = Record(self._data.lake / FILE_NAME, read_lake(self._data.lake))
            self.record.check_void({name for _, (name, _, _) in self._sealed()})
            self.lake = Lake(self._data.lake / "events")
            sync_directory(self._data.root)
            self.record.begin(self.lake.id)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        self.duplicates = Duplicates(self.lake)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.__exit__(None, None, None)

    def waiting(self) -> list[Path]:
        """Sealed segments that are not in the lake, in order of their names, so of their start."""
        found = {identity: path for path, identity in self._sealed() if identity not in self.record.complete}
        return sorted(found.values(), key=lambda path: path.name)

    def _sealed(self) -> Iterator[tuple[Path, Identity]]:
        for place in self._data.places():
            for path in place.sealed.glob("*.lz4"):
                with contextlib.suppress(FileNotFoundError):
                    yield path, identity_of(path)

    def run(self, paths: list[Path], progress: Callable[[int], object], stopping: Callable[[], bool]) -> Result:
        """Take segments into the lake, merge what has become small files, delete what is too old. `progress` is told
        the requests that were dealt with since it was called last; once `stopping` says so, the run ends with a
        batch. After an error this is not to be used again: open another one, which goes on where the lake is.
        """
        result = self._take(paths, progress, stopping)
        while not stopping() and self.lake.merge(*_merge_bounds(self.batch_size)):
            self.duplicates.forget()
        self._delete_old(result)
        self._vacuum()
        # Rollups come next, which need as much themselves.
        if self.duplicates.size > self._memory // _WINDOW_SHARE:
            self.duplicates.forget()
        _release_memory()
        return result

    def _take(self, paths: list[Path], progress: Callable[[int], object], stopping: Callable[[], bool]) -> Result:
        """Take segments into the lake. The memory of batches is given back with the end of this."""
        run = _Run(self, progress)
        for path in paths:
            if stopping():
                break
            segment = Segment(path, sealed=True)
            try:
                segment.__enter__()
            except FileNotFoundError:
                continue
            except (FormatError, OSError) as error:
                run.result.damaged.append(Damage(path, 0, 0, str(error)))
                continue
            # From here on an error is the lake's or its disk's, and ends the run.
            try:
                run.take(segment, self._data)
            except UnreadableSegment as error:
                run.result.damaged.append(Damage(path, 0, 0, str(error)))  # the next run tries again
            finally:
                segment.__exit__()
        run.flush()
        return run.result

    def _vacuum(self) -> None:
        """Once a day."""
        marker = self._data.lake / "vacuumed"
        if not marker.exists():
            marker.touch()
        elif time.time() - marker.stat().st_mtime > _VACUUM_INTERVAL:
            self.lake.vacuum()
            marker.touch()

    def _delete_old(self, result: Result) -> None:
        """Delete segments that are in the lake, durably, and older than they are to be kept."""
        before = time.time() - self._keep_segments
        for path, identity in self._sealed():
            if identity in self.record.complete and identity[2] < before * 1e9:
                path.unlink(missing_ok=True)
                result.deleted += 1


class _Run:
    """The batches of a run."""

    def __init__(self, compaction: Compaction, progress: Callable[[int], object]) -> None:
        self._lake = compaction.lake
        self._record = compaction.record
        self._duplicates = compaction.duplicates
        self._enricher = compaction.enricher
        self._columns = Columns(compaction.batch_size)
        self._covered = compaction.record.covered
        self._progress = progress
        self._entries: list[Entry] = []
        self._spans: list[tuple[Entry, int]] = []  # whose the rows are: entry, and where its part ends
        self.result = Result()

    def take(self, segment: Segment, data: DataDirectory) -> None:
        """Everything that is good in a segment and was not met before; what is damaged goes to quarantine. Raises
        UnreadableSegment when the disk does not give it.
        """
        self._identity = identity_of(segment)
        # What a run that was killed has taken of it, and committed.
        before = self._record.begun.get(self._identity, [])
        taken = sum(entry.read + entry.repeated for entry in before)
        own = Coverage()
        for entry in before:
            for first, end in [*entry.ranges, *entry.repeats]:
                own.add(int(entry.worker, 16), first, end)
        trailer = segment.read_trailer()
        claimed = (trailer.first_sequence, trailer.first_sequence + trailer.request_count) if trailer else None
        self._begin(segment).claimed = claimed
        framed = 0
        firsts, ends = [], []
        for frame in segment.frames():
            prefix = frame.prefix
            firsts.append(prefix.first_sequence)
            ends.append(prefix.first_sequence + prefix.request_count)
            framed += prefix.request_count
            requests = self._take_frame(segment, frame, own)
            if requests is None:
                segment.note_bad_content(frame)
            else:
                taken += requests
            self._progress(prefix.request_count)
        self._quarantine(segment, data)
        entry = self._entries[-1]
        entry.torn = not claimed
        if not claimed:
            end = max([segment.announced, *ends])
            first = min([segment.header.first_sequence if segment.header else end, *firsts, end])
            claimed = first, end
        count = claimed[1] - claimed[0]
        entry.claimed = claimed
        entry.framed = framed
        entry.quarantined = max(0, count - taken) if segment.damaged else 0
        entry.accepted = taken + entry.quarantined if segment.damaged else count
        entry.complete = True
        self.result.segments += 1
        self.result.damaged += segment.damaged

    def _begin(self, segment: Segment) -> Entry:
        name, size, modified = self._identity
        worker = worker_name(segment.worker_id or 0)
        self._entries.append(Entry(self._lake.batch + 1, name, size, modified, worker))
        return self._entries[-1]

    def _take_frame(self, segment: Segment, frame: Frame, own: Coverage) -> int | None:
        """The requests of a frame that were not met before. How many more of it are dealt with now; None when it is not
        what it should be. `own` are those that an earlier run has dealt with.
        """
        worker, first = frame.prefix.worker_id, frame.prefix.first_sequence
        count = frame.prefix.request_count
        content = decompress(frame)
        if content is None:
            return None
        taken = 0
        position = first
        for begin, stop in [*self._covered.missing(worker, first, first + count), (first + count, first + count)]:
            # What stands before was met: in another segment, unless it is our own.
            entry = self._entries[-1]
            repeats = own.missing(worker, position, begin) if position < begin else []
            entry.repeats += repeats
            entry.repeated += sum(end - start for start, end in repeats)
            taken += sum(end - start for start, end in repeats)
            position = stop
            while begin < stop:
                added = self._columns.add(content, worker, first, count, begin, stop)
                if added is None:
                    return None
                entry = self._entries[-1]
                entry.read += added.end - begin
                taken += added.end - begin
                entry.events += added.events
                entry.unread_bodies += added.unread
                entry.ranges.append((begin, added.end))
                self._covered.add(worker, begin, added.end)
                self._spans.append((entry, self._columns.rows))
                begin = added.end
                if self._columns.is_full:
                    self.flush()
                    self._begin(segment)
        return taken

    def _quarantine(self, segment: Segment, data: DataDirectory) -> None:
        for damage in segment.damaged:
            in_some_place(data.places(), partial(quarantine, damage=damage, content=segment.bytes_of(damage)))

    def flush(self) -> None:
        """Commit what has been collected."""
        if not self._entries:
            return
        batch, misfits = self._columns.finish()
        prints = Prints.of(batch["fingerprint"], batch["receivedAt"])
        duplicates = self._duplicates.find(prints)
        kept = np.ones(batch.num_rows, bool)
        kept[duplicates] = False
        events = _kept(batch, kept) if len(duplicates) else pa.Table.from_batches([batch])
        start = 0
        received = batch["receivedAt"].cast(pa.int64()).to_numpy()
        for entry, end in self._spans:
            rows = int(np.count_nonzero(kept[start:end]))
            entry.rows += rows
            entry.duplicates += end - start - rows
            entry.touched = sorted({*entry.touched, *touched_hours(received[start:end][kept[start:end]])})
            start = end
        if any(entry.events != entry.rows + entry.duplicates for entry in self._entries):
            raise RuntimeError("a batch does not hold the events that were read for it")
        files = self._lake.write(self._enricher.add(events))
        self._record.add(self._entries)
        self._lake.commit(files, self._entries[0].batch)
        self._duplicates.add(prints, kept, {file.path for file in files})
        for entry in self._entries:
            self.result.requests += entry.read
            self.result.repeated += entry.repeated
            self.result.quarantined += entry.quarantined
            self.result.events += entry.events
            self.result.rows += entry.rows
            self.result.duplicates += entry.duplicates
            self.result.unread_bodies += entry.unread_bodies
        self.result.misfits += misfits
        self._entries, self._spans = [], []
        del batch, events
        _release_memory()


def _release_memory() -> None:
    """Give back to the system what batches do not use any more."""
    release_memory()
    pa.default_memory_pool().release_unused()


def _kept(batch: pa.RecordBatch, kept: npt.NDArray[np.bool_]) -> pa.Table:
    """The events that are kept. A request's body stands with the first of them: it came with the first of all its
    events, which may be a duplicate when others are not.
    """
    bodies = batch["body"]
    has_body = pc.is_valid(bodies).to_numpy(zero_copy_only=False)
    order = np.arange(batch.num_rows)
    workers, sequences = batch["worker"], batch["sequence"].to_numpy()
    for row in np.flatnonzero(has_body & ~kept).tolist():
        other = row + 1
        while other < len(order) and sequences[other] == sequences[row] and workers[other] == workers[row]:
            if kept[other]:
                order[other] = row
                break
            other += 1
    number = batch.schema.get_field_index("body")
    events = pa.Table.from_batches([batch]).remove_column(number).filter(pa.array(kept))
    return events.add_column(number, "body", bodies.take(pa.array(order[kept])))
