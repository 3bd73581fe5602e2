"""Rollups: the sums of measures by ten seconds, minute and hour, derived from the lake and from nothing else.

Each is a Delta table below DATA/lake/rollups-2. A rollup that has the lake's batch number has all its events; one that
lags behind is not used by reports, so a run that dies between the lake's commit and the rollups' costs only time. The
next one recomputes the hours that were touched since, from the lake, and comes to the same rows however often it does.
An hour that does not fit in the memory is left out: a file without rows stands for it, and reports read its events.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasketches import update_theta_sketch

from kanalony.aggregate.delta import PARTITION, LakeFile, ReadOnlyTable, Table, find_damaged, unreadable
from kanalony.aggregate.lake import SCHEMA as LAKE_SCHEMA
from kanalony.aggregate.lake import Lake
from kanalony.aggregate.ledger import Record
from kanalony.aggregate.measures import (
    EVENTS,
    IS_OTHER_TYPE,
    LOOK_AHEAD,
    LOOK_BEHIND,
    MEASURES,
    OTHER_TYPES,
    RAW_DIMENSIONS,
    SEQUENCE_KEY,
    facts,
)
from kanalony.errors import FormatError, StorageError, is_disk_full

log = logging.getLogger("kanalony")

DIRECTORY = "rollups-2"
"""Below the lake; its number grows when the columns below, or what they mean, change: rollups are made anew then."""

REMEDY = f"move the directory {DIRECTORY} out of the lake's: `kanalony compact` makes it again from the events"

SKETCH = "sessions"
"""Column of the hours' rollup: a theta sketch of the distinct sessionIds (Apache DataSketches)."""

SKETCH_SIZE = 12
"""Binary logarithm of the values a sketch holds: up to 4,096 it is exact, then within 3.2 % in 95 of 100 cases."""

HOUR = 3_600_000_000  # µs
TIME = "time"

_BATCH = "kanalony-rollup"  # the lake's batch number that a rollup is complete to
_LAKE = "kanalony-lake"  # which table of events that is
_KEPT_FROM = "kanalony-kept-from"  # the first hour since 1970 that it is complete from
_ROW_SIZE = 2 << 10  # bytes of memory that an event may take on its way: 1.7 KiB when all of its values are its own
# Bytes of an event that cannot wait on the disk: an hour is taken in parts that fit in the memory. The least first,
# since each part reads the whole hour again; more when every event has values of its own.
_LEAST_SIZES = (32, 256, 1024, 4096)
_ROW_GROUP = 64 << 10  # rows
_FETCHED = 2048  # rows that are taken from the engine at a time: some KiB each when their values are long
_RETRY_INTERVAL = 3600.0  # seconds until an hour that did not fit in the memory is tried again
_PENDING_SIZE = 8 << 20  # bytes of a rollup's rows that wait for others of their day
_BASE = 224 << 20  # bytes that a run takes without any rows
_RETENTION_HOURS = 1  # how long readers of an older version find its files: the current hour's are replaced every run
_VACUUM_COMMITS = 60


class Rollup(NamedTuple):
    """Sums by so many seconds and these dimensions; of a busy hour there may be several rows with the same ones."""

    name: str
    seconds: int
    dimensions: tuple[str, ...]

    @property
    def schema(self) -> pa.Schema:
        """The columns of its table."""
        kinds = {"BIGINT": pa.int64(), "BIGINT[]": pa.list_(pa.int64())}
        return pa.schema(
            [
                pa.field(PARTITION, pa.date32()),
                pa.field(TIME, pa.timestamp("us", "UTC")),
                *(pa.field(name, pa.string()) for name in self.dimensions),
                *(pa.field(measure.name, kinds[measure.kind]) for measure in MEASURES.values()),
                pa.field(OTHER_TYPES, pa.map_(pa.int64(), pa.int64())),
                *([pa.field(SKETCH, pa.binary())] if self.has_sketch else []),
            ]
        )

    @property
    def has_sketch(self) -> bool:
        return self.seconds == 3600


_LIVE = ("partner", "entry", "playbackType")
ROLLUPS = (
    Rollup("hour", 3600, tuple(RAW_DIMENSIONS)),
    Rollup(
        "minute", 60, (*_LIVE, "device", "operatingSystem", "browser", "country", "syndicationDomain", "application")
    ),
    Rollup("tenSeconds", 10, _LIVE),
)
"""From the coarsest, which answers most for least, to the finest."""


class ReadOnlyRollup(ReadOnlyTable):
    """A rollup as it is now. `batch` is the lake's batch number that it is complete to, `kept_from` the time in µs
    since 1970 that it is complete from, `lake` the number of the table of events it was made of.
    """

    def __init__(self, lake: Path, rollup: Rollup) -> None:
        """`lake` is the directory of the lake. Raises FormatError when the directory holds something else."""
        super().__init__(lake / DIRECTORY / rollup.name, TIME, REMEDY)
        self.rollup = rollup
        self.batch = self.number(_BATCH)
        self.lake = self.number(_LAKE)
        self.kept_from = self.number(_KEPT_FROM) * HOUR
        self.gaps = sorted(hour * HOUR for hour in _gaps(self.files))
        """When the hours begin that it leaves out, in µs since 1970."""
        self.files = [file for file in self.files if file.rows]


def connect(
    memory: int | None = None, threads: int | None = None, spill: Path | None = None
) -> duckdb.DuckDBPyConnection:
    """An engine for SQL over the lake, which reads nothing from the network and needs no extension. `memory` is in
    bytes.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "preserve_insertion_order": False,
        "allocator_flush_threshold": "8MiB",  # freed memory that it may keep: 128 MiB unless it is bounded
    }
    if memory is not None:
        config["memory_limit"] = f"{memory}B"
    if threads is not None:
        config["threads"] = threads
    if spill is not None:
        config["temp_directory"] = str(spill)
    engine = duckdb.connect(config=config)
    engine.execute("SET TimeZone = 'UTC'")
    return engine


def with_all_columns(files: list[LakeFile], directory: Path) -> list[str]:
    """Files of the lake for DuckDB, and one without rows that has the columns which those of older versions lack."""
    empty = directory / "no-rows.parquet"
    if not empty.exists():
        fields = [field for field in LAKE_SCHEMA if field.name != PARTITION]
        pq.write_table(pa.schema(fields).empty_table(), empty)
    return [str(empty), *(str(file.path) for file in files)]


class Rollups:
    """The rollups of a lake, for their one writer: who holds the lake's lock."""

    def __init__(self, root: Path, lake: Lake, *, memory: int, keep: dict[str, float]) -> None:
        """`root` is the directory of the lake; `memory` is in bytes; `keep` says for each rollup after how many seconds
        its rows go. Raises FormatError when a directory holds something else.
        """
        self._root = root / DIRECTORY
        self._spill = self._root / "spill"
        self._memory = memory
        self._keep = keep
        self._tables = {rollup: Table(self._root / rollup.name, rollup.schema, TIME, REMEDY) for rollup in ROLLUPS}
        self._retry_at = time.monotonic()
        now = int(time.time() // 3600)
        for table in self._tables.values():
            is_other = table.number(_LAKE) not in (0, lake.number_of)
            if is_other or table.number(_BATCH) > lake.batch or table.number(_KEPT_FROM) > now:
                # A lake that was put back, or made anew; or a clock that was. Before the lake grows to the same number.
                table.commit([], table.files, {_BATCH: 0, _KEPT_FROM: 0})

    def refresh(self, lake: Lake, record: Record, progress: Callable[[int, int], object] = lambda *_: None) -> int:
        """Recompute the hours that were touched since, and drop what is too old. Returns the number of these hours.
        `progress` gets the hours done and the hours in all. An hour that does not fit in the memory is logged, left
        out, and tried again an hour later. Raises StorageError when the disk refuses, FormatError when a file of the
        lake or of a rollup cannot be read.
        """
        lag = min(table.number(_BATCH) for table in self._tables.values())
        gaps = {hour for table in self._tables.values() for hour in _gaps(table.files)} if lag else set()
        is_due = time.monotonic() >= self._retry_at
        if lag == lake.batch and not (gaps and is_due):
            self._expire()
            return 0
        touched = record.hours_since(lag) if lag else None
        if touched is not None and is_due:
            touched = touched | gaps
        try:
            stay_out = set() if is_due or touched is None else gaps
            return self._recompute(lake, touched, stay_out, progress)
        except duckdb.Error as error:
            message = str(error).splitlines()[0]
            if is_disk_full(error):
                raise StorageError(message, "make room and run it again; nothing is lost") from error
            damaged = find_damaged([file.path for file in lake.files], error)
            if damaged:
                raise unreadable(*damaged) from error
            raise FormatError(f"the lake cannot be read: {message}", "put it back from a backup") from error

    def _recompute(
        self, lake: Lake, touched: set[int] | None, left_out: set[int], progress: Callable[[int, int], object]
    ) -> int:
        """Recompute the hours that were touched, or all if that is None, but not those that stay left out."""
        files = lake.files
        shutil.rmtree(self._spill, ignore_errors=True)  # of a run that was killed
        self._spill.mkdir()
        with self._engine() as engine:
            counts = self._count(engine, files, touched)
        hours = sorted(counts.keys() - left_out)
        changes = {
            rollup: _Change(table, hours, touched is None, self._cutoff(rollup))
            for rollup, table in self._tables.items()
        }
        done = 0
        for chunk in _chunks(hours, counts, self._budget // _ROW_SIZE):
            self._add_hours(changes, files, chunk, counts)
            done += len(chunk)
            progress(done, len(hours))
        for rollup, table in self._tables.items():
            change = changes[rollup]
            added, removed = change.finish()
            table.commit(added, removed, {_BATCH: lake.batch, _LAKE: lake.number_of, _KEPT_FROM: change.cutoff})
        shutil.rmtree(self._spill, ignore_errors=True)
        name, _, number = DIRECTORY.rpartition("-")
        for earlier in range(1, int(number)):  # versions that nothing reads any more
            shutil.rmtree(self._root.with_name(f"{name}-{earlier}"), ignore_errors=True)
        self._vacuum()
        return len(hours)

    @property
    def _budget(self) -> int:
        """Bytes for the engine: what it does not count, and what it returns, takes as much at the most."""
        return max(self._memory - _BASE, self._memory // 4) // 2

    def _engine(self) -> duckdb.DuckDBPyConnection:
        return connect(self._budget, 1, self._spill)

    def _add_hours(
        self, changes: dict[Rollup, "_Change"], files: list[LakeFile], hours: list[int], counts: dict[int, int]
    ) -> None:
        """Add the rows of hours in a row; one by one, and in ever smaller parts, if they do not fit in the memory. An
        hour that does not fit in any is left out.
        """
        for least_size in _LEAST_SIZES if len(hours) == 1 else _LEAST_SIZES[:1]:
            parts = -(-sum(counts.get(hour, 0) for hour in hours) * least_size // self._budget)
            try:
                self._add_parts(changes, files, hours, parts)
                return
            except duckdb.OutOfMemoryException as error:
                problem = str(error).splitlines()[0]
                for change in changes.values():
                    change.drop(hours)
        if len(hours) > 1:
            for hour in hours:
                self._add_hours(changes, files, [hour], counts)
            return
        log.warning(
            "the rollups of %s do not fit in the memory (%s): reports read its events, and it is tried again in an "
            "hour; %s",
            datetime.fromtimestamp(hours[0] * 3600, UTC).strftime("%Y-%m-%dT%H:00Z"),
            problem,
            # The engine keeps a tenth of the free room for others, and calls that being out of memory.
            f"make room for {self._spill}" if "failed to offload" in problem else "give more with --memory",
        )
        self._retry_at = time.monotonic() + _RETRY_INTERVAL
        for change in changes.values():
            change.leave_out(hours[0])

    def _add_parts(self, changes: dict[Rollup, "_Change"], files: list[LakeFile], hours: list[int], parts: int) -> None:
        """Add the rows of hours in a row in so many parts."""
        first, end = hours[0] * HOUR, (hours[-1] + 1) * HOUR
        near = [file for file in files if file.last >= first - LOOK_BEHIND and file.first < end + LOOK_AHEAD]
        with self._engine() as engine:
            for part in range(parts):
                self._load(engine, near, first, end, f"{SEQUENCE_KEY} % {parts} = {part}")
                for rollup, change in changes.items():
                    if end > change.cutoff * HOUR:
                        for rows in _aggregate(engine, rollup, change.cutoff * HOUR):
                            change.add(rows)

    def _count(
        self, engine: duckdb.DuckDBPyConnection, files: list[LakeFile], touched: set[int] | None
    ) -> dict[int, int]:
        """Events by hour, of those that were touched."""
        if touched is not None:
            files = [f for f in files if not touched.isdisjoint(range(f.first // HOUR, f.last // HOUR + 1))]
        if not files:
            return {}
        counted = engine.execute(
            f"SELECT epoch_us(receivedAt) // {HOUR} AS hour, count(*) FROM read_parquet($files) GROUP BY hour",
            {"files": [str(file.path) for file in files]},
        ).fetchall()
        return {hour: count for hour, count in counted if touched is None or hour in touched}

    def _load(self, engine: duckdb.DuckDBPyConnection, files: list[LakeFile], first: int, end: int, part: str) -> None:
        """The events received in [first, end), in µs, of which `part` (SQL) is true, as tables: `seen` with each
        combination of dimensions, hour and session; `combinations` with each of dimensions, by a number; `facts` with
        each event, which has that number.

        Numbers instead of texts took half the time (9.1 to 4.5 µs an event, `python -m benchmarks compact`).
        """
        names = {"files": with_all_columns(files, self._spill)}
        dimensions = ", ".join(f"{sql} AS of_{name}" for name, sql in RAW_DIMENSIONS.items())
        engine.execute(
            f"CREATE OR REPLACE TEMP TABLE seen AS SELECT {dimensions}, epoch_us(receivedAt) // {HOUR} AS hour, "
            f"sessionId FROM {EVENTS} WHERE receivedAt >= make_timestamptz({first - LOOK_BEHIND}) "
            f"AND receivedAt < make_timestamptz({end + LOOK_AHEAD}) AND {part} GROUP BY ALL",
            names,
        )
        columns = ", ".join(f"of_{name}" for name in RAW_DIMENSIONS)
        numbers = ", ".join(
            f"dense_rank() OVER (ORDER BY {', '.join(f'of_{name}' for name in rollup.dimensions)}) AS {rollup.name}"
            for rollup in ROLLUPS
        )
        engine.execute(
            f"CREATE OR REPLACE TEMP TABLE combinations AS "
            f"SELECT *, {numbers} FROM (SELECT DISTINCT {columns} FROM seen)"
        )
        same = " AND ".join(f"of_{name} = {sql}" for name, sql in RAW_DIMENSIONS.items())
        sql = facts(
            {"combination": ROLLUPS[0].name},
            MEASURES.values(),
            [(first, end)],
            join=f"JOIN combinations ON {same} AND {part}",
        )
        engine.execute(f"CREATE OR REPLACE TEMP TABLE facts AS {sql}", names)

    def _cutoff(self, rollup: Rollup) -> int:
        """The first hour since 1970 that is kept; what was dropped before does not come back."""
        keep = self._keep[rollup.name]
        wanted = max(0, int((time.time() - keep) // 3600)) if keep < time.time() else 0
        return max(wanted, self._tables[rollup].number(_KEPT_FROM))

    def _expire(self) -> None:
        for rollup, table in self._tables.items():
            cutoff = self._cutoff(rollup)
            old = [file for file in table.files if file.last < cutoff * HOUR]
            if old:
                table.commit([], old, {_KEPT_FROM: cutoff})

    def _vacuum(self) -> None:
        for table in self._tables.values():
            if table.version % _VACUUM_COMMITS == 0:
                table.vacuum(_RETENTION_HOURS)


class _Change:
    """What becomes of a rollup's files while hours are computed again, from the hour `cutoff` on."""

    def __init__(self, table: Table, hours: list[int], everything: bool, cutoff: int) -> None:
        self._table = table
        self.cutoff = cutoff
        recomputed = set(hours)
        self._removed = [
            file
            for file in table.files
            if everything or not recomputed.isdisjoint(range(file.first // HOUR, file.last // HOUR + 1))
        ]
        self._added: list[LakeFile] = []
        self._pending: dict[tuple[date, int | None], list[pa.Table]] = {}  # by day, and today by hour
        for file in [] if everything else self._removed:
            self._write_without(file, recomputed)

    def _write_without(self, file: LakeFile, hours: set[int]) -> None:
        """Write the rows of a file but those of some hours again."""
        if hours.issuperset(range(file.first // HOUR, file.last // HOUR + 1)):
            return
        for rows in _row_groups(file):
            hour = pc.divide(rows[TIME].cast(pa.int64()), HOUR)
            self.add(rows.filter(pc.invert(pc.is_in(hour, pa.array(hours, pa.int64())))))

    def add(self, rows: pa.Table) -> None:
        """Rows of some hours."""
        days = pc.floor_temporal(rows[TIME], unit="day")
        for day in pc.unique(days).to_pylist():
            of_day = rows.filter(pc.equal(days, day))
            if day.date() < _today():
                self._write((day.date(), None), of_day)
                continue
            # The hour that is going on is written again and again: a file of its own keeps that cheap.
            hours = pc.floor_temporal(of_day[TIME], unit="hour")
            for hour in pc.unique(hours).to_pylist():
                self._write((day.date(), hour.hour), of_day.filter(pc.equal(hours, hour)))

    def drop(self, hours: list[int]) -> None:
        """Take back the rows of hours that were added."""
        self._flush_all()
        added, self._added = self._added, []
        for file in added:
            if set(hours).isdisjoint(range(file.first // HOUR, file.last // HOUR + 1)):
                self._added.append(file)
            else:
                self._write_without(file, set(hours))
                file.path.unlink()  # no commit has named it

    def leave_out(self, hour: int) -> None:
        """Note that the rollup has nothing of an hour, whose events there are."""
        if hour >= self.cutoff:
            day = datetime.fromtimestamp(hour * 3600, UTC).date()
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
        """The files to add and to remove: those of a day that is over are put into one."""
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


def _gaps(files: list[LakeFile]) -> set[int]:
    """The hours since 1970 that a rollup leaves out."""
    return {file.first // HOUR for file in files if not file.rows}


def _row_groups(file: LakeFile) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(file.path) as parquet:
            for number in range(parquet.num_row_groups):
                yield parquet.read_row_group(number)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file.path, error, REMEDY) from error


def _today() -> date:
    return datetime.now(UTC).date()


def _chunks(hours: list[int], counts: dict[int, int], most: int) -> Iterator[list[int]]:
    """Hours in a row with up to so many events together; one at least."""
    chunk: list[int] = []
    total = 0
    for hour in hours:
        count = counts.get(hour, 0)
        if chunk and (hour != chunk[-1] + 1 or total + count > most):
            yield chunk
            chunk, total = [], 0
        chunk.append(hour)
        total += count
    if chunk:
        yield chunk


def _aggregate(engine: duckdb.DuckDBPyConnection, rollup: Rollup, since: int) -> Iterator[pa.Table]:
    """The rows of a rollup for the events that were loaded, sorted, some at a time. Other types are grouped first:
    the memory of the aggregate histogram() is not counted, so that types from strangers would exceed the limit.
    """
    length = rollup.seconds * 1_000_000
    sums = ", ".join(f"{measure.raw}::{measure.kind} AS {measure.name}" for measure in MEASURES.values())
    names = ", ".join(f"of_{name} AS {name}" for name in rollup.dimensions)
    columns = [TIME, *rollup.dimensions, *MEASURES, OTHER_TYPES]
    sketched = ""
    if rollup.has_sketch:
        columns.append(SKETCH)
        sketched = f"""
LEFT JOIN (
  SELECT hour * {HOUR} AS micros, number, list(sessionId) AS {SKETCH}
  FROM seen JOIN named ON {" AND ".join(f"seen.of_{name} = named.{name}" for name in rollup.dimensions)}
  WHERE sessionId <> '' GROUP BY ALL
) USING (micros, number)"""
    order = ", ".join([TIME, *rollup.dimensions])
    found = engine.sql(f"""
WITH
named AS (SELECT DISTINCT {rollup.name} AS number, {names} FROM combinations),
events AS NOT MATERIALIZED (
  SELECT *, t // {length} * {length} AS micros, {rollup.name} AS number
  FROM facts JOIN (SELECT {ROLLUPS[0].name} AS combination, * FROM combinations) USING (combination)
  WHERE t >= {since}
),
sums AS (SELECT micros, number, {sums} FROM events GROUP BY ALL),
types AS (SELECT micros, number, eventType, count(*) AS times FROM events WHERE {IS_OTHER_TYPE} GROUP BY ALL),
others AS (
  SELECT micros, number, map(list(eventType), list(times)) AS {OTHER_TYPES}
  FROM types GROUP BY ALL
)
SELECT {", ".join(columns).replace(TIME, f"make_timestamptz(micros) AS {TIME}", 1)}
FROM sums JOIN named USING (number) LEFT JOIN others USING (micros, number) {sketched}
ORDER BY {order}""").to_arrow_reader(_FETCHED)
    schema = pa.schema([field for field in rollup.schema if field.name != PARTITION])
    for batch in found:
        rows = pa.Table.from_batches([batch])
        if rollup.has_sketch:
            sketches = [None if ids is None else sketch_of(ids) for ids in rows[SKETCH].to_pylist()]
            rows = rows.set_column(rows.schema.get_field_index(SKETCH), SKETCH, pa.array(sketches, pa.binary()))
        yield rows.cast(schema)


def sketch_of(values: list[str]) -> bytes:
    """A theta sketch of distinct texts, serialized as Apache DataSketches has it."""
    sketch = update_theta_sketch(SKETCH_SIZE)
    for value in values:
        sketch.update(value)
    return bytes(sketch.compact().serialize())
