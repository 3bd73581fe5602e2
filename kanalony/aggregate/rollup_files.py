"""The files of a rollup while some of its hours are computed again."""

from collections.abc import Iterator
from datetime import UTC, date, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kanalony.aggregate.delta import PARTITION, Table
from kanalony.aggregate.parquet import LakeFile, unreadable
from kanalony.aggregate.rollups import REMEDY, TIME
from kanalony.units import HOUR, SECOND

_ROW_GROUP = 64 << 10  # rows
_PENDING_SIZE = 8 << 20  # bytes of rows that wait in memory for others of their day


class RollupChange:
    """Collects the new rows of some hours, and the files that replace those with their old rows.

    Files are written as rows arrive. None is part of the rollup before the commit that names it.

    Attributes:
        cutoff: The first hour since 1970 that is kept.
    """

    def __init__(self, table: Table, hours: list[int], everything: bool, cutoff: int) -> None:
        """Writes the rows of other hours, in files that also hold these, again.

        Args:
            table: The rollup's table.
            hours: The hours since 1970 that are computed again.
            everything: Whether no file is kept.
            cutoff: The first hour since 1970 that is kept.

        Raises:
            FormatError: A file of the rollup cannot be read.
            StorageError: The disk refuses.
        """
        self._table = table
        self.cutoff = cutoff
        recomputed = set(hours)
        self._removed = [file for file in table.files if everything or not recomputed.isdisjoint(file.hours)]
        self._added: list[LakeFile] = []
        self._pending: dict[tuple[date, int | None], list[pa.Table]] = {}  # by day; for today, by hour as well
        for file in [] if everything else self._removed:
            self._write_without(file, recomputed)

    def _write_without(self, file: LakeFile, hours: set[int]) -> None:
        """Writes the rows of a file again, except those of some hours."""
        if hours.issuperset(file.hours):
            return
        for rows in _row_groups(file):
            hour = pc.divide(rows[TIME].cast(pa.int64()), HOUR)
            self.add(rows.filter(pc.invert(pc.is_in(hour, pa.array(hours, pa.int64())))))

    def add(self, rows: pa.Table) -> None:
        """Adds rows of some hours."""
        days = pc.floor_temporal(rows[TIME], unit="day")
        for day in pc.unique(days).to_pylist():
            of_day = rows.filter(pc.equal(days, day))
            if day.date() < _today():
                self._write((day.date(), None), of_day)
                continue
            # Every run writes the current hour again: a file of its own keeps that cheap.
            hours = pc.floor_temporal(of_day[TIME], unit="hour")
            for hour in pc.unique(hours).to_pylist():
                self._write((day.date(), hour.hour), of_day.filter(pc.equal(hours, hour)))

    def drop(self, hours: list[int]) -> None:
        """Takes back the rows of hours that were added."""
        self._flush_all()
        added, self._added = self._added, []
        for file in added:
            if set(hours).isdisjoint(file.hours):
                self._added.append(file)
            else:
                self._write_without(file, set(hours))
                file.path.unlink()  # no commit has named it

    def leave_out(self, hour: int) -> None:
        """Marks an hour, which has events, as a gap of the rollup: by a file without rows."""
        if hour >= self.cutoff:
            day = datetime.fromtimestamp(hour * HOUR // SECOND, UTC).date()
            nothing = pa.schema([field for field in self._table.schema if field.name != PARTITION]).empty_table()
            span = (hour * HOUR, (hour + 1) * HOUR - 1)
            self._added.append(self._table.write_file([nothing], day, row_group_size=_ROW_GROUP, span=span))

    def _write(self, key: tuple[date, int | None], rows: pa.Table) -> None:
        for earlier in [other for other in self._pending if other != key]:
            self._flush(earlier)
        pending = self._pending.setdefault(key, [])
        pending.append(rows)
        if sum(rows.nbytes for rows in pending) >= _PENDING_SIZE:
            self._flush(key)

    def _flush(self, key: tuple[date, int | None]) -> None:
        rows = pa.concat_tables(self._pending.pop(key))
        if rows.num_rows:
            self._added.append(self._table.write_file([rows], key[0], row_group_size=_ROW_GROUP))

    def _flush_all(self) -> None:
        for key in list(self._pending):
            self._flush(key)

    def finish(self) -> tuple[list[LakeFile], list[LakeFile]]:
        """Writes the rest, and merges the files of each past day into one.

        Returns:
            The files to add to the rollup, and those to remove.
        """
        self._flush_all()
        removed = {file.path for file in self._removed}
        by_day: dict[date, list[LakeFile]] = {}
        left = [file for file in self._table.files + self._added if file.path not in removed]
        for file in left:
            if file.rows:
                by_day.setdefault(file.day, []).append(file)
        new = {file.path for file in self._added}
        for day, files in by_day.items():
            if day < _today() and len(files) > 1:
                rows = (rows for file in files for rows in _row_groups(file))
                merged = self._table.write_file(rows, day, row_group_size=_ROW_GROUP)
                for file in files:
                    if file.path in new:
                        file.path.unlink()  # no commit has named it
                by_day[day] = [merged]
        kept = [file for files in by_day.values() for file in files] + [file for file in left if not file.rows]
        kept = [file for file in kept if file.last >= self.cutoff * HOUR]
        before = {file.path for file in self._table.files}
        after = {file.path for file in kept}
        return (
            [file for file in kept if file.path not in before],
            [file for file in self._table.files if file.path not in after],
        )


def _row_groups(file: LakeFile) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(file.path) as parquet:
            for number in range(parquet.num_row_groups):
                yield parquet.read_row_group(number)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file.path, error, REMEDY) from error


def _today() -> date:
    return datetime.now(UTC).date()
