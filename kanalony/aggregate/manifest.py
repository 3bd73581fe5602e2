"""The manifest: which requests of which segment are in the lake. A text file of JSON lines (segments.ndjson).

A batch appends one entry for each of its segments, durable before the batch is committed to the lake. Entries of a
batch that was never committed are void, and the next run removes them: so rows and entries take effect together, with
the one commit.

Table and manifest belong together if and only if (1) every entry that names a table names this one, (2) the manifest
has every entry of every batch up to the table's last one, in order, and (3) no entry of a batch after the next one,
which a run that died may have left. Anything else is a loss, and is refused: docs/lake.md describes the remedy.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, TypeAdapter

from kanalony import durable
from kanalony.aggregate.lake import ReadOnlyLake
from kanalony.errors import FormatError
from kanalony.segments.coverage import Coverage
from kanalony.segments.reader import Segment

FILE_NAME = "segments.ndjson"

_VERSION = 2  # of the entries
_TAIL = 4096  # bytes to read of the manifest's end at first
_COPIED = 1 << 20  # bytes that are copied at a time

Range = tuple[int, int]
"""Sequence numbers [first, end)."""


class Part(NamedTuple):
    """The place of an entry in its batch: number, from 1, of how many."""

    number: int
    total: int


class Identity(NamedTuple):
    """Which file a segment is: name, size in bytes, time of its last change in ns since 1970.

    A file that was cut off or restored under the same name has another identity.
    """

    name: str
    size: int
    modified: int


def identity_of(file: Path | Segment) -> Identity:
    """Returns the identity of a file, or of an open segment.

    Raises:
        OSError: The file is missing, or cannot be examined.
    """
    if isinstance(file, Segment):
        size, modified, path = file.size, file.modified, file.path
    else:
        stat = file.stat()
        size, modified, path = stat.st_size, stat.st_mtime_ns, file
    return Identity(os.fsencode(path.name).decode("utf-8", "backslashreplace"), size, modified)


@dataclass
class Entry:
    """What one batch took from one segment: a line of the manifest. Names and meanings are stored.

    Attributes:
        batch: Number of the batch, from 1.
        segment: Name of the segment's file.
        size: Its size in bytes.
        modified: Time of its last change in ns since 1970.
        worker: Worker id of the segment, 16 hexadecimal digits.
        accepted: Requests that the segment stands for by its trailer; set in the entry with `complete`.
        framed: Requests in its frames; set in the entry with `complete`.
        read: Requests that were read for this batch.
        repeated: Requests that another segment had brought before.
        quarantined: Requests in damaged ranges.
        unread_bodies: Bodies that could not be read.
        events: Events in the requests that were read.
        rows: Events that became rows of the lake.
        duplicates: Events that are duplicates of others.
        complete: Whether the batch took the last of the segment.
        torn: Whether the segment has no trailer, so that the number of its lost requests is unknown.
        claimed: Sequence numbers [first, end) of the accepted requests, as soon as they are known.
        ranges: Sequence numbers that were read.
        repeats: Sequence numbers that another segment had brought.
        touched: Hours since 1970 whose sums in rollups the rows can change.
        version: Version of the entry.
        table: Id of the Delta table; None in version 1.
        part: Place among the entries of the batch; None in version 1.
    """

    batch: int
    segment: str
    size: int
    modified: int
    worker: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    accepted: int = 0
    framed: int = 0
    read: int = 0
    repeated: int = 0
    quarantined: int = 0
    unread_bodies: int = 0
    events: int = 0
    rows: int = 0
    duplicates: int = 0
    complete: bool = False
    torn: bool = False
    claimed: Range | None = None
    ranges: list[Range] = field(default_factory=list)
    repeats: list[Range] = field(default_factory=list)
    touched: list[int] = field(default_factory=list)
    version: int = 1
    table: str | None = None
    part: Part | None = None

    @property
    def identity(self) -> Identity:
        """Which file the segment is."""
        return Identity(self.segment, self.size, self.modified)

    @property
    def worker_id(self) -> int:
        """The worker id as a number."""
        return int(self.worker, 16)

    @property
    def is_last_part(self) -> bool:
        """Whether no further entry of its batch must follow, as far as its version shows."""
        return self.part is None or self.part.number >= self.part.total


_ENTRY = TypeAdapter(Entry)


class Manifest:
    """The manifest of a lake, for its one writer.

    Attributes:
        covered: The requests that were read, by worker and sequence number.
        complete: The segments of which nothing is left to read.
        begun: The entries of segments that were only begun.
        void: Entries of a batch that was never committed.
    """

    def __init__(self, path: Path, lake: ReadOnlyLake) -> None:
        """Reads the manifest, and changes nothing.

        Args:
            path: The file; a missing one has no entries.
            lake: The table of events that it belongs to.

        Raises:
            FormatError: The table and the manifest do not belong together. To go on would store requests twice, or
                forget that they were lost.
        """
        self._path = path
        self._table: str | None = None
        self._size = 0  # bytes of the entries that are not void
        self.covered = Coverage()
        self.complete: set[Identity] = set()
        self.begun: dict[Identity, list[Entry]] = {}
        self._hours: dict[int, set[int] | None] = {}
        self.void: list[Entry] = []
        for entry, end in checked_entries(path, lake):
            if entry.batch > lake.batch + 1:
                raise _apart(lake, f"{path} holds batch {entry.batch}, and {lake.root} ends with {lake.batch}")
            if entry.batch > lake.batch:
                self.void.append(entry)
            else:
                self._size = end
                self._note(entry)
                for first, last in entry.ranges:
                    self.covered.add(entry.worker_id, first, last)

    def begin(self, table: str) -> None:
        """Removes void entries, before entries are added for the table with this id. Durable when this returns.

        Raises:
            OSError: The disk refuses.
        """
        self._table = table
        durable.remove_unpublished(self._path)
        if self._path.exists() and self._path.stat().st_size > self._size:
            durable.publish(self._path, self._valid_content())  # a new file: readers of the old one are not disturbed
        self.void = []

    def _valid_content(self) -> Iterator[bytes]:
        left = self._size
        with self._path.open("rb") as file:
            while left:
                content = file.read(min(left, _COPIED))
                left -= len(content)
                yield content

    def hours_since(self, batch: int) -> set[int] | None:
        """Returns the hours since 1970 that later batches touched; None when that is unknown for one of them."""
        hours: set[int] = set()
        for later, touched in self._hours.items():
            if later > batch:
                if touched is None:
                    return None
                hours |= touched
        return hours

    def check_void(self, segments: set[str]) -> None:
        """Checks that the segments of all void entries are still there.

        A run that died before its commit leaves its segments where they are. When one is gone, the batch was committed,
        and the table has lost it.

        Args:
            segments: Names of the sealed segments.

        Raises:
            FormatError: A segment is gone.
        """
        for entry in self.void:
            if entry.segment not in segments:
                raise FormatError(
                    f"{self._path} holds batch {entry.batch}, which the lake lacks, and {entry.segment} is gone",
                    "nothing was changed; put the lake or the segment back from a backup; if it is lost, delete the "
                    "lines of this batch",
                )

    def _note(self, entry: Entry) -> None:
        known = self._hours.setdefault(entry.batch, set())
        if entry.rows and not entry.touched:  # of a version that did not record them
            self._hours[entry.batch] = None
        elif known is not None:
            known.update(entry.touched)
        if entry.complete:
            self.complete.add(entry.identity)
            self.begun.pop(entry.identity, None)
        else:
            self.begun.setdefault(entry.identity, []).append(entry)

    def add(self, entries: list[Entry]) -> None:
        """Appends the entries of a batch that is about to be committed. Durable when this returns.

        Raises:
            OSError: The disk refuses.
        """
        for number, entry in enumerate(entries, 1):
            entry.version, entry.table, entry.part = _VERSION, self._table, Part(number, len(entries))
        with durable.opened(self._path, "ab") as file:
            file.writelines(json.dumps(asdict(entry)).encode() + b"\n" for entry in entries)
        for entry in entries:
            self._note(entry)


def parse_entry(line: bytes) -> Entry:
    """Reads a line of a manifest.

    Raises:
        ValueError: It is not an entry.
    """
    return _ENTRY.validate_json(line)


def _lines(path: Path) -> Iterator[tuple[Entry, int]]:
    """Yields all entries, void ones too, and where each line ends, in bytes. An unfinished last line is left out.

    Raises:
        FormatError: A line is not an entry.
    """
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield _entry(path, f"line {number}", line), end


def _entry(path: Path, place: str, line: bytes) -> Entry:
    try:
        entry = parse_entry(line)
    except ValueError as error:
        raise FormatError(f"{path}, {place} is not a manifest entry", "put the file back from a backup") from error
    if entry.version > _VERSION:
        raise FormatError(
            f"{path}, {place} is of version {entry.version}; this kanalony knows versions up to {_VERSION}",
            "use the version of kanalony that wrote it",
        )
    return entry


def _last_entry(path: Path) -> Entry | None:
    """Returns the entry of the last finished line; None when there is none.

    Raises:
        FormatError: That line is not an entry.
    """
    try:
        with path.open("rb") as file:
            size = start = file.seek(0, os.SEEK_END)
            lines: list[bytes] = []
            while start and len(lines) < 2:  # the first may have been cut off
                start = max(0, 2 * start - size - _TAIL)
                file.seek(start)
                lines = file.read(size - start).split(b"\n")[:-1]  # the last part is empty, or an unfinished line
    except FileNotFoundError:
        return None
    try:
        return _entry(path, "the last line", lines[-1]) if lines else None
    except FormatError:
        for _ in _lines(path):  # raises an error with the line's number
            pass
        raise


def checked_entries(path: Path, lake: ReadOnlyLake) -> Iterator[tuple[Entry, int]]:
    """Yields all entries in order, void ones too, and where each line ends, in bytes.

    Args:
        path: The manifest.
        lake: The table of events that it belongs to.

    Raises:
        FormatError: The entries are of another table, or one is missing of the table's batches.
    """
    last = None
    for entry, end in _lines(path):
        _check_table(path, lake, entry)
        if not _follows(entry, last):
            raise _apart(lake, f"{path} has lost entries before one of batch {entry.batch}")
        last = entry
        yield entry, end
    batch = last.batch if last else 0
    if batch < lake.batch or (last and batch == lake.batch and not last.is_last_part):
        raise _apart(lake, f"{path} does not hold batch {lake.batch}, which the lake has, or not all of it")


def _follows(entry: Entry, last: Entry | None) -> bool:
    """Returns whether no entry is missing between two, or before the first."""
    if last and last.part and not last.is_last_part:
        return (entry.batch, entry.part) == (last.batch, (last.part.number + 1, last.part.total))
    if last and not last.part and not entry.part and entry.batch == last.batch:
        return True
    return entry.batch == (last.batch if last else 0) + 1 and (not entry.part or entry.part.number == 1)


def _check_table(path: Path, lake: ReadOnlyLake, entry: Entry) -> None:
    if entry.table not in (None, lake.id):
        raise _apart(lake, f"{path} is the manifest of table {entry.table}, and {lake.root} is table {lake.id}")


def _apart(lake: ReadOnlyLake, message: str) -> FormatError:
    """Returns the error for a table and a manifest that do not belong together."""
    return FormatError(
        message,
        f"nothing was changed; put {lake.root.parent} back whole from a backup, or move it away and run "
        "`kanalony compact`, which makes a new one from the segments that are kept",
    )


def read_lake(directory: Path) -> ReadOnlyLake:
    """Reads the table of events in a lake's directory as it is now; it is empty when there never was one.

    Only reads, and may run at any time. Entries that the manifest may have lost do not matter here: the table has all
    of its rows.

    Args:
        directory: The directory of the lake.

    Raises:
        FormatError: The table cannot be read, was lost, is older than the manifest, or is not the manifest's.
    """
    path, root = directory / FILE_NAME, directory / "events"
    before = _last_entry(path)
    lake = ReadOnlyLake(root)
    if lake.id is None:
        found = path.name if before else next((file.name for file in root.rglob("*.parquet")), None)
        lake = ReadOnlyLake(root)  # once more: a first run may have made it since
        if lake.id is None:
            if found:
                raise _apart(lake, f"{root} is no table any more: its _delta_log is lost, and {found} is there")
            return lake
    if before:
        _check_table(path, lake, before)
        if before.batch > lake.batch + 1:
            raise _apart(lake, f"{path} holds batch {before.batch}, and {root} ends with {lake.batch}")
    return lake
