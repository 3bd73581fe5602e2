"""The lake: one Delta table of events, as Parquet files that any tool opens. docs/lake.md describes its columns.

Files are written, and durable, before the commit that names them, so a commit is all there is to being done: a run that
dies before leaves files nobody sees, which `vacuum` deletes in time.
"""

import json
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Field, PostCommitHookProperties, Schema
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction, Transaction

from kanalony.aggregate import columns, enrich
from kanalony.errors import FormatError, StorageError
from kanalony.segments.names import sync_directory

SCHEMA = pa.schema([("date", pa.date32()), *columns.SCHEMA, *enrich.SCHEMA])
"""The columns of the table of events. Versions to come may add some, and take none away."""

_APP = "kanalony-compact"
_PARTITION = "date"
_ORDER = [(_PARTITION, "ascending"), ("partnerId", "ascending"), ("entryId", "ascending"), ("receivedAt", "ascending")]
_COMPRESSION_LEVEL = 1  # zstd; 3 takes a third longer and saves a hundredth
_ROW_GROUP = 64 << 10  # rows: what a reader has to decompress at a time
_ENCODED_TEXT = pa.dictionary(pa.int32(), pa.string())
_SAMPLE = 4096  # rows
_DICTIONARIES = 0.5  # of the rows may be distinct values for a dictionary to be worth it
_CHECKPOINT_COMMITS = 50
_MERGE_FILES = 8  # small files of a day that are worth a merge
_RETENTION_HOURS = 7 * 24  # how long readers of an older version find its files


@dataclass(frozen=True)
class LakeFile:
    """A file of the table. `first` and `last` are the times of receipt it holds, in µs since 1970."""

    path: Path
    day: date
    rows: int
    size: int
    first: int
    last: int


def read_file(path: Path, columns: list[str] | None = None, *, encoded: bool = False) -> pa.Table:
    """A file of the table, or some of its columns; with text as dictionaries if told so. Raises FormatError when it
    cannot be read."""
    try:
        texts = [field.name for field in pq.read_schema(path) if pa.types.is_string(field.type)] if encoded else []
        return pq.ParquetFile(path, read_dictionary=texts).read(columns)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FormatError:
    return FormatError(
        f"{path} cannot be read: {str(error).splitlines()[0]}",
        "put it back from a backup, or stop compacting and move the lake directory away to make a new one",
    )


class ReadOnlyLake:
    """The table of events as it is now; empty when there is none."""

    def __init__(self, root: Path) -> None:
        """Raises FormatError when the directory holds something else."""
        self.root = root
        try:
            table = DeltaTable(root) if DeltaTable.is_deltatable(str(root)) else None
        except DeltaError as error:
            raise _no_table(root, error) from error
        self.batch = (table.transaction_version(_APP) or 0) if table else 0
        self.files = _listed(table, root) if table else []


class Lake:
    """The table of events, for its one writer."""

    def __init__(self, root: Path) -> None:
        """Opens the table in a directory, made when missing; one of an older version gets the columns it lacks. Raises
        FormatError when it is no such table."""
        self.root = root
        if (root / "_delta_log").is_dir():
            _drop_what_is_torn(root / "_delta_log")
        try:
            if DeltaTable.is_deltatable(str(root)):
                self._table = DeltaTable(root)
                self._add_columns()
            else:
                root.mkdir(parents=True, exist_ok=True)
                self._table = DeltaTable.create(root, SCHEMA, partition_by=[_PARTITION], name="events")
                sync_directory(root.parent)
        except DeltaError as error:
            raise _no_table(root, error) from error
        self._sync_log()
        self._files = {file.path: file for file in _listed(self._table, root)}
        self._unpacked_sizes: dict[Path, int] = {}

    @property
    def batch(self) -> int:
        """The number of the last batch that was committed; 0 when there was none."""
        return self._table.transaction_version(_APP) or 0

    @property
    def files(self) -> list[LakeFile]:
        """Those of the last commit."""
        return list(self._files.values())

    def write(self, events: pa.Table) -> list[LakeFile]:
        """Write rows to files of their days, sorted, and make them durable; not part of the table before `commit`."""
        if not events.num_rows:
            return []
        days = pc.cast(pc.floor_temporal(events["receivedAt"], unit="day"), pa.date32())
        events = events.append_column(_PARTITION, days)
        order = pc.sort_indices(events, sort_keys=_ORDER)
        events = _taken(_encoded(events), order)
        written = []
        start = 0
        for run in pc.run_end_encode(events[_PARTITION].combine_chunks()).run_ends.to_pylist():
            day = events[_PARTITION][start].as_py()
            written.append(self._write_file(events.slice(start, run - start).drop_columns([_PARTITION]), day))
            start = run
        return written

    def _write_file(self, events: pa.Table, day: date) -> LakeFile:
        directory = self.root / f"{_PARTITION}={day}"
        path = directory / f"{time.time_ns():020d}-{secrets.token_hex(4)}.zstd.parquet"
        try:
            directory.mkdir(exist_ok=True)
            with path.open("wb") as file:
                pq.write_table(
                    events,
                    file,
                    row_group_size=_ROW_GROUP,
                    compression="zstd",
                    compression_level=_COMPRESSION_LEVEL,
                    use_dictionary=[field.name for field in events.schema if pa.types.is_dictionary(field.type)],
                    write_statistics=["receivedAt", "partnerId", "entryId", "eventType"],
                    store_schema=False,
                )
                file.flush()
                os.fsync(file.fileno())
            sync_directory(directory)
            sync_directory(self.root)
        except OSError as error:
            path.unlink(missing_ok=True)  # it would take what room there is
            raise StorageError(
                f"{path} cannot be written: {error.strerror or error}", "make room and run it again; nothing is lost"
            ) from error
        times = pc.min_max(events["receivedAt"].cast(pa.int64())).as_py()
        return LakeFile(path, day, events.num_rows, path.stat().st_size, times["min"], times["max"])

    def commit(self, files: Iterable[LakeFile], batch: int) -> None:
        """Make files part of the table, and note the number of the batch, at once. Durable when this returns."""
        self._commit([_add(file, self.root, is_new=True) for file in files], [Transaction(_APP, batch)])
        self._files |= {file.path: file for file in files}

    def merge(self, max_rows: int, max_bytes: int) -> bool:
        """Put small files of a day together, sorted anew, into one of up to `max_rows` that take up to `max_bytes`
        uncompressed. Whether there was anything to do. The rows stay the same."""
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
            # What makes a file that is not small any more, or fewer of those that are.
            if len(chosen) >= _MERGE_FILES or row_count > max_rows // 2 or byte_count > max_bytes // 2:
                self._merge(chosen)
                return True
        return False

    def _unpacked(self, file: LakeFile) -> int:
        """Bytes that a file's columns have, decompressed."""
        if file.path not in self._unpacked_sizes:
            told = _metadata(file.path)
            groups = (told.row_group(number) for number in range(told.num_row_groups))
            self._unpacked_sizes[file.path] = sum(group.total_byte_size for group in groups)
        return self._unpacked_sizes[file.path]

    def _merge(self, files: list[LakeFile]) -> None:
        schema = pa.schema([field for field in self._arrow_schema() if field.name != _PARTITION])
        # Text stays encoded, as it is in the files: a long value that many rows have would fill the memory.
        schema = pa.schema(
            [field.with_type(_ENCODED_TEXT) if pa.types.is_string(field.type) else field for field in schema]
        )
        events = pa.concat_tables(_conform(read_file(file.path, encoded=True), schema) for file in files)
        events = events.unify_dictionaries().combine_chunks()
        keys = events.select([name for name, _ in _ORDER[1:]])
        keys = keys.set_column(1, "entryId", keys["entryId"].cast(pa.string()))
        events = _taken(events, pc.sort_indices(keys, sort_keys=_ORDER[1:]))
        merged = self._write_file(events, files[0].day)
        actions: list[AddAction | RemoveAction] = [_add(merged, self.root, is_new=False)]
        actions += [
            RemoveAction(
                _relative(file.path, self.root),
                False,
                int(time.time() * 1000),
                size=file.size,
                partition_values={_PARTITION: str(file.day)},
            )
            for file in files
        ]
        self._commit(actions, [])
        for file in files:
            del self._files[file.path], self._unpacked_sizes[file.path]
        self._files[merged.path] = merged

    def vacuum(self) -> None:
        """Delete files that no version of the last week has, and commits of more than a month ago. Raises StorageError
        when the disk refuses."""
        try:
            self._table.create_checkpoint()
            self._sync_log()  # before the commits go that it stands for
            self._table.cleanup_metadata()
            self._table.vacuum(_RETENTION_HOURS, dry_run=False, full=True)
        except DeltaError as error:
            raise _refused(self.root, error) from error

    def _commit(self, actions: list[AddAction | RemoveAction], transactions: list[Transaction]) -> None:
        hooks = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
        try:
            self._table.create_write_transaction(
                actions,
                "append",
                self._table.schema(),
                [_PARTITION],
                commit_properties=CommitProperties(app_transactions=transactions),
                post_commithook_properties=hooks,
            )
            self._table.update_incremental()
            self._sync_log()
            if self._table.version() % _CHECKPOINT_COMMITS == 0:
                self._table.create_checkpoint()
                self._sync_log()
        except DeltaError as error:
            raise _refused(self.root, error) from error

    def _sync_log(self) -> None:
        """Make the last commit durable: the Delta library does not."""
        log = self.root / "_delta_log"
        version = f"{self._table.version():020d}"
        for path in log.iterdir():
            if path.name.startswith((version, "_last_checkpoint")):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        sync_directory(log)

    def _arrow_schema(self) -> pa.Schema:
        return pa.schema(self._table.schema().to_arrow())

    def _add_columns(self) -> None:
        known = self._arrow_schema()
        for name in set(SCHEMA.names) & set(known.names):
            if not _is_same(known.field(name).type, SCHEMA.field(name).type):
                raise FormatError(
                    f"column {name} of {self.root} is {known.field(name).type}, not {SCHEMA.field(name).type}",
                    "use the version of kanalony that wrote it",
                )
        missing = [field for field in SCHEMA if field.name not in known.names]
        if missing:
            fields: list[Field] = Schema.from_arrow(pa.schema(missing)).fields
            self._table.alter.add_columns(fields)
            self._table.update_incremental()


def _refused(root: Path, error: Exception) -> StorageError:
    return StorageError(f"{root} cannot be written: {str(error).splitlines()[0]}", "free some disk space")


def _no_table(root: Path, error: Exception) -> FormatError:
    return FormatError(
        f"{root} cannot be read as a table of events: {str(error).splitlines()[0]}",
        "`kanalony compact` mends what a power loss tore; else put it back from a backup",
    )


def _listed(table: DeltaTable, root: Path) -> list[LakeFile]:
    listed = pa.table(table.get_add_actions(flatten=True))
    if not listed.num_rows:
        return []
    names = ("path", f"partition.{_PARTITION}", "num_records", "size_bytes")
    columns = [listed[name].to_pylist() for name in names]
    columns += [listed[f"{side}.receivedAt"].cast(pa.int64()).to_pylist() for side in ("min", "max")]
    return [LakeFile(root / path, *more) for path, *more in zip(*columns, strict=True)]


def _drop_what_is_torn(log: Path) -> None:
    """Delete what a power loss left without its end: the last commit, which was never taken as done, and checkpoints,
    which only repeat what the commits say."""
    for checkpoint in log.glob("*.checkpoint*.parquet"):
        try:
            pq.read_metadata(checkpoint)
        except pa.ArrowInvalid:  # not what a disk that fails for a moment says
            checkpoint.unlink()
            (log / "_last_checkpoint").unlink(missing_ok=True)
    commits = sorted(path for path in log.glob("*.json") if path.stem.isdigit())
    if not commits:
        return
    try:
        for line in commits[-1].read_text().splitlines() or [""]:
            json.loads(line)
    except ValueError:
        commits[-1].unlink()
        sync_directory(log)


def _taken(events: pa.Table, indices: pa.Array) -> pa.Table:
    """Rows in another order. Columns without values need not be moved."""
    arrays = [
        pa.nulls(len(indices), column.type) if column.null_count == len(column) else column.take(indices)
        for column in events.columns
    ]
    return pa.table(arrays, schema=events.schema)


def _encoded(events: pa.Table) -> pa.Table:
    """Columns of text whose values repeat, by a sample of them, as dictionaries: cheaper to sort and to write."""
    for number, column in enumerate(events.columns):
        sample = column.slice(0, _SAMPLE)
        if (
            pa.types.is_string(column.type)
            and sample.null_count < len(sample)
            and len(sample.unique()) < _DICTIONARIES * len(sample)
        ):
            events = events.set_column(number, events.schema.names[number], column.dictionary_encode())
    return events


def _conform(events: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows with all columns of a schema: a file of an older version lacks some."""
    arrays = [
        events[field.name].cast(field.type) if field.name in events.schema.names else pa.nulls(len(events), field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _is_same(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether types are the same but for the names of what they hold."""
    if one.num_fields and one.id == other.id:
        return True
    return bool(one == other)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _add(file: LakeFile, root: Path, *, is_new: bool) -> AddAction:
    stats = {
        "numRecords": file.rows,
        "minValues": {"receivedAt": _iso(file.first)},
        "maxValues": {"receivedAt": _iso(file.last)},
        "nullCount": {"receivedAt": 0},
    }
    return AddAction(
        _relative(file.path, root),
        file.size,
        {_PARTITION: str(file.day)},
        int(time.time() * 1000),
        is_new,
        json.dumps(stats),
    )


def _iso(microseconds: int) -> str:
    return str(pc.strftime(pa.scalar(microseconds, pa.timestamp("us", "UTC")), "%Y-%m-%dT%H:%M:%SZ"))
