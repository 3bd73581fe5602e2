"""What became of every request: accepted = read + repeated + quarantined, events = rows + duplicates, file by file.

The record is a text file of JSON lines, one for each segment in each batch, written and durable before the batch is
committed to the lake. Lines of a batch that was never committed are void, and removed by the next run: so rows and
record enter together, with the one commit.

Table and record belong together if and only if (1) every line that names a table names this one, (2) the record has
every line of every batch up to the table's last one, in order, and (3) no line of a batch after the next one, which a
run that died may have left. Anything else is a loss, and is refused: docs/lake.md says what to do then.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter

from kanalony.aggregate.delta import LakeFile, read_file
from kanalony.aggregate.lake import ReadOnlyLake
from kanalony.durable import sync_directory
from kanalony.errors import FormatError
from kanalony.segments.coverage import Coverage
from kanalony.segments.directory import DataDirectory
from kanalony.segments.journal import read_journal
from kanalony.segments.reader import Segment
from kanalony.segments.requests import each_segment

FILE_NAME = "segments.ndjson"

_VERSION = 2  # of the entries
_TAIL = 4096  # bytes to read of the record's end at first
_TRIES = 5  # for a ledger during which nothing was committed

Range = tuple[int, int]
Identity = tuple[str, int, int]
"""Which file a segment is: name, size in bytes, time of its last change in ns. A file of the same name that is another,
cut off or restored, is not taken for the one that was read."""


def identity_of(file: Path | Segment) -> Identity:
    """Of a file, or of a segment that is open. Raises OSError."""
    if isinstance(file, Segment):
        size, modified, path = file.size, file.modified, file.path
    else:
        told = file.stat()
        size, modified, path = told.st_size, told.st_mtime_ns, file
    return os.fsencode(path.name).decode("utf-8", "backslashreplace"), size, modified


@dataclass
class Entry:
    """What one batch took from one segment. Counts are requests up to `quarantined`, then events.

    `accepted` are the requests that the segment stands for by its trailer, `framed` those in its frames: told in the
    entry with which it is `complete`. `claimed` are the sequence numbers [first, end) of the accepted, told as soon as
    they are known. `ranges` are the sequence numbers that were read, `repeats` those that another segment had brought.
    Of a segment that is `torn`, without a trailer, nobody knows how much it lost. `touched` are the hours since 1970
    whose sums in reports the rows can change.

    `table` is the id of the Delta table, `part` (which, of how many) the place among the entries of the batch: both are
    None in entries of version 1.
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
    part: Range | None = None

    @property
    def identity(self) -> Identity:
        return self.segment, self.size, self.modified


_ENTRY = TypeAdapter(Entry)


class Record:
    """The file of entries, and what a run needs to know of them: the requests that were read, the segments that are
    complete, and the entries of those that were only begun.
    """

    def __init__(self, path: Path, lake: ReadOnlyLake) -> None:
        """Reads it, and changes nothing. Raises FormatError when the table and this do not belong together: to go on
        would store requests twice, or forget that they were lost.
        """
        self._path = path
        self._table: str | None = None
        self._size = 0  # bytes of the entries that are not void
        self.covered = Coverage()
        self.complete: set[Identity] = set()
        self.begun: dict[Identity, list[Entry]] = {}
        self._hours: dict[int, set[int] | None] = {}
        self.void: list[Entry] = []
        for entry, end in _checked_entries(path, lake):
            if entry.batch > lake.batch + 1:
                raise _torn_apart(lake, f"{path} holds batch {entry.batch}, and {lake.root} ends with {lake.batch}")
            if entry.batch > lake.batch:
                self.void.append(entry)
            else:
                self._size = end
                self._note(entry)
                for first, last in entry.ranges:
                    self.covered.add(int(entry.worker, 16), first, last)

    def begin(self, table: str) -> None:
        """Remove what is void before entries are added for a table, which has this id. Durable when this returns."""
        self._table = table
        if self._path.exists() and self._path.stat().st_size > self._size:
            young = self._path.with_suffix(".young")  # who reads the old one now is not disturbed
            shutil.copyfile(self._path, young)
            with young.open("r+b") as file:
                file.truncate(self._size)
                os.fsync(file.fileno())
            young.replace(self._path)
            sync_directory(self._path.parent)
        self.void = []

    def hours_since(self, batch: int) -> set[int] | None:
        """The hours since 1970 that later batches touched; None when that is not known of all."""
        hours: set[int] = set()
        for later, touched in self._hours.items():
            if later > batch:
                if touched is None:
                    return None
                hours |= touched
        return hours

    def check_void(self, segments: set[str]) -> None:
        """Raises FormatError when a void entry is of none of these segments, by name: a run that died leaves them where
        they are, so the batch was committed, and the table has lost it.
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
        """Note what is about to be committed; durable when this returns."""
        for number, entry in enumerate(entries, 1):
            entry.version, entry.table, entry.part = _VERSION, self._table, (number, len(entries))
        is_new = not self._path.exists()
        with self._path.open("a") as file:
            file.writelines(_line(entry) for entry in entries)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_directory(self._path.parent)
        for entry in entries:
            self._note(entry)


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry)) + "\n"


def _lines(path: Path) -> Iterator[tuple[Entry, int]]:
    """All entries, void ones too, and where each line ends, in bytes. A last line that was not finished is none. Raises
    FormatError for a line that is no entry.
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
        entry = _ENTRY.validate_json(line)
    except ValueError as error:
        raise FormatError(f"{path}, {place} is no entry of a ledger", "put the file back from a backup") from error
    if entry.version > _VERSION:
        raise FormatError(
            f"{path}, {place} is of version {entry.version}; this kanalony knows versions up to {_VERSION}",
            "use the version of kanalony that wrote it",
        )
    return entry


def _last_entry(path: Path) -> Entry | None:
    """The entry of the last finished line; None when there is none. Raises FormatError when that line is no entry."""
    try:
        with path.open("rb") as file:
            size = start = file.seek(0, os.SEEK_END)
            lines: list[bytes] = []
            while start and len(lines) < 2:  # the first may have been cut off
                start = max(0, 2 * start - size - _TAIL)
                file.seek(start)
                lines = file.read(size - start).split(b"\n")[:-1]  # what follows the last line feed is not finished
    except FileNotFoundError:
        return None
    try:
        return _entry(path, "the last line", lines[-1]) if lines else None
    except FormatError:
        for _ in _lines(path):  # which says where it is
            pass
        raise


def _checked_entries(path: Path, lake: ReadOnlyLake) -> Iterator[tuple[Entry, int]]:
    """All entries in order, and where each line ends, in bytes. Raises FormatError when they are of another table, or
    when one is missing of the table's batches.
    """
    last = None
    for entry, end in _lines(path):
        _check_table(path, lake, entry)
        if not _follows(entry, last):
            raise _torn_apart(lake, f"{path} has lost entries before one of batch {entry.batch}")
        last = entry
        yield entry, end
    batch = last.batch if last else 0
    if batch < lake.batch or (last and batch == lake.batch and last.part and last.part[0] < last.part[1]):
        raise _torn_apart(lake, f"{path} does not hold batch {lake.batch}, which the lake has, or not all of it")


def _follows(entry: Entry, last: Entry | None) -> bool:
    """Whether no entry is missing between two, or before the first."""
    if last and last.part and last.part[0] < last.part[1]:
        return (entry.batch, entry.part) == (last.batch, (last.part[0] + 1, last.part[1]))
    if last and not last.part and not entry.part and entry.batch == last.batch:
        return True
    return entry.batch == (last.batch if last else 0) + 1 and (not entry.part or entry.part[0] == 1)


def _check_table(path: Path, lake: ReadOnlyLake, entry: Entry) -> None:
    if entry.table not in (None, lake.id):
        raise _torn_apart(lake, f"{path} is the record of table {entry.table}, and {lake.root} is table {lake.id}")


def _torn_apart(lake: ReadOnlyLake, message: str) -> FormatError:
    return FormatError(
        message,
        f"nothing was changed; put {lake.root.parent} back whole from a backup, or move it away and run "
        "`kanalony compact`, which makes a new one from the segments that are kept",
    )


def read_lake(directory: Path) -> ReadOnlyLake:
    """The table of events in a lake's directory as it is now; empty when there never was one. Only reads; may run at
    any time. Raises FormatError when it cannot be read, and when it was lost, or is older than the record, or not its
    table. What the record may have lost does not matter here: the table has all of its rows.
    """
    path, root = directory / FILE_NAME, directory / "events"
    before = _last_entry(path)
    lake = ReadOnlyLake(root)
    if lake.id is None:
        found = path.name if before else next((file.name for file in root.rglob("*.parquet")), None)
        lake = ReadOnlyLake(root)  # once more: a first run may have made it since
        if lake.id is None:
            if found:
                raise _torn_apart(lake, f"{root} is no table any more: its _delta_log is lost, and {found} is there")
            return lake
    if before:
        _check_table(path, lake, before)
        if before.batch > lake.batch + 1:
            raise _torn_apart(lake, f"{path} holds batch {before.batch}, and {root} ends with {lake.batch}")
    return lake


@dataclass
class Account:
    """A line of the ledger: a segment, or the sum. `stored` rows were counted in the lake's files."""

    segment: str
    accepted: int = 0
    framed: int = 0
    read: int = 0
    repeated: int = 0
    quarantined: int = 0
    events: int = 0
    rows: int = 0
    duplicates: int = 0
    stored: int = 0
    complete: bool = False
    torn: bool = False

    @property
    def balanced(self) -> bool:
        """Of one that has lost its end nobody can tell."""
        return (
            not self.torn
            and self.quarantined >= 0
            and (self.accepted == self.read + self.repeated + self.quarantined or not self.complete)
            and (self.framed >= self.read + self.repeated or not self.complete)
            and self.events == self.rows + self.duplicates
            and self.rows == self.stored
        )


@dataclass
class Ledger:
    """The accounts of all segments that were read, and what is not in any: `pending` requests wait to be compacted,
    `missing` ones were numbered by a collector and are nowhere.
    """

    accounts: list[Account]
    pending: int
    missing: int
    lake_rows: int

    @property
    def total(self) -> Account:
        total = Account("sum", complete=all(account.complete for account in self.accounts))
        for name in ("accepted", "framed", "read", "repeated", "quarantined", "events", "rows", "duplicates", "stored"):
            setattr(total, name, sum(getattr(account, name) for account in self.accounts))
        return total

    @property
    def balanced(self) -> bool:
        return (
            all(account.balanced for account in self.accounts)
            and not self.missing
            and self.lake_rows == self.total.stored
        )


def read_ledger(data: DataDirectory) -> Ledger:
    """The ledger of a data directory, with the rows counted in the lake's own files. Only reads; may run at any time.
    Raises FormatError when the lake or its record cannot be read.
    """
    for _ in range(_TRIES):
        lake = read_lake(data.lake)
        ledger = _read_ledger(data, lake)
        # Else a segment may have been compacted, and deleted, between two looks.
        if ReadOnlyLake(lake.root).batch == lake.batch:
            break
    return ledger


def _read_ledger(data: DataDirectory, lake: ReadOnlyLake) -> Ledger:
    told = [entry for entry, _ in _checked_entries(data.lake / FILE_NAME, lake)]
    entries = [entry for entry in told if entry.batch <= lake.batch]
    accounts: dict[Identity, Account] = {}
    for entry in entries:
        account = accounts.setdefault(entry.identity, Account(entry.segment))
        for name in ("accepted", "framed", "read", "repeated", "quarantined", "events", "rows", "duplicates"):
            setattr(account, name, getattr(account, name) + getattr(entry, name))
        account.complete |= entry.complete
        account.torn |= entry.torn
    lake_rows = _count_rows(lake.files, entries, accounts)
    pending, missing = _unaccounted(data, entries, told)
    whole = {account.segment for account in accounts.values() if account.complete and not account.torn}
    for account in accounts.values():
        account.torn &= account.segment not in whole  # its file has been put right
    return Ledger([accounts[identity] for identity in sorted(accounts)], pending, missing, lake_rows)


def _count_rows(files: list[LakeFile], entries: list[Entry], accounts: dict[Identity, Account]) -> int:
    """Count the rows of each segment by their workers and sequence numbers; all rows, whosever they are."""
    ranges: dict[str, list[tuple[int, int, Identity]]] = {}
    for entry in entries:
        ranges.setdefault(entry.worker, []).extend((first, end, entry.identity) for first, end in entry.ranges)
    sorted_ranges = {worker: sorted(parts) for worker, parts in ranges.items()}
    total = 0
    for file in files:
        found = read_file(file.path, ["worker", "sequence"])
        total += found.num_rows
        grouped = found.group_by("worker").aggregate([("sequence", "list")])
        for worker, sequences in zip(grouped["worker"].to_pylist(), grouped["sequence_list"], strict=True):
            parts = sorted_ranges.get(worker, [(0, 0, ("", 0, 0))])
            numbers = sequences.values.to_numpy()
            firsts, ends = (np.array([part[side] for part in parts]) for side in (0, 1))
            at = np.maximum(np.searchsorted(firsts, numbers, "right") - 1, 0)
            inside = (numbers >= firsts[at]) & (numbers < ends[at])
            for part, count in zip(*np.unique(at[inside], return_counts=True), strict=True):
                accounts[parts[part][2]].stored += int(count)
    return total


def _unaccounted(data: DataDirectory, entries: list[Entry], told: list[Entry]) -> tuple[int, int]:
    """(requests that wait in segments and journals, requests that are nowhere). `told` has void entries as well: that
    the requests existed is known from those too.
    """
    known = Coverage()
    ends: dict[int, int] = {}

    def met(worker: int, first: int, end: int) -> int:
        """How many of these requests had not been met."""
        count = sum(stop - start for start, stop in known.missing(worker, first, end))
        known.add(worker, first, end)
        ends[worker] = max(ends.get(worker, 0), end)
        return count

    finished = {entry.identity for entry in entries if entry.complete}
    for entry in entries:
        # What a segment claims is accounted for once it is complete; before, only what was read of it.
        claimed = [entry.claimed] if entry.claimed and entry.identity in finished else []
        for first, end in [*entry.ranges, *claimed]:
            met(int(entry.worker, 16), first, end)
    for entry in told:
        worker = int(entry.worker, 16)
        ranges = [*entry.ranges, *([entry.claimed] if entry.claimed else [])]
        ends[worker] = max([ends.get(worker, 0), *(end for _, end in ranges)])
    pending = 0
    for path in data.journals():
        try:
            contents = read_journal(path)
        except (FileNotFoundError, FormatError):
            continue
        pending += sum(
            met(contents.worker_id, records.first_sequence, records.end_sequence) for records in contents.pending
        )
        # What is durable in segments by the journal's own word, and must be in one.
        ends[contents.worker_id] = max(ends.get(contents.worker_id, 0), contents.watermark + 1)
    for segment in each_segment(data, lambda damage: None):
        if identity_of(segment) not in finished:
            pending += sum(met(worker, first, end) for worker, first, end in segment.claims())
    missing = sum(end - first for worker, last in ends.items() for first, end in known.missing(worker, 1, last))
    return pending, missing
