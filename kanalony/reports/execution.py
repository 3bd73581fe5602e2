"""Runs queries against the lake: within limits of time and memory, and without rollups when one is damaged."""

import logging
import math
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path

import duckdb
import pyarrow as pa

from kanalony.aggregate.engine import connect, with_all_columns
from kanalony.aggregate.measures import EVENTS, LOOK_AHEAD, LOOK_BEHIND, RAW_DIMENSIONS
from kanalony.aggregate.parquet import EVENTS_REMEDY, LakeFile, find_damaged, unreadable
from kanalony.aggregate.rollups import DIRECTORY, REMEDY
from kanalony.errors import FormatError, KanalonyError, StorageError, is_disk_full
from kanalony.events import TIME_DIMENSIONS
from kanalony.reports import clock, sketches
from kanalony.reports.planner import Snapshot
from kanalony.reports.query import Query, Selection, check
from kanalony.reports.result import Result, answer_too_large
from kanalony.reports.statement import Statement, build_statement
from kanalony.reports.vocabulary import Vocabulary
from kanalony.segments.directory import DataDirectory

log = logging.getLogger(__name__)

EXACT_EVENTS = 50_000_000
"""Sessions of more events than this are estimated where rollups have sketches: an exact count would take seconds."""

_MOST_CACHED = 10_000  # (file, partner) pairs whose newest time of receipt is cached
_WATCH_INTERVAL = 0.05  # seconds between checks whether to interrupt a query


class Cancelled(KanalonyError):
    """A query was cancelled by its caller."""


class Reports:
    """Answers queries about a data directory. May be used by several threads at a time."""

    def __init__(
        self,
        data: DataDirectory,
        vocabulary: Vocabulary | None = None,
        *,
        exact_events: int = EXACT_EVENTS,
        memory: int | None = None,
        seconds: float | None = None,
        text_bytes: int | None = None,
    ) -> None:
        """Prepares to answer queries; reads nothing yet.

        Args:
            data: The data directory.
            vocabulary: Metrics and dimensions; those of the API when None.
            exact_events: Sessions of more events than this are estimated.
            memory: Bytes that a query may take; four fifths of the machine's when None.
            seconds: Time that a query may take; None for any.
            text_bytes: Bytes of text that an answer may have in its dimensions; None for any.
        """
        self._lake = data.lake
        self.vocabulary = vocabulary or Vocabulary()
        self._exact_events = exact_events
        self._memory = memory
        self._seconds = seconds
        self._text_bytes = text_bytes
        self._newest: dict[tuple[Path, str], int | None] = {}

    def run(self, query: Query, cancel: threading.Event | None = None) -> Result:
        """Answers a query from the events that are in the lake now.

        Args:
            query: The query.
            cancel: Ends the query once it is set.

        Raises:
            UsageError: The query is invalid (UnknownName for an unknown name), or its answer is too large.
            FormatError: The lake cannot be read.
            StorageError: There is not enough memory, disk space or time.
            Cancelled: `cancel` was set.
        """
        cancel = cancel or threading.Event()
        snapshot = Snapshot(self._lake)
        selection = check(query, self.vocabulary)
        try:
            return self._attempt(snapshot, query, selection, cancel)
        except duckdb.Error as error:
            failure, is_rollup = self._diagnose(snapshot, error)
            if not is_rollup:
                raise failure from error
            log.warning("a rollup cannot be read, answering from events: %s (%s)", failure, failure.hint)
        snapshot.drop_rollups()
        try:
            return self._attempt(snapshot, query, selection, cancel)
        except duckdb.Error as error:
            failure, _ = self._diagnose(snapshot, error)
            raise failure from error

    def build(self, snapshot: Snapshot, query: Query, selection: Selection) -> Statement | None:
        """Builds the statement of a checked query; None when there is nothing to read."""
        return build_statement(snapshot, self.vocabulary, query, selection, self._exact_events)

    def _attempt(self, snapshot: Snapshot, query: Query, selection: Selection, cancel: threading.Event) -> Result:
        with (
            tempfile.TemporaryDirectory(prefix="kanalony-") as spill,
            connect(self._memory, spill=Path(spill)) as engine,
            _interrupting(engine, self._seconds, cancel),
        ):
            sketches.register(engine)
            statement = self.build(snapshot, query, selection)
            result = self._result(engine, snapshot, query, selection, statement, Path(spill))
            newest = max((file.last for file in snapshot.events), default=None)
            if query.latest_of is not None:
                newest = self._newest_of(engine, snapshot.events, query.latest_of, Path(spill))
            result.latest = None if newest is None else clock.moment(newest, UTC)
            return result

    def _result(
        self,
        engine: duckdb.DuckDBPyConnection,
        snapshot: Snapshot,
        query: Query,
        selection: Selection,
        statement: Statement | None,
        spill: Path,
    ) -> Result:
        empty = pa.table({name: pa.array([], pa.int64()) for name in (*selection.keys, *selection.values)})
        result = Result(selection.metrics, selection.dimensions, _dimensions_and_metrics(empty, query, selection), None)
        if statement is None:
            return result
        result.estimated = statement.estimated
        result.tables = [scan.name for scan in statement.scans]
        rows = self._fetch(engine, statement, selection, spill)
        if rows.num_rows:
            # The total is the last row; without dimensions it is the only one.
            result.count = rows["position"][-1].as_py() - bool(selection.keys)
            (result.totals,) = _metrics(rows.slice(rows.num_rows - 1), selection).to_pylist()
            on_page = rows.num_rows - 1 if selection.keys else int(not query.offset)
            result.table = _dimensions_and_metrics(rows.slice(0, on_page), query, selection)
        return result

    def _fetch(
        self, engine: duckdb.DuckDBPyConnection, statement: Statement, selection: Selection, spill: Path
    ) -> pa.Table:
        """Runs a statement. Raises UsageError when its rows have too much text."""
        parameters = dict(statement.parameters)
        for scan in statement.scans:
            if scan.rollup:
                parameters[scan.name] = [str(file.path) for file in scan.near_files()]
            else:
                parameters["files"] = with_all_columns(scan.near_files(LOOK_BEHIND, LOOK_AHEAD), spill)
        if statement.quarters is not None:
            engine.register("quarters", statement.quarters)
        if self._text_bytes is None or not selection.keys:
            return engine.sql(statement.sql, params=parameters).to_arrow_table()
        # Within the engine's memory, or on the disk, until the size of the text is known.
        engine.execute(f"CREATE TEMP TABLE page AS {statement.sql}", parameters)
        length = " + ".join(f"coalesce(strlen({key}::VARCHAR), 0)" for key in selection.keys)
        ((size,),) = engine.sql(f"SELECT coalesce(sum({length}), 0) FROM page").fetchall()
        if size > self._text_bytes:
            raise answer_too_large(self._text_bytes)
        return engine.sql("SELECT * FROM page ORDER BY position").to_arrow_table()

    def _newest_of(
        self, engine: duckdb.DuckDBPyConnection, files: list[LakeFile], partner: str, spill: Path
    ) -> int | None:
        """Returns when the newest event of a partner was received, in µs since 1970.

        Files never change, so each is read once.
        """
        if len(self._newest) > _MOST_CACHED:
            self._newest.clear()
        newest: int | None = None
        for file in sorted(files, key=lambda file: file.last, reverse=True):
            if newest is not None and file.last <= newest:
                break
            key = file.path, partner
            if key not in self._newest:
                ((self._newest[key],),) = engine.execute(
                    f"SELECT epoch_us(max(receivedAt)) FROM {EVENTS} WHERE {RAW_DIMENSIONS['partner']} = $partner",
                    {"files": with_all_columns([file], spill), "partner": partner},
                ).fetchall()
            found = self._newest[key]
            if found is not None and (newest is None or found > newest):
                newest = found
        return newest

    def _diagnose(self, snapshot: Snapshot, error: duckdb.Error) -> tuple[KanalonyError, bool]:
        """Returns our error for a failure of the engine, and whether a damaged rollup is the cause.

        Reports can do without rollups.
        """
        failure = _translate(error, self._seconds)
        if isinstance(failure, StorageError):
            return failure, False
        damaged = find_damaged([file.path for file in snapshot.files], error)
        if damaged is None:
            return failure, False
        path, problem = damaged
        is_rollup = path.is_relative_to(self._lake / DIRECTORY)
        return unreadable(path, problem, REMEDY if is_rollup else EVENTS_REMEDY), is_rollup


def _dimensions_and_metrics(rows: pa.Table, query: Query, selection: Selection) -> pa.Table:
    """Converts rows of a statement to an answer's columns, with times of the query's time zone."""
    columns = {}
    for key, name in zip(selection.keys, selection.dimensions, strict=True):
        is_time = name in TIME_DIMENSIONS
        columns[name] = clock.local(rows[key], name, query.timezone) if is_time else rows[key].cast("string")
    metrics = _metrics(rows, selection)
    return pa.table([*columns.values(), *metrics.columns], [*columns, *metrics.schema.names])


def _metrics(rows: pa.Table, selection: Selection) -> pa.Table:
    kinds = [pa.int64() if metric.is_count else pa.float64() for metric in selection.metrics]
    columns = [rows[value].cast(kind) for value, kind in zip(selection.values, kinds, strict=True)]
    return pa.table(columns, [metric.name for metric in selection.metrics])


@contextmanager
def _interrupting(engine: duckdb.DuckDBPyConnection, seconds: float | None, cancel: threading.Event) -> Iterator[None]:
    """Interrupts the engine after some seconds, or once `cancel` is set. Raises Cancelled then."""
    done = threading.Event()
    end = time.monotonic() + (math.inf if seconds is None else seconds)

    def watch() -> None:
        # Repeatedly: an interrupt between two statements has no effect.
        while not done.wait(max(0.001, min(_WATCH_INTERVAL, end - time.monotonic()))):
            if cancel.is_set() or time.monotonic() >= end:
                engine.interrupt()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    except duckdb.InterruptException as error:
        if cancel.is_set():
            raise Cancelled("the report was cancelled") from error
        raise
    finally:
        done.set()
        watcher.join()


def _translate(error: duckdb.Error, seconds: float | None) -> KanalonyError:
    """Maps an error of the engine to ours."""
    message = str(error).splitlines()[0]
    smaller = "ask for a shorter period, or for fewer dimensions"
    if isinstance(error, duckdb.InterruptException):
        return StorageError(f"the report takes longer than {seconds:g} s", smaller)
    if isinstance(error, duckdb.OutOfMemoryException):
        return StorageError(f"the report takes too much memory: {message}", smaller)
    if is_disk_full(error):
        return StorageError(
            f"the report takes too much disk space: {message}", "free space in the directory for temporary files"
        )
    return FormatError(f"the lake cannot be read: {message}", "restore the damaged file from a backup")
