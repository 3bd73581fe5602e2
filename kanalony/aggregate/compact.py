"""Moves sealed segments to the lake, exactly once. Start reading the offline half here.

A run takes the sealed segments that the manifest does not have yet, batch by batch. For each batch it writes the files
of rows, then the entries of the manifest, then the one commit that makes both take effect. A run that dies before the
commit has done nothing: the next run takes the same requests again.
"""

import contextlib
import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kanalony.aggregate.columns import Columns, decompress
from kanalony.aggregate.dedupe import Deduplicator, Fingerprints
from kanalony.aggregate.delta import drop_torn_tail
from kanalony.aggregate.enrich import Enricher
from kanalony.aggregate.lake import Lake
from kanalony.aggregate.limits import DEFAULT, Limits
from kanalony.aggregate.manifest import FILE_NAME, Entry, Identity, Manifest, Range, identity_of, read_lake
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
from kanalony.units import DAY, SECOND

_WINDOW_SHARE = 16  # fingerprints are kept between runs when they take at most one part in this many of the memory
_VACUUM_INTERVAL = DAY / SECOND  # seconds


@dataclass
class Result:
    """What a run did.

    Attributes:
        segments: Segments that were read to their end.
        requests: Requests that were read from them.
        repeated: Requests that another segment had brought before.
        quarantined: Requests in damaged ranges.
        events: Events in the requests.
        rows: Events that became rows of the lake.
        duplicates: Events that are duplicates of others.
        unread_bodies: Bodies that could not be read.
        deleted: Segments that were deleted because of their age.
        cast_failures: Values that did not fit the type of their column, by column.
        damaged: The damage that was met.
    """

    segments: int = 0
    requests: int = 0
    repeated: int = 0
    quarantined: int = 0
    events: int = 0
    rows: int = 0
    duplicates: int = 0
    unread_bodies: int = 0
    deleted: int = 0
    cast_failures: Counter[str] = field(default_factory=Counter)
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
        if self.cast_failures:
            by_column = ", ".join(f"{name}: {count:,}" for name, count in self.cast_failures.most_common())
            text += f"\nvalues that do not fit their column: {by_column}"
        return text


@contextmanager
def _locked(data: DataDirectory) -> Iterator[None]:
    """Holds the lake's lock.

    Raises:
        StorageError: Another compaction holds it, or it cannot be written.
    """
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
    """Moves segments to the lake of a data directory while it is open. Only one can be open at a time.

    After an error, open another one: it continues where the lake is.

    Attributes:
        lake: The table of events.
        manifest: Which requests are in it.
        deduplicator: The fingerprints of recent events.
    """

    def __init__(
        self,
        data: DataDirectory,
        *,
        memory: int,
        keep_segments: float,
        enricher: Enricher,
        limits: Limits = DEFAULT,
    ) -> None:
        """Prepares a compaction; `with` opens it.

        Args:
            data: The data directory.
            memory: Bytes that all of it may take, about.
            keep_segments: The age in seconds at which segments that are in the lake are deleted.
            enricher: Adds the derived columns.
            limits: For tests.
        """
        self._data = data
        self._memory = memory
        self._keep_segments = keep_segments
        self._limits = limits
        self.enricher = enricher
        self.batch_size = limits.batch_size(memory)

    def __enter__(self) -> "Compaction":
        """Opens the lake.

        Raises:
            StorageError: Another compaction is open.
            FormatError: The lake cannot be read, or has lost a part.
        """
        with ExitStack() as stack:
            stack.enter_context(_locked(self._data))
            drop_torn_tail(self._data.lake / "events")
            self.manifest = Manifest(self._data.lake / FILE_NAME, read_lake(self._data.lake))
            self.manifest.check_void({identity.name for _, identity in self._sealed()})
            self.lake = Lake(self._data.lake / "events", self._limits)
            sync_directory(self._data.root)
            self.manifest.begin(self.lake.id)
            self.deduplicator = Deduplicator(self.lake)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def waiting(self) -> list[Path]:
        """Returns the sealed segments that are not in the lake, in order of their names, that is, of their start."""
        found = {identity: path for path, identity in self._sealed() if identity not in self.manifest.complete}
        return sorted(found.values(), key=lambda path: path.name)

    def _sealed(self) -> Iterator[tuple[Path, Identity]]:
        for place in self._data.places():
            for path in place.sealed.glob("*.lz4"):
                with contextlib.suppress(FileNotFoundError):
                    yield path, identity_of(path)

    def run(self, paths: list[Path], progress: Callable[[int], object], stopping: Callable[[], bool]) -> Result:
        """Moves segments to the lake, merges small files, and deletes segments that are too old.

        Args:
            paths: Sealed segments.
            progress: Called with the number of requests that were processed since the last call.
            stopping: Returns whether to stop; the run then ends with a batch.

        Raises:
            StorageError: The disk refuses.
            FormatError: A file of the lake cannot be read.
            OSError: A file of the lake, the manifest or quarantine cannot be written.
        """
        result = self._take(paths, progress, stopping)
        while not stopping() and self.lake.merge(*self._limits.merge_bounds(self._memory)):
            self.deduplicator.forget()
        self._delete_old(result)
        self._vacuum()
        # The rollups come next, and need as much memory.
        if self.deduplicator.size > self._memory // _WINDOW_SHARE:
            self.deduplicator.forget()
        _release_memory()
        return result

    def _take(self, paths: list[Path], progress: Callable[[int], object], stopping: Callable[[], bool]) -> Result:
        """Moves segments to the lake. The memory of batches is free when this returns."""
        batches = _Batches(self, progress)
        for path in paths:
            if stopping():
                break
            with ExitStack() as stack:
                try:
                    segment = stack.enter_context(Segment(path, sealed=True))
                except FileNotFoundError:
                    continue
                except (FormatError, OSError) as error:
                    batches.result.damaged.append(Damage(path, 0, 0, str(error)))
                    continue
                # From here on an OSError comes from the lake or its disk, and ends the run.
                try:
                    batches.take(segment, self._data)
                except UnreadableSegment as error:
                    batches.result.damaged.append(Damage(path, 0, 0, str(error)))  # the next run tries again
        batches.flush()
        return batches.result

    def _vacuum(self) -> None:
        """Deletes old versions of the lake, once a day."""
        marker = self._data.lake / "vacuumed"
        if not marker.exists():
            marker.touch()
        elif time.time() - marker.stat().st_mtime > _VACUUM_INTERVAL:
            self.lake.vacuum()
            marker.touch()

    def _delete_old(self, result: Result) -> None:
        """Deletes segments that are in the lake, durably, and older than they are to be kept."""
        before = time.time() - self._keep_segments
        for path, identity in self._sealed():
            if identity in self.manifest.complete and identity.modified < before * 1e9:
                path.unlink(missing_ok=True)
                result.deleted += 1


@dataclass
class _Span:
    """Rows of a batch that came from one segment: they end before row `end`, and begin where the last span ends."""

    entry: Entry
    end: int


class _Batches:
    """Collects the events of segments, and commits them batch by batch."""

    def __init__(self, compaction: Compaction, progress: Callable[[int], object]) -> None:
        self._lake = compaction.lake
        self._manifest = compaction.manifest
        self._deduplicator = compaction.deduplicator
        self._enricher = compaction.enricher
        self._columns = Columns(compaction.batch_size)
        self._covered = compaction.manifest.covered
        self._progress = progress
        self._entries: list[Entry] = []
        self._spans: list[_Span] = []
        self.result = Result()

    def take(self, segment: Segment, data: DataDirectory) -> None:
        """Takes all sound requests of a segment that are not in the lake yet; copies damaged ranges to quarantine.

        Raises:
            UnreadableSegment: The disk does not return the segment's bytes.
        """
        self._identity = identity_of(segment)
        # What a run that was killed has read of it, and committed.
        before = self._manifest.begun.get(self._identity, [])
        taken = sum(entry.read + entry.repeated for entry in before)
        own = Coverage()
        for entry in before:
            for first, end in [*entry.ranges, *entry.repeats]:
                own.add(entry.worker_id, first, end)
        trailer = segment.read_trailer()
        claimed = (trailer.first_sequence, trailer.first_sequence + trailer.request_count) if trailer else None
        self._begin(segment).claimed = claimed
        in_frames: list[Range] = []
        for frame in segment.frames():
            prefix = frame.prefix
            in_frames.append((prefix.first_sequence, prefix.first_sequence + prefix.request_count))
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
            end = max([segment.announced, *(end for _, end in in_frames)])
            start = segment.header.first_sequence if segment.header else end
            claimed = min([start, *(first for first, _ in in_frames), end]), end
        count = claimed[1] - claimed[0]
        entry.claimed = claimed
        entry.framed = sum(end - first for first, end in in_frames)
        entry.quarantined = max(0, count - taken) if segment.damaged else 0
        entry.accepted = taken + entry.quarantined if segment.damaged else count
        entry.complete = True
        self.result.segments += 1
        self.result.damaged += segment.damaged

    def _begin(self, segment: Segment) -> Entry:
        """Adds an entry for the segment to the batch."""
        worker = worker_name(segment.worker_id or 0)
        self._entries.append(Entry(self._lake.batch + 1, *self._identity, worker))
        return self._entries[-1]

    def _take_frame(self, segment: Segment, frame: Frame, own: Coverage) -> int | None:
        """Takes the requests of a frame that are not in the lake yet.

        Args:
            segment: The segment.
            frame: One of its frames.
            own: The requests of this segment that an earlier run has taken or found to be repeated.

        Returns:
            The number of requests that this call has taken or found to be repeated. None when the frame's content is
            damaged.
        """
        worker, first = frame.prefix.worker_id, frame.prefix.first_sequence
        count = frame.prefix.request_count
        content = decompress(frame)
        if content is None:
            return None
        taken = 0
        position = first
        for begin, stop in [*self._covered.missing(worker, first, first + count), (first + count, first + count)]:
            # Requests between position and begin are in the lake: another segment brought them, or this one did.
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
                self._spans.append(_Span(entry, self._columns.rows))
                begin = added.end
                if self._columns.is_full:
                    self.flush()
                    self._begin(segment)
        return taken

    def _quarantine(self, segment: Segment, data: DataDirectory) -> None:
        for damage in segment.damaged:
            in_some_place(data.places(), partial(quarantine, damage=damage, content=segment.bytes_of(damage)))

    def flush(self) -> None:
        """Commits the events that were collected."""
        if not self._entries:
            return
        batch, cast_failures = self._columns.finish()
        fingerprints = Fingerprints.of(batch["fingerprint"], batch["receivedAt"])
        duplicates = self._deduplicator.find(fingerprints)
        kept = np.ones(batch.num_rows, bool)
        kept[duplicates] = False
        events = _kept(batch, kept) if len(duplicates) else pa.Table.from_batches([batch])
        start = 0
        received = batch["receivedAt"].cast(pa.int64()).to_numpy()
        for span in self._spans:
            entry, rows = span.entry, slice(start, span.end)
            row_count = int(np.count_nonzero(kept[rows]))
            entry.rows += row_count
            entry.duplicates += span.end - start - row_count
            entry.touched = sorted({*entry.touched, *touched_hours(received[rows][kept[rows]])})
            start = span.end
        if any(entry.events != entry.rows + entry.duplicates for entry in self._entries):
            raise RuntimeError("a batch does not hold the events that were read for it")
        files = self._lake.write(self._enricher.add(events))  # disk write: durable, and named by no commit
        self._manifest.add(self._entries)  # disk write: durable, and void until the commit
        self._lake.commit(files, self._entries[0].batch)  # disk write: the batch takes effect
        self._deduplicator.add(fingerprints, kept, {file.path for file in files})
        for entry in self._entries:
            self.result.requests += entry.read
            self.result.repeated += entry.repeated
            self.result.quarantined += entry.quarantined
            self.result.events += entry.events
            self.result.rows += entry.rows
            self.result.duplicates += entry.duplicates
            self.result.unread_bodies += entry.unread_bodies
        self.result.cast_failures += cast_failures
        self._entries, self._spans = [], []
        del batch, events
        _release_memory()


def _release_memory() -> None:
    """Gives memory that batches do not use any more back to the system."""
    release_memory()
    pa.default_memory_pool().release_unused()


def _kept(batch: pa.RecordBatch, kept: npt.NDArray[np.bool_]) -> pa.Table:
    """Returns the events that are kept.

    A request's body stands with its first event. When that event is a duplicate, the body moves to the first event of
    the request that is kept.
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
