"""How many requests wait to be compacted: what segments and journals hold and the lake does not."""

import os
from collections.abc import Iterator
from pathlib import Path

from kanalony.aggregate.lake import ReadOnlyLake
from kanalony.aggregate.manifest import FILE_NAME, Entry, Identity, identity_of, parse_entry
from kanalony.errors import FormatError
from kanalony.segments.journal import read_journal
from kanalony.segments.names import DataDirectory, is_sealed
from kanalony.segments.reader import Coverage, Segment


class Waiting:
    """Counts the requests that wait, as `kanalony ledger` does, and without reading what is in the lake: of a segment
    that was compacted only its name, size and time are looked at, of a sealed one that was not its trailer, and of the
    lake's record what is new since the last count. Open segments and journals are read.
    """

    def __init__(self, data: DataDirectory) -> None:
        self._data = data
        self._forget(0)

    def _forget(self, file: int) -> None:
        self._file = file  # the record's inode
        self._read = 0  # bytes of it
        self._last = 0  # the last batch in it
        self._complete: set[Identity] = set()
        self._covered = Coverage()

    def count(self) -> int:
        """How many requests wait now. Raises WrongUse when there is no data directory any more, FormatError when the
        lake or its record cannot be read.
        """
        data = DataDirectory.existing(self._data.root)
        self._read_record()
        met = Coverage()
        count = 0
        # Journals first: what leaves one after this is in a segment by then.
        for worker, first, end in [*self._in_journals(data), *self._in_segments(data)]:
            for start, stop in self._covered.missing(worker, first, end):
                count += sum(after - before for before, after in met.missing(worker, start, stop))
                met.add(worker, start, stop)
        return count

    def _read_record(self) -> None:
        """Take note of the entries that were added to the record and committed to the lake."""
        path = self._data.lake / FILE_NAME
        committed = ReadOnlyLake(self._data.lake / "events").batch
        try:
            with path.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_ino != self._file or state.st_size < self._read:
                    self._forget(state.st_ino)
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
        for path in data.journals():
            try:
                contents = read_journal(path)
            except (FileNotFoundError, FormatError):
                continue
            for run in contents.runs:
                yield contents.worker_id, run.first_sequence, run.end_sequence

    def _in_segments(self, data: DataDirectory) -> Iterator[tuple[int, int, int]]:
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
                    continue  # `kanalony verify` names it
