"""What became of every request: accepted = read + repeated + quarantined, events = rows + duplicates, file by file.

The record is a text file of JSON lines, one for each segment in each batch, written and durable before the batch is
committed to the lake. Lines of a batch that was never committed are void, and removed by the next run: so rows and
record enter together, with the one commit.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter

from kanalony.aggregate.delta import LakeFile, read_file
from kanalony.aggregate.lake import ReadOnlyLake
from kanalony.errors import FormatError
from kanalony.segments.journal import read_journal
from kanalony.segments.names import DataDirectory, sync_directory
from kanalony.segments.reader import Coverage, Segment, each_segment

FILE_NAME = "segments.ndjson"

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

    @property
    def identity(self) -> Identity:
        return self.segment, self.size, self.modified


_ENTRY = TypeAdapter(Entry)


class Record:
    """The file of entries, and what a run needs to know of them: the requests that were read, the segments that are
    complete, and the entries of those that were only begun."""

    def __init__(self, path: Path, committed: int) -> None:
        """Reads it, and removes what is void: entries of batches after the last that was committed. Raises FormatError
        when the record of committed batches is not there: to go on would store everything twice."""
        self._path = path
        self.covered = Coverage()
        self.complete: set[Identity] = set()
        self.begun: dict[Identity, list[Entry]] = {}
        self._hours: dict[int, set[int] | None] = {}
        last = 0
        void = 0
        for entry in each_entry(path):
            if entry.batch > committed:
                void += 1
            else:
                last = max(last, entry.batch)
                self._note(entry)
                for first, end in entry.ranges:
                    self.covered.add(int(entry.worker, 16), first, end)
        if last != committed:
            raise FormatError(
                f"{path} does not hold batch {committed}, which the lake has",
                "put it back from a backup, or move the whole lake directory away to make a new one from the segments",
            )
        if void or _is_torn(path):
            self._keep(committed)

    def hours_since(self, batch: int) -> set[int] | None:
        """The hours since 1970 that later batches touched; None when that is not known of all."""
        hours: set[int] = set()
        for later, touched in self._hours.items():
            if later > batch:
                if touched is None:
                    return None
                hours |= touched
        return hours

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
        is_new = not self._path.exists()
        with self._path.open("a") as file:
            file.writelines(_line(entry) for entry in entries)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_directory(self._path.parent)
        for entry in entries:
            self._note(entry)

    def _keep(self, committed: int) -> None:
        young = self._path.with_suffix(".young")
        with young.open("w") as file:
            file.writelines(_line(entry) for entry in each_entry(self._path) if entry.batch <= committed)
            file.flush()
            os.fsync(file.fileno())
        young.replace(self._path)
        sync_directory(self._path.parent)


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry)) + "\n"


def _is_torn(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def each_entry(path: Path) -> Iterator[Entry]:
    """All entries, void ones too. A last line that was not finished is none. Raises FormatError for a line that is no
    entry."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _ENTRY.validate_json(line)
            except ValueError as error:
                raise FormatError(
                    f"{path}, line {number} is no entry of a ledger", "put the file back from a backup"
                ) from error


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
    `missing` ones were numbered by a collector and are nowhere."""

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
    Raises FormatError when the lake or its record cannot be read."""
    for _ in range(_TRIES):
        lake = ReadOnlyLake(data.lake / "events")
        ledger = _read_ledger(data, lake)
        # Else a segment may have been compacted, and deleted, between two looks.
        if ReadOnlyLake(lake.root).batch == lake.batch:
            break
    return ledger


def _read_ledger(data: DataDirectory, lake: ReadOnlyLake) -> Ledger:
    told = list(each_entry(data.lake / FILE_NAME))
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
    the requests existed is known from those too."""
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
        pending += sum(met(contents.worker_id, run.first_sequence, run.end_sequence) for run in contents.runs)
        # What is durable in segments by the journal's own word, and must be in one.
        ends[contents.worker_id] = max(ends.get(contents.worker_id, 0), contents.watermark + 1)
    for segment in each_segment(data, lambda damage: None):
        if identity_of(segment) not in finished:
            pending += sum(met(worker, first, end) for worker, first, end in segment.claims())
    missing = sum(end - first for worker, last in ends.items() for first, end in known.missing(worker, 1, last))
    return pending, missing
