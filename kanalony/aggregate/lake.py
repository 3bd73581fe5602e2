"""The lake: one Delta table of events, in Parquet files that any tool opens. docs/lake.md describes its columns."""

from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kanalony.aggregate import columns, enrich
from kanalony.aggregate.delta import PARTITION, ReadOnlyTable, Table
from kanalony.aggregate.limits import DEFAULT, Limits
from kanalony.aggregate.parquet import LakeFile, read_file, read_metadata
from kanalony.units import DAY

SCHEMA = pa.schema([(PARTITION, pa.date32()), *columns.SCHEMA, *enrich.SCHEMA])
"""The columns of the table of events. Later versions may add columns, and remove none."""

TIME = "receivedAt"
"""The column with the time of receipt."""

_APP = "kanalony-compact"
_ORDER = [(PARTITION, "ascending"), ("partnerId", "ascending"), ("entryId", "ascending"), ("receivedAt", "ascending")]
_ROW_GROUP_SIZE = 24 << 20  # uncompressed bytes of a row group of several rows, at most: it is copied in memory
_MOST_DISTINCT = 0.5  # part of the rows that have distinct values, at most, for a dictionary to be smaller
_RETENTION_HOURS = 7 * 24  # for which readers of an older version find its files


class ReadOnlyLake(ReadOnlyTable):
    """The table of events as it is now; empty when there is none.

    Attributes:
        batch: The number of the last batch that was committed; 0 when there is none.
    """

    def __init__(self, root: Path) -> None:
        """Reads the table's log.

        Raises:
            FormatError: The directory holds something else.
        """
        super().__init__(root, TIME)
        self.batch = self.number(_APP)


class Lake:
    """The table of events as its one writer sees it."""

    def __init__(self, root: Path, limits: Limits = DEFAULT) -> None:
        """Opens the table in a directory, made when missing. A table of an older version gets the columns it lacks.

        Args:
            root: The directory of the table.
            limits: For tests.

        Raises:
            FormatError: The directory holds something else.
            StorageError: The disk refuses.
        """
        self._limits = limits
        self._table = Table(root, SCHEMA, TIME, limits=limits)
        self._unpacked_sizes: dict[Path, int] = {}

    @property
    def id(self) -> str:
        """The unique id of the Delta table."""
        return self._table.id

    @property
    def number_of(self) -> int:
        """The unique number of the Delta table."""
        return self._table.number_of

    @property
    def batch(self) -> int:
        """The number of the last batch that was committed; 0 when there is none."""
        return self._table.number(_APP)

    @property
    def files(self) -> list[LakeFile]:
        """The files of the last commit."""
        return self._table.files

    def write(self, events: pa.Table) -> list[LakeFile]:
        """Writes rows to files of their days, sorted. They are durable when this returns, and rows once committed.

        Raises:
            StorageError: The disk refuses.
        """
        if not events.num_rows:
            return []
        days = _days(events[TIME])
        order = _order(events.append_column(PARTITION, days), _ORDER)
        days = days.take(order)
        plain = _hardly_repeating(events)
        written = []
        start = 0
        for end in pc.run_end_encode(days).run_ends.to_pylist():
            written.append(self._write_file(events, order.slice(start, end - start), days[start].as_py(), plain))
            start = end
        return written

    def _write_file(self, events: pa.Table, order: pa.Array, day: date, plain: set[str]) -> LakeFile:
        """Writes rows of a day in an order. They are sorted a row group at a time, which takes less memory.

        Args:
            events: Rows of several days.
            order: Numbers of the rows to write.
            day: Their day.
            plain: Text columns that are written without a dictionary.
        """
        fields = [field.with_type(pa.string()) if field.name in plain else field for field in events.schema]
        return self._table.write_file(
            (_taken(events, rows, pa.schema(fields)) for rows in self._row_groups(events, order)),
            day,
            row_group_size=self._limits.row_group_rows,
            use_dictionary=[field.name for field in fields if pa.types.is_dictionary(field.type)],
            write_statistics=[TIME, "partnerId", "entryId", "eventType"],
        )

    def _row_groups(self, events: pa.Table, order: pa.Array) -> Iterator[pa.Array]:
        """Divides an order of rows into row groups."""
        sizes = sum((_sizes(column.combine_chunks()) for column in events.columns), np.zeros(len(events), np.int64))
        ends = np.cumsum(sizes[order.to_numpy()])
        start, written = 0, 0
        while start < len(order):
            end = max(start + 1, int(np.searchsorted(ends, written + _ROW_GROUP_SIZE, "right")))
            end = min(end, start + self._limits.row_group_rows)
            yield order.slice(start, end - start)
            start, written = end, int(ends[end - 1])

    def commit(self, files: Iterable[LakeFile], batch: int) -> None:
        """Adds files to the table, and sets the batch number, in one commit. Durable when this returns.

        Raises:
            StorageError: The disk refuses.
        """
        self._table.commit(files, numbers={_APP: batch})

    def merge(self, max_rows: int, max_bytes: int) -> bool:
        """Merges small files of a day into one, which is sorted again. The rows stay the same.

        Args:
            max_rows: Rows of the merged file, at most.
            max_bytes: Uncompressed bytes of the merged file, at most.

        Returns:
            Whether files were merged.

        Raises:
            FormatError: A file cannot be read.
            StorageError: The disk refuses.
        """
        by_day: dict[date, list[LakeFile]] = {}
        for file in self.files:
            if file.rows <= max_rows // 2 and self._unpacked(file) <= max_bytes // 2:
                by_day.setdefault(file.day, []).append(file)
        for small in by_day.values():
            chosen: list[LakeFile] = []
            row_count = byte_count = 0
            for file in sorted(small, key=lambda file: file.rows):
                if row_count + file.rows <= max_rows and byte_count + self._unpacked(file) <= max_bytes:
                    chosen.append(file)
                    row_count += file.rows
                    byte_count += self._unpacked(file)
            # Merge when the result is not small any more, or replaces enough small files.
            if len(chosen) >= self._limits.merge_files or row_count > max_rows // 2 or byte_count > max_bytes // 2:
                self._merge(chosen)
                return True
        return False

    def _unpacked(self, file: LakeFile) -> int:
        """Returns the uncompressed bytes of a file's columns."""
        if file.path not in self._unpacked_sizes:
            metadata = read_metadata(file.path)
            groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
            self._unpacked_sizes[file.path] = sum(group.total_byte_size for group in groups)
        return self._unpacked_sizes[file.path]

    def _merge(self, files: list[LakeFile]) -> None:
        schema = pa.schema([field for field in self._table.schema if field.name != PARTITION])
        # Text stays dictionary-encoded, as in the files: long values that many rows share would fill the memory.
        schema = pa.schema(
            [field.with_type(columns.WORDS) if pa.types.is_string(field.type) else field for field in schema]
        )
        events = pa.concat_tables(_conform(read_file(file.path, encoded=True), schema) for file in files)
        events = events.unify_dictionaries().combine_chunks()
        merged = self._write_file(events, _order(events, _ORDER[1:]), files[0].day, set())
        self._table.commit([merged], files, is_new=False)
        for file in files:
            del self._unpacked_sizes[file.path]

    def vacuum(self) -> None:
        """Deletes files that no version of the last week has, and commits of more than a month ago.

        Raises:
            StorageError: The disk refuses.
        """
        self._table.vacuum(_RETENTION_HOURS)


def _days(times: pa.ChunkedArray) -> pa.Array:
    """Converts timestamps in µs since 1970 to days."""
    return pa.array((times.cast(pa.int64()).to_numpy() // DAY).astype(np.int32), pa.date32())


def _order(events: pa.Table, keys: list[tuple[str, str]]) -> pa.Array:
    """Returns the numbers of the rows, sorted by these columns. Text is compared by its rank in its dictionary."""
    columns = {name: events[name] for name, _ in keys}
    for name, column in columns.items():
        if pa.types.is_dictionary(column.type):
            words = column.combine_chunks()
            columns[name] = pc.rank(words.dictionary).take(words.indices)
    return pc.sort_indices(pa.table(columns), sort_keys=keys)


def _sizes(values: pa.Array) -> npt.NDArray[np.int64]:
    """Returns the bytes of each value, about."""
    kind = values.type
    sizes = np.zeros(len(values), np.int64)
    if values.null_count == len(values):
        return sizes
    if pa.types.is_dictionary(kind):
        sizes += _sizes(values.dictionary)[values.indices.fill_null(0).to_numpy()]
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        sizes += pc.binary_length(values).fill_null(0).to_numpy()
    elif pa.types.is_list(kind) or pa.types.is_map(kind):
        items = _sizes(values.keys) + _sizes(values.items) if pa.types.is_map(kind) else _sizes(values.values)
        ends = np.concatenate([[0], np.cumsum(items + 8)])
        offsets = values.offsets.to_numpy()
        sizes += ends[offsets[1:]] - ends[offsets[:-1]]
    else:
        sizes += 8
    return sizes


def _taken(events: pa.Table, indices: pa.Array, schema: pa.Schema) -> pa.Table:
    """Takes rows by their numbers, and converts them to a schema."""
    arrays = []
    for column, field in zip(events.columns, schema, strict=True):
        if column.null_count == len(column):  # nothing to take
            arrays.append(pa.nulls(len(indices), field.type))
        elif pa.types.is_dictionary(field.type):
            arrays.append(_without_unused(column.take(indices).combine_chunks()))
        else:
            arrays.append(column.take(indices).cast(field.type))
    return pa.table(arrays, schema=schema)


def _without_unused(texts: pa.DictionaryArray) -> pa.DictionaryArray:
    """Removes texts that no row has from the dictionary: those of other days, or of duplicates."""
    used = np.zeros(len(texts.dictionary), bool)
    used[texts.indices.drop_null().to_numpy()] = True
    if used.all():
        return texts
    places = pa.array((np.cumsum(used) - 1).astype(np.int32))
    return pa.DictionaryArray.from_arrays(places.take(texts.indices), texts.dictionary.filter(pa.array(used)))


def _hardly_repeating(events: pa.Table) -> set[str]:
    """Returns the text columns that would be larger with a dictionary."""
    return {
        name
        for name, column in zip(events.schema.names, events.columns, strict=True)
        if pa.types.is_dictionary(column.type)
        and sum(len(chunk.dictionary) for chunk in column.chunks) >= _MOST_DISTINCT * (len(column) - column.null_count)
    }


def _conform(events: pa.Table, schema: pa.Schema) -> pa.Table:
    """Adds the columns of a schema that rows of older versions lack."""
    arrays = [
        events[field.name].cast(field.type) if field.name in events.schema.names else pa.nulls(len(events), field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)
