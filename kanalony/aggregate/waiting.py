"""Counts the requests that wait to be compacted: those in segments and journals that the lake does not have."""

import os
from collections.abc import Iterator
from pathlib import Path

from kanalony.aggregate.lake import ReadOnlyLake
from kanalony.aggregate.manifest import FILE_NAME, Entry, Identity, identity_of, parse_entry
from kanalony.errors import FormatError
from kanalony.segments.coverage import Coverage
from kanalony.segments.directory import DataDirectory
from kanalony.segments.journal import read_journal
from kanalony.segments.names import is_sealed
from kanalony.segments.reader import Segment


class Waiting:
    """Counts the requests that wait, with the result of `kanalony ledger`, at a lower cost.

    A count examines name, size and time of each compacted segment, and the trailer of each other sealed one. It reads
    the manifest's entries that are new since the last count, open segments, and journals.
    """

    def __init__(self, data: DataDirectory) -> None:
        """Reads nothing yet."""
        self._data = data
        self._forget(0)

    def _forget(self, file: int) -> None:
        self._file = file  # the manifest's inode
        self._read = 0  # bytes of it
        self._last = 0  # the last batch in it
        self._complete: set[Identity] = set()
        self._covered = Coverage()

    def count(self) -> int:
        """Returns the number of requests that wait now.

        Raises:
            UsageError: The data directory is gone.
            FormatError: The lake or its manifest cannot be read.
        """
        data = DataDirectory.existing(self._data.root)
        self._read_manifest()
        met = Coverage()
        count = 0
        # Journals first: requests that leave one after this line are in a segment by then.
        for worker, first, end in [*self._in_journals(data), *self._in_segments(data)]:
            for start, stop in self._covered.missing(worker, first, end):
                count += sum(after - before for before, after in met.missing(worker, start, stop))
                met.add(worker, start, stop)
        return count

    def _read_manifest(self) -> None:
        """Notes the entries that are new in the manifest and committed to the lake."""
        path = self._data.lake / FILE_NAME
        committed = ReadOnlyLake(self._data.lake / "events").batch
        try:
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._file or stat.st_size < self._read:
                    self._forget(stat.st_ino)
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    entry = parse_entry(line)
                    if entry.batch > committed:
                        break
                    self._read += len(line)
                    self._note(entry)
        except FileNotFoundError:
            self._forget(0)
        except ValueError as error:
            raise FormatError(f"{path} cannot be read: a line is no entry", "see `kanalony ledger`") from error
        if self._last != committed:
            raise FormatError(f"{path} does not hold batch {committed}, which the lake has", "see `kanalony ledger`")

    def _note(self, entry: Entry) -> None:
        self._last = entry.batch
        ranges = entry.ranges
        if entry.complete:
            self._complete.add(entry.identity)
            ranges = [*ranges, *([entry.claimed] if entry.claimed else [])]
        for first, end in ranges:
            self._covered.add(entry.worker_id, first, end)

    @staticmethod
    def _in_journals(data: DataDirectory) -> Iterator[tuple[int, int, int]]:
        """Yields (worker, first sequence number, end) of requests in journals."""
        for path in data.journals():
            try:
                contents = read_journal(path)
            except (FileNotFoundError, FormatError):
                continue
            for records in contents.pending:
                yield contents.worker_id, records.first_sequence, records.end_sequence

    def _in_segments(self, data: DataDirectory) -> Iterator[tuple[int, int, int]]:
        """Yields (worker, first sequence number, end) of requests in segments that are not in the lake."""
        seen: set[Path] = set()
        vanished = True
        while vanished:
            vanished = False
            for path in data.segments():
                if path in seen:
                    continue
                seen.add(path)
                try:
                    if identity_of(path) not in self._complete:
                        with Segment(path, is_sealed(path)) as segment:
                            yield from segment.claims()
                except FileNotFoundError:
                    vanished = True  # sealed, maybe under another name; or deleted
                except (FormatError, OSError):
                    continue  # `kanalony verify` reports it
