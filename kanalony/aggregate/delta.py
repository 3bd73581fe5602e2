"""Delta tables of Parquet files, partitioned by date, with one writer each: the base of the lake and its rollups.

Files are durable before the commit that names them, so everything takes effect with the commit. A run that dies before
it leaves files that no reader sees, and that `vacuum` deletes. The Delta library syncs nothing; this module does.
"""

import json
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Field, PostCommitHookProperties, Schema
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction, Transaction

from kanalony import durable
from kanalony.aggregate.limits import DEFAULT, Limits
from kanalony.aggregate.parquet import EVENTS_REMEDY, LakeFile
from kanalony.errors import FormatError, StorageError

PARTITION = "date"
"""Column of each table: the day of a row, UTC."""

_COMPRESSION_LEVEL = 1  # zstd; level 3 takes a third longer and saves 1 %


class ReadOnlyTable:
    """A table as it is now; empty when there is none."""

    def __init__(self, root: Path, time_column: str, remedy: str = EVENTS_REMEDY) -> None:
        """Reads the table's log.

        Args:
            root: The directory of the table.
            time_column: The column whose range is known for each file.
            remedy: Hint of errors.

        Raises:
            FormatError: The directory holds something else.
        """
        self.root = root
        try:
            self._table = DeltaTable(root) if DeltaTable.is_deltatable(str(root)) else None
        except (DeltaError, OSError) as error:
            raise _no_table(root, error, remedy) from error
        self.files = _listed(self._table, root, time_column) if self._table else []

    @property
    def id(self) -> str | None:
        """The table's unique id; None when there is no table."""
        return str(self._table.metadata().id) if self._table else None

    @property
    def number_of(self) -> int:
        """The table's unique number, which a new table in the same place does not share; 0 when there is no table."""
        return _number_of(self._table) if self._table else 0

    def number(self, app: str) -> int:
        """Returns the application transaction that was committed last under a name; 0 when there is none."""
        return (self._table.transaction_version(app) or 0) if self._table else 0


class Table:
    """A table as its one writer sees it."""

    def __init__(
        self,
        root: Path,
        schema: pa.Schema,
        time_column: str,
        remedy: str = EVENTS_REMEDY,
        *,
        limits: Limits = DEFAULT,
    ) -> None:
        """Opens the table in a directory, made when missing. A table of an older version gets the columns it lacks.

        Args:
            root: The directory of the table.
            schema: Its columns.
            time_column: The column whose range is stored for each file.
            remedy: Hint of errors.
            limits: For tests.

        Raises:
            FormatError: The directory holds something else, or a table with columns of other types.
            StorageError: The disk refuses.
        """
        self.root = root
        self._schema = schema
        self._time_column = time_column
        self._limits = limits
        drop_torn_tail(root)
        try:
            table = DeltaTable(root) if DeltaTable.is_deltatable(str(root)) else None
        except (DeltaError, OSError) as error:
            raise _no_table(root, error, remedy) from error
        if table and not (last := root / "_delta_log" / f"{table.version():020d}.json").exists():
            raise FormatError(f"{root} can be read, but not written: {last}, its last commit, is missing", remedy)
        try:
            self._table = table or self._create()
            self._add_columns()
            self._sync_log()
        except (DeltaError, OSError) as error:
            raise _refused(root, error) from error
        self._files = {file.path: file for file in _listed(self._table, root, time_column)}

    @property
    def files(self) -> list[LakeFile]:
        """The files of the last commit."""
        return list(self._files.values())

    @property
    def id(self) -> str:
        """The table's unique id, which a new table in the same place does not share."""
        return str(self._table.metadata().id)

    @property
    def number_of(self) -> int:
        """The table's unique number, which a new table in the same place does not share."""
        return _number_of(self._table)

    @property
    def version(self) -> int:
        """The number of commits before the last one."""
        return self._table.version()

    @property
    def schema(self) -> pa.Schema:
        """The stored schema, to which a later version may have added columns."""
        return pa.schema(self._table.schema().to_arrow())

    def number(self, app: str) -> int:
        """Returns the application transaction that was committed last under a name; 0 when there is none."""
        return self._table.transaction_version(app) or 0

    def write_file(
        self,
        rows: Iterable[pa.Table],
        day: date,
        *,
        row_group_size: int,
        span: tuple[int, int] | None = None,
        **options: Any,
    ) -> LakeFile:
        """Writes rows of a day to a file. It is durable when this returns, and part of the table once committed.

        Args:
            rows: One table or more, without the partition column.
            day: Their day.
            row_group_size: Rows of a row group.
            span: The first and the last time, in µs since 1970, of a file without rows.
            options: Those of `pyarrow.parquet.ParquetWriter`.

        Raises:
            StorageError: The disk refuses.
        """
        directory = self.root / f"{PARTITION}={day}"
        path = directory / f"{time.time_ns():020d}-{secrets.token_hex(4)}.zstd.parquet"
        try:
            directory.mkdir(exist_ok=True)
            with durable.opened(path, "wb") as file:
                row_count, times = self._write_rows(file, rows, row_group_size, **options)
            durable.sync_directory(self.root)
        except OSError as error:
            path.unlink(missing_ok=True)  # it would take the room that is left
            raise StorageError(
                f"{path} cannot be written: {error.strerror or error}", "make room and run it again; nothing is lost"
            ) from error
        first, last = span or (min(times), max(times))
        return LakeFile(path, day, row_count, path.stat().st_size, first, last)

    def _write_rows(
        self, file: IO[bytes], tables: Iterable[pa.Table], row_group_size: int, **options: Any
    ) -> tuple[int, list[int]]:
        row_count, times = 0, []
        writer = None
        for rows in tables:
            if writer is None:
                writer = pq.ParquetWriter(
                    file,
                    rows.schema,
                    compression="zstd",
                    compression_level=_COMPRESSION_LEVEL,
                    store_schema=False,
                    **options,
                )
            writer.write_table(rows, row_group_size)
            row_count += rows.num_rows
            times += pc.min_max(rows[self._time_column].cast(pa.int64())).as_py().values()
        if writer is not None:
            writer.close()
        return row_count, times

    def commit(
        self,
        added: Iterable[LakeFile],
        removed: Iterable[LakeFile] = (),
        numbers: Mapping[str, int] = MappingProxyType({}),
        *,
        is_new: bool = True,
    ) -> None:
        """Adds files to the table, removes others, and sets application transactions, all in one commit.

        Durable when this returns.

        Args:
            added: Files of `write_file`.
            removed: Files of the table.
            numbers: Application transactions by name.
            is_new: Whether rows change, and not only their files.

        Raises:
            StorageError: The disk refuses.
        """
        added, removed = list(added), list(removed)
        actions: list[AddAction | RemoveAction] = [self._add(file, is_new=is_new) for file in added]
        actions += [self._remove(file, is_new=is_new) for file in removed]
        transactions = [Transaction(app, number) for app, number in numbers.items()]
        hooks = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
        try:
            self._table.create_write_transaction(
                actions,
                "append",
                self._table.schema(),
                [PARTITION],
                commit_properties=CommitProperties(app_transactions=transactions),
                post_commithook_properties=hooks,
            )
            self._table.update_incremental()
            self._sync_log()
            if self._table.version() % self._limits.checkpoint_commits == 0:
                self._table.create_checkpoint()
                self._sync_log()
        except (DeltaError, OSError) as error:
            raise _refused(self.root, error) from error
        for file in removed:
            del self._files[file.path]
        self._files |= {file.path: file for file in added}

    def vacuum(self, retention_hours: int) -> None:
        """Deletes files that no recent version has, and commits of more than a month ago.

        Args:
            retention_hours: The age in hours of the oldest version that stays readable.

        Raises:
            StorageError: The disk refuses.
        """
        try:
            self._table.create_checkpoint()
            self._sync_log()  # before the commits that it replaces are deleted
            self._table.cleanup_metadata()
            self._table.vacuum(retention_hours, dry_run=False, full=True, enforce_retention_duration=False)
        except (DeltaError, OSError) as error:
            raise _refused(self.root, error) from error

    def _create(self) -> DeltaTable:
        self.root.mkdir(parents=True, exist_ok=True)
        table = DeltaTable.create(self.root, self._schema, partition_by=[PARTITION], name=self.root.name)
        durable.sync_directory(self.root.parent)
        return table

    def _sync_log(self) -> None:
        """Syncs the last commit and its checkpoint. Durable when this returns."""
        log = self.root / "_delta_log"
        version = f"{self._table.version():020d}"
        for path in log.iterdir():
            if path.name.startswith((version, "_last_checkpoint")):
                with path.open("rb") as file:
                    durable.sync_file(file)
        durable.sync_directory(log)

    def _add_columns(self) -> None:
        known = self.schema
        for name in set(self._schema.names) & set(known.names):
            if not _is_same(known.field(name).type, self._schema.field(name).type):
                raise FormatError(
                    f"column {name} of {self.root} is {known.field(name).type}, not {self._schema.field(name).type}",
                    "use the version of kanalony that wrote it",
                )
        missing = [field for field in self._schema if field.name not in known.names]
        if missing:
            fields: list[Field] = Schema.from_arrow(pa.schema(missing)).fields
            self._table.alter.add_columns(fields)
            self._table.update_incremental()

    def _add(self, file: LakeFile, *, is_new: bool) -> AddAction:
        stats = {
            "numRecords": file.rows,
            "minValues": {self._time_column: _iso(file.first)},
            "maxValues": {self._time_column: _iso(file.last)},
            "nullCount": {self._time_column: 0},
        }
        return AddAction(
            self._relative(file), file.size, _partition_of(file), int(time.time() * 1000), is_new, json.dumps(stats)
        )

    def _remove(self, file: LakeFile, *, is_new: bool) -> RemoveAction:
        return RemoveAction(
            self._relative(file),
            is_new,
            int(time.time() * 1000),
            size=file.size,
            partition_values=_partition_of(file),
        )

    def _relative(self, file: LakeFile) -> str:
        return file.path.relative_to(self.root).as_posix()


def _number_of(table: DeltaTable) -> int:
    return UUID(str(table.metadata().id)).int >> 65


def _partition_of(file: LakeFile) -> dict[str, str | None]:
    return {PARTITION: str(file.day)}


def _refused(root: Path, error: Exception) -> StorageError:
    return StorageError(
        f"{root} cannot be written: {_reason(error)}",
        "check free space and permissions, and run it again; nothing is lost",
    )


def _reason(error: Exception) -> str:
    """Returns an error of the Delta library, which may be a tree of causes in colours, as one line."""
    lines = re.sub(r"\x1b\[[0-9;]*m|↳", "", str(error)).splitlines()
    return ": ".join(line.strip() for line in lines if line.strip())


def _no_table(root: Path, error: Exception, remedy: str) -> FormatError:
    return FormatError(
        f"{root} cannot be read as a Delta table: {_reason(error)}",
        f"`kanalony compact` repairs the damage of a power loss; else {remedy}",
    )


def _listed(table: DeltaTable, root: Path, time_column: str) -> list[LakeFile]:
    listed = pa.table(table.get_add_actions(flatten=True))
    if not listed.num_rows:
        return []
    names = ("path", f"partition.{PARTITION}", "num_records", "size_bytes")
    columns = [listed[name].to_pylist() for name in names]
    columns += [listed[f"{side}.{time_column}"].cast(pa.int64()).to_pylist() for side in ("min", "max")]
    return [LakeFile(root / path, *more) for path, *more in zip(*columns, strict=True)]


def drop_torn_tail(root: Path) -> None:
    """Deletes what a power loss cut off in the log of a table.

    That is the last commit, which no writer took for done, and checkpoints, which only repeat the commits.

    Args:
        root: The directory of the table.
    """
    log = root / "_delta_log"
    for checkpoint in log.glob("*.checkpoint*.parquet"):
        try:
            pq.read_metadata(checkpoint)
        except pa.ArrowInvalid:  # a disk that fails for a moment raises OSError
            checkpoint.unlink()
            (log / "_last_checkpoint").unlink(missing_ok=True)
    commits = sorted(path for path in log.glob("*.json") if path.stem.isdigit())
    if not commits:
        return
    try:
        for line in commits[-1].read_text().splitlines() or [""]:
            json.loads(line)
    except ValueError:
        durable.remove(commits[-1])


def _is_same(one: pa.DataType, other: pa.DataType) -> bool:
    """Returns whether types are equal, apart from the names of nested fields."""
    if one.num_fields and one.id == other.id:
        return True
    return bool(one == other)


def _iso(microseconds: int) -> str:
    return str(pc.strftime(pa.scalar(microseconds, pa.timestamp("us", "UTC")), "%Y-%m-%dT%H:%M:%SZ"))
