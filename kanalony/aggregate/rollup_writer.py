"""Keeps the rollups up to date with the lake.

A refresh recomputes, from the events, every hour that was touched since the last one, and comes to the same rows
however often it runs. So a run that dies between the lake's commit and the rollups' commits costs only time. An hour
that does not fit in memory is left out (a gap, see kanalony.aggregate.rollups) and tried again.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa

from kanalony.aggregate.delta import PARTITION, Table
from kanalony.aggregate.engine import connect, with_all_columns
from kanalony.aggregate.lake import Lake
from kanalony.aggregate.limits import DEFAULT, Limits
from kanalony.aggregate.manifest import Manifest
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
from kanalony.aggregate.parquet import LakeFile, find_damaged, unreadable
from kanalony.aggregate.rollup_files import RollupChange
from kanalony.aggregate.rollups import (
    BATCH,
    DIRECTORY,
    KEPT_FROM,
    LAKE,
    REMEDY,
    ROLLUPS,
    SKETCH,
    TIME,
    Rollup,
    gaps,
    sketch_of,
)
from kanalony.errors import FormatError, StorageError, is_disk_full
from kanalony.units import HOUR, SECOND

log = logging.getLogger(__name__)

_FETCHED_ROWS = 2048  # rows that the engine returns at a time: some KiB each when their values are long
_RETRY_INTERVAL = 3600.0  # seconds until an hour that did not fit in memory is tried again
_HOUR_SECONDS = HOUR // SECOND


class RollupWriter:
    """Writes the rollups of a lake. There is one at a time: the process that holds the lake's lock."""

    def __init__(
        self, root: Path, lake: Lake, *, memory: int, keep: dict[str, float], limits: Limits = DEFAULT
    ) -> None:
        """Opens the rollups' tables, made when missing; those of another lake are emptied.

        Args:
            root: The directory of the lake.
            lake: The table of events.
            memory: Bytes that a refresh may take, about.
            keep: For each rollup by name, the age in seconds at which its rows are dropped.
            limits: For tests.

        Raises:
            FormatError: A directory holds something else.
            StorageError: The disk refuses.
        """
        self._root = root / DIRECTORY
        self._spill = self._root / "spill"
        self._budget = limits.rollup_budget(memory)
        self._keep = keep
        self._limits = limits
        self._tables = {
            rollup: Table(self._root / rollup.name, rollup.schema, TIME, REMEDY, limits=limits) for rollup in ROLLUPS
        }
        self._retry_at = time.monotonic()
        now = int(time.time() // _HOUR_SECONDS)
        for table in self._tables.values():
            is_other = table.number(LAKE) not in (0, lake.number_of)
            if is_other or table.number(BATCH) > lake.batch or table.number(KEPT_FROM) > now:
                # The lake was restored or made again, or the clock was wrong. Empty the rollup now, before the lake
                # reaches the same batch number.
                table.commit([], table.files, {BATCH: 0, KEPT_FROM: 0})

    def refresh(self, lake: Lake, manifest: Manifest, progress: Callable[[int, int], object] = lambda *_: None) -> int:
        """Recomputes the hours that were touched since the last refresh, and drops rows that are too old.

        An hour that does not fit in memory is logged, left out, and tried again an hour later.

        Args:
            lake: The table of events.
            manifest: The manifest of the same lake.
            progress: Called with the hours done and the hours in all.

        Returns:
            The number of hours that were recomputed.

        Raises:
            StorageError: The disk refuses.
            FormatError: A file of the lake or of a rollup cannot be read.
        """
        done_to = min(table.number(BATCH) for table in self._tables.values())
        left_out = {hour for table in self._tables.values() for hour in gaps(table.files)} if done_to else set()
        is_due = time.monotonic() >= self._retry_at
        if done_to == lake.batch and not (left_out and is_due):
            self._expire()
            return 0
        touched = manifest.hours_since(done_to) if done_to else None
        if touched is not None and is_due:
            touched = touched | left_out
        try:
            stay_out = set() if is_due or touched is None else left_out
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
        """Recomputes the touched hours, or all when that is None, except those that stay left out."""
        files = lake.files
        shutil.rmtree(self._spill, ignore_errors=True)  # of a run that was killed
        self._spill.mkdir()
        with self._engine() as engine:
            counts = self._count(engine, files, touched)
        hours = sorted(counts.keys() - left_out)
        changes = {
            rollup: RollupChange(table, hours, touched is None, self._cutoff(rollup))
            for rollup, table in self._tables.items()
        }
        done = 0
        for chunk in _chunks(hours, counts, self._budget // self._limits.rollup_row_size):
            self._add_hours(changes, files, chunk, counts)
            done += len(chunk)
            progress(done, len(hours))
        for rollup, table in self._tables.items():
            change = changes[rollup]
            added, removed = change.finish()
            table.commit(added, removed, {BATCH: lake.batch, LAKE: lake.number_of, KEPT_FROM: change.cutoff})
        shutil.rmtree(self._spill, ignore_errors=True)
        name, _, number = DIRECTORY.rpartition("-")
        for earlier in range(1, int(number)):  # formats that nothing reads any more
            shutil.rmtree(self._root.with_name(f"{name}-{earlier}"), ignore_errors=True)
        self._vacuum()
        return len(hours)

    def _engine(self) -> duckdb.DuckDBPyConnection:
        return connect(self._budget, 1, self._spill)

    def _add_hours(
        self, changes: dict[Rollup, RollupChange], files: list[LakeFile], hours: list[int], counts: dict[int, int]
    ) -> None:
        """Adds the rows of consecutive hours; one by one, and in ever smaller parts, when they do not fit in memory.

        An hour that does not fit in any is left out.
        """
        sizes = self._limits.rollup_least_sizes
        for least_size in sizes if len(hours) == 1 else sizes[:1]:
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
            datetime.fromtimestamp(hours[0] * _HOUR_SECONDS, UTC).strftime("%Y-%m-%dT%H:00Z"),
            problem,
            # The engine keeps a tenth of the free room for other processes, and reports that as out of memory.
            f"make room for {self._spill}" if "failed to offload" in problem else "give more with --memory",
        )
        self._retry_at = time.monotonic() + _RETRY_INTERVAL
        for change in changes.values():
            change.leave_out(hours[0])

    def _add_parts(
        self, changes: dict[Rollup, RollupChange], files: list[LakeFile], hours: list[int], parts: int
    ) -> None:
        """Adds the rows of consecutive hours in this many parts."""
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
        """Counts events by hour, in the hours that were touched."""
        if touched is not None:
            files = [file for file in files if not touched.isdisjoint(file.hours)]
        if not files:
            return {}
        counted = engine.execute(
            f"SELECT epoch_us(receivedAt) // {HOUR} AS hour, count(*) FROM read_parquet($files) GROUP BY hour",
            {"files": [str(file.path) for file in files]},
        ).fetchall()
        return {hour: count for hour, count in counted if touched is None or hour in touched}

    def _load(self, engine: duckdb.DuckDBPyConnection, files: list[LakeFile], first: int, end: int, part: str) -> None:
        """Loads the events received in [first, end), in µs, for which `part` (SQL) is true.

        Makes three tables: `seen` has each combination of dimensions, hour and session; `combinations` each combination
        of dimensions, with a number for each rollup; `facts` each event, with the number of its combination.

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
        """Returns the first hour since 1970 that is kept; rows that were dropped before do not come back."""
        keep = self._keep[rollup.name]
        wanted = max(0, int((time.time() - keep) // _HOUR_SECONDS)) if keep < time.time() else 0
        return max(wanted, self._tables[rollup].number(KEPT_FROM))

    def _expire(self) -> None:
        for rollup, table in self._tables.items():
            cutoff = self._cutoff(rollup)
            old = [file for file in table.files if file.last < cutoff * HOUR]
            if old:
                table.commit([], old, {KEPT_FROM: cutoff})

    def _vacuum(self) -> None:
        for table in self._tables.values():
            if table.version % self._limits.rollup_vacuum_commits == 0:
                table.vacuum(self._limits.rollup_retention_hours)


def _chunks(hours: list[int], counts: dict[int, int], most: int) -> Iterator[list[int]]:
    """Yields lists of consecutive hours with at most this many events together, and at least one hour each."""
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
    """Yields the rows of a rollup for the loaded events received from `since` on, sorted, some at a time.

    Other event types are grouped first: DuckDB does not count the memory of its aggregate histogram(), and types chosen
    by strangers would exceed the limit.
    """
    sums = ", ".join(f"{measure.raw}::{measure.kind} AS {measure.name}" for measure in MEASURES.values())
    names = ", ".join(f"of_{name} AS {name}" for name in rollup.dimensions)
    columns = [f"make_timestamptz(micros) AS {TIME}", *rollup.dimensions, *MEASURES, OTHER_TYPES]
    sketched = ""
    if rollup.has_sketch:
        columns.append(SKETCH)
        sketched = f"""
LEFT JOIN (
  SELECT hour * {HOUR} AS micros, number, list(sessionId) AS {SKETCH}
  FROM seen JOIN named ON {" AND ".join(f"seen.of_{name} = named.{name}" for name in rollup.dimensions)}
  WHERE sessionId <> '' GROUP BY ALL
) USING (micros, number)"""
    found = engine.sql(f"""
WITH
named AS (SELECT DISTINCT {rollup.name} AS number, {names} FROM combinations),
events AS NOT MATERIALIZED (
  SELECT *, t // {rollup.interval} * {rollup.interval} AS micros, {rollup.name} AS number
  FROM facts JOIN (SELECT {ROLLUPS[0].name} AS combination, * FROM combinations) USING (combination)
  WHERE t >= {since}
),
sums AS (SELECT micros, number, {sums} FROM events GROUP BY ALL),
types AS (SELECT micros, number, eventType, count(*) AS times FROM events WHERE {IS_OTHER_TYPE} GROUP BY ALL),
others AS (
  SELECT micros, number, map(list(eventType), list(times)) AS {OTHER_TYPES}
  FROM types GROUP BY ALL
)
SELECT {", ".join(columns)}
FROM sums JOIN named USING (number) LEFT JOIN others USING (micros, number) {sketched}
ORDER BY {", ".join([TIME, *rollup.dimensions])}""").to_arrow_reader(_FETCHED_ROWS)
    schema = pa.schema([field for field in rollup.schema if field.name != PARTITION])
    for batch in found:
        rows = pa.Table.from_batches([batch])
        if rollup.has_sketch:
            sketches = [None if ids is None else sketch_of(ids) for ids in rows[SKETCH].to_pylist()]
            rows = rows.set_column(rows.schema.get_field_index(SKETCH), SKETCH, pa.array(sketches, pa.binary()))
        yield rows.cast(schema)
