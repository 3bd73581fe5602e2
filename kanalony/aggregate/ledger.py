"""The ledger: the balance of all requests and events, segment by segment.

accepted = read + repeated + quarantined; events = rows + duplicates; rows = the rows counted in the lake's files.
"""

from dataclasses import dataclass

import numpy as np

from kanalony.aggregate.lake import ReadOnlyLake
from kanalony.aggregate.manifest import FILE_NAME, Entry, Identity, checked_entries, identity_of, read_lake
from kanalony.aggregate.parquet import LakeFile, read_file
from kanalony.errors import FormatError
from kanalony.segments.coverage import Coverage
from kanalony.segments.directory import DataDirectory
from kanalony.segments.journal import read_journal
from kanalony.segments.requests import each_segment

_TRIES = 5  # to read a ledger during which nothing was committed


@dataclass
class Account:
    """A line of the ledger: a segment, or the sum.

    Counts are those of the segment's entries in the manifest. `stored` rows were counted in the lake's files.
    """

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
        """Whether nothing is lost or doubled. A segment without its end never balances: its loss is unknown."""
        return (
            not self.torn
            and self.quarantined >= 0
            and (self.accepted == self.read + self.repeated + self.quarantined or not self.complete)
            and (self.framed >= self.read + self.repeated or not self.complete)
            and self.events == self.rows + self.duplicates
            and self.rows == self.stored
        )


_FROM_ENTRIES = ("accepted", "framed", "read", "repeated", "quarantined", "events", "rows", "duplicates")


@dataclass
class Ledger:
    """The accounts of all segments that were read, and the requests that are in none of them.

    Attributes:
        accounts: One for each segment, by name.
        pending: Requests that wait to be compacted, in segments and journals.
        missing: Requests that a collector has numbered and that are nowhere.
        lake_rows: All rows of the lake.
    """

    accounts: list[Account]
    pending: int
    missing: int
    lake_rows: int

    @property
    def total(self) -> Account:
        """The sum of all accounts."""
        total = Account("sum", complete=all(account.complete for account in self.accounts))
        for name in (*_FROM_ENTRIES, "stored"):
            setattr(total, name, sum(getattr(account, name) for account in self.accounts))
        return total

    @property
    def balanced(self) -> bool:
        """Whether every account balances, no request is missing, and every row belongs to a segment."""
        return (
            all(account.balanced for account in self.accounts)
            and not self.missing
            and self.lake_rows == self.total.stored
        )


def read_ledger(data: DataDirectory) -> Ledger:
    """Reads the ledger of a data directory, and counts the rows in the lake's files.

    Only reads, and may run at any time.

    Raises:
        FormatError: The lake or its manifest cannot be read.
    """
    for _ in range(_TRIES):
        lake = read_lake(data.lake)
        ledger = _read_ledger(data, lake)
        # Otherwise a segment may have been compacted and deleted in between.
        if ReadOnlyLake(lake.root).batch == lake.batch:
            break
    return ledger


def _read_ledger(data: DataDirectory, lake: ReadOnlyLake) -> Ledger:
    all_entries = [entry for entry, _ in checked_entries(data.lake / FILE_NAME, lake)]
    entries = [entry for entry in all_entries if entry.batch <= lake.batch]
    accounts: dict[Identity, Account] = {}
    for entry in entries:
        account = accounts.setdefault(entry.identity, Account(entry.segment))
        for name in _FROM_ENTRIES:
            setattr(account, name, getattr(account, name) + getattr(entry, name))
        account.complete |= entry.complete
        account.torn |= entry.torn
    lake_rows = _count_rows(lake.files, entries, accounts)
    pending, missing = _unaccounted(data, entries, all_entries)
    whole = {account.segment for account in accounts.values() if account.complete and not account.torn}
    for account in accounts.values():
        account.torn &= account.segment not in whole  # the whole file was put back since
    return Ledger([accounts[identity] for identity in sorted(accounts)], pending, missing, lake_rows)


def _count_rows(files: list[LakeFile], entries: list[Entry], accounts: dict[Identity, Account]) -> int:
    """Adds the rows of each segment to its account, by worker and sequence number. Returns the number of all rows."""
    ranges: dict[str, list[tuple[int, int, Identity]]] = {}
    for entry in entries:
        ranges.setdefault(entry.worker, []).extend((first, end, entry.identity) for first, end in entry.ranges)
    sorted_ranges = {worker: sorted(parts) for worker, parts in ranges.items()}
    nothing = [(0, 0, Identity("", 0, 0))]
    total = 0
    for file in files:
        found = read_file(file.path, ["worker", "sequence"])
        total += found.num_rows
        grouped = found.group_by("worker").aggregate([("sequence", "list")])
        for worker, sequences in zip(grouped["worker"].to_pylist(), grouped["sequence_list"], strict=True):
            parts = sorted_ranges.get(worker, nothing)
            firsts, ends = np.array([first for first, _, _ in parts]), np.array([end for _, end, _ in parts])
            numbers = sequences.values.to_numpy()
            at = np.maximum(np.searchsorted(firsts, numbers, "right") - 1, 0)
            inside = (numbers >= firsts[at]) & (numbers < ends[at])
            for part, count in zip(*np.unique(at[inside], return_counts=True), strict=True):
                _, _, identity = parts[part]
                accounts[identity].stored += int(count)
    return total


def _unaccounted(data: DataDirectory, entries: list[Entry], all_entries: list[Entry]) -> tuple[int, int]:
    """Returns (requests that wait in segments and journals, requests that are nowhere).

    Args:
        data: The data directory.
        entries: Entries of batches that were committed.
        all_entries: Those and void ones, which show as well that requests existed.
    """
    known = Coverage()
    ends: dict[int, int] = {}

    def met(worker: int, first: int, end: int) -> int:
        """Returns the number of these requests that had not been met."""
        count = sum(stop - start for start, stop in known.missing(worker, first, end))
        known.add(worker, first, end)
        ends[worker] = max(ends.get(worker, 0), end)
        return count

    finished = {entry.identity for entry in entries if entry.complete}
    for entry in entries:
        # A segment's claim is accounted for once the segment is complete; before, only the requests that were read.
        claimed = [entry.claimed] if entry.claimed and entry.identity in finished else []
        for first, end in [*entry.ranges, *claimed]:
            met(entry.worker_id, first, end)
    for entry in all_entries:
        ranges = [*entry.ranges, *([entry.claimed] if entry.claimed else [])]
        ends[entry.worker_id] = max([ends.get(entry.worker_id, 0), *(end for _, end in ranges)])
    pending = 0
    for path in data.journals():
        try:
            contents = read_journal(path)
        except (FileNotFoundError, FormatError):
            continue
        pending += sum(
            met(contents.worker_id, records.first_sequence, records.end_sequence) for records in contents.pending
        )
        # The journal's watermark: requests up to it are durable in segments, and must be in one.
        ends[contents.worker_id] = max(ends.get(contents.worker_id, 0), contents.watermark + 1)
    for segment in each_segment(data, lambda damage: None):
        if identity_of(segment) not in finished:
            pending += sum(met(worker, first, end) for worker, first, end in segment.claims())
    missing = sum(end - first for worker, last in ends.items() for first, end in known.missing(worker, 1, last))
    return pending, missing
