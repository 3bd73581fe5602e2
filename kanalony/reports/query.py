"""One query engine: metrics x dimensions x filters x period x time zone x order x page, as one SQL statement.

The statement reads the cheapest tables that can answer (kanalony.reports.tables) and adds up what they say: whole hours
from the hours' rollup, what is left at the edges from minutes, ten seconds, and the events themselves. Whichever tables
those are, the result is the same. Values are bound; names come from the vocabulary.
"""

import logging
import math
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from types import MappingProxyType
from typing import Any

import duckdb
import pyarrow as pa
from datasketches import compact_theta_sketch, theta_union

from kanalony.aggregate.delta import EVENTS_REMEDY, LakeFile, find_damaged, unreadable
from kanalony.aggregate.measures import (
    EVENTS,
    LOOK_AHEAD,
    LOOK_BEHIND,
    MEASURES,
    RAW_DIMENSIONS,
    Measure,
    bounded,
    facts,
    is_in_rollups,
    stored_as,
)
from kanalony.aggregate.rollups import DIRECTORY, REMEDY, SKETCH, SKETCH_SIZE, connect, sketch_of, with_all_columns
from kanalony.errors import FormatError, KanalonyError, StorageError, WrongUse, is_disk_full
from kanalony.events import TIME_DIMENSIONS, UNKNOWN, Metric
from kanalony.reports import clock
from kanalony.reports.tables import Source, Tables
from kanalony.reports.vocabulary import PEAK, SESSIONS, USERS, VIDEOS, Vocabulary, measures_of
from kanalony.segments.names import DataDirectory

log = logging.getLogger("kanalony")

EXACT_EVENTS = 50_000_000
"""Sessions of more events than this are counted by sketches, where these can tell: exactly would take seconds."""

MOST_METRICS = 100
MOST_DIMENSIONS = 20
MOST_FILTERS = 20
MOST_VALUES = 1_000
"""Of a query; `MOST_VALUES` of all of its filters together. Planning takes longer, and more memory, with each."""

_DAY = 86400  # seconds
_KNOWN_FILES = 10_000  # of which it is remembered when the newest event of a partner was received
_SILENCE = timedelta(minutes=5)
_WATCH_INTERVAL = 0.05  # seconds between looks whether a query is to end


@dataclass(frozen=True)
class Query:
    """What is asked for. `start` and `end` have a time zone, and are the lake's own when None; of `filters`, each
    dimension must have one of its values; `order` has names and whether they descend. Without an order it is that of
    time, or else of the first metric, the largest first. `latest_of` is the partner whose newest event the answer's
    `latest` is; that of all partners when None.
    """

    metrics: tuple[str, ...]
    dimensions: tuple[str, ...] = ()
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    start: datetime | None = None
    end: datetime | None = None
    timezone: tzinfo = UTC
    order: tuple[tuple[str, bool], ...] = ()
    limit: int | None = None
    offset: int = 0
    latest_of: str | None = None


class Stopped(KanalonyError):
    """A report was given up because nobody waits for it."""


@dataclass
class Result:
    """An answer. `table` has a column for each dimension, then for each metric: text, time or date, then numbers, null
    where there is nothing to divide by. `count` is the number of rows of all pages, `totals` the metrics of all of them
    together; `estimated` are metrics that sketches told; `tables` are those that were read; `latest` is when the
    newest event was received that is in the lake.
    """

    metrics: list[Metric]
    dimensions: list[str]
    table: pa.Table
    latest: datetime | None
    count: int = 0
    totals: dict[str, Any] = field(default_factory=dict)
    estimated: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)

    @property
    def is_behind(self) -> bool:
        """Whether there may be events that are not in the lake yet: there are no rows, or no event has come in the last
        minutes.
        """
        return not self.table.num_rows or self.latest is None or datetime.now(UTC) - self.latest > _SILENCE


class Reports:
    """Answers queries about a data directory."""

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
        """A query may take so many bytes of memory, and so many seconds; four fifths of the memory there is, and any
        time, when they are None. `text_bytes` bounds the text of dimensions in an answer.
        """
        self._lake = data.lake
        self.vocabulary = vocabulary or Vocabulary()
        self._exact_events = exact_events
        self._memory = memory
        self._seconds = seconds
        self._text_bytes = text_bytes
        self._latest: dict[tuple[Path, str], int | None] = {}

    def run(self, query: Query, stop: threading.Event | None = None) -> Result:
        """Answer a query, from the events that are in the lake now; give it up once `stop` is set. Raises WrongUse, of
        which UnknownName is one, for a query that makes no sense or whose answer is too large, FormatError when the
        lake cannot be read, StorageError when there is not enough memory, room or time, Stopped after `stop`.
        """
        stop = stop or threading.Event()
        tables = Tables(self._lake)
        try:
            return self._ask(tables, query, stop)
        except duckdb.Error as error:
            failure, is_rollup = self._failure(tables, error)
            if not is_rollup:
                raise failure from error
            log.warning("a rollup cannot be read, the events answer instead: %s (%s)", failure, failure.hint)
        tables.drop_rollups()
        try:
            return self._ask(tables, query, stop)
        except duckdb.Error as error:
            raise self._failure(tables, error)[0] from error

    def _failure(self, tables: Tables, error: duckdb.Error) -> tuple[KanalonyError, bool]:
        """The error for a failure of the engine, with the file that is damaged, if one is; and whether that is one of a
        rollup, which the events can do without.
        """
        failure = _told_error(error, self._seconds)
        if isinstance(failure, StorageError):
            return failure, False
        found = find_damaged([file.path for file in tables.files], error)
        if found is None:
            return failure, False
        is_rollup = found[0].is_relative_to(self._lake / DIRECTORY)
        return unreadable(*found, REMEDY if is_rollup else EVENTS_REMEDY), is_rollup

    def _ask(self, tables: Tables, query: Query, stop: threading.Event) -> Result:
        with (
            tempfile.TemporaryDirectory(prefix="kanalony-") as spill,
            connect(self._memory, spill=Path(spill)) as engine,
            _interrupted(engine, self._seconds, stop),
        ):
            # The stubs know the names of these two choices in one release, and not in the next.
            engine.create_function(  # type: ignore[call-overload]
                "kanalony_distinct",
                _distinct,
                ["BLOB[]", "VARCHAR[]"],
                "BIGINT",
                type="arrow",
                null_handling="special",
            )
            statement = _Statement(tables, self.vocabulary, query, self._exact_events, self._text_bytes)
            result = statement.run(engine, Path(spill))
            if query.latest_of is not None:
                latest = self._find_latest(engine, tables.events, query.latest_of, Path(spill))
                result.latest = None if latest is None else clock.moment(latest, UTC)
            return result

    def _find_latest(
        self, engine: duckdb.DuckDBPyConnection, files: list[LakeFile], partner: str, spill: Path
    ) -> int | None:
        """When the newest event of a partner was received, in µs since 1970. Each file is read once: none ever
        changes.
        """
        if len(self._latest) > _KNOWN_FILES:
            self._latest.clear()
        newest: int | None = None
        for file in sorted(files, key=lambda file: file.last, reverse=True):
            if newest is not None and file.last <= newest:
                break
            known = file.path, partner
            if known not in self._latest:
                found = engine.execute(
                    f"SELECT epoch_us(max(receivedAt)) FROM {EVENTS} WHERE {RAW_DIMENSIONS['partner']} = $partner",
                    {"files": with_all_columns([file], spill), "partner": partner},
                ).fetchall()
                self._latest[known] = found[0][0]
            latest = self._latest[known]
            if latest is not None and (newest is None or latest > newest):
                newest = latest
        return newest


@contextmanager
def _interrupted(engine: duckdb.DuckDBPyConnection, seconds: float | None, stop: threading.Event) -> Iterator[None]:
    """Interrupt what the engine does after so many seconds, or once `stop` is set. Raises Stopped then."""
    done = threading.Event()
    end = time.monotonic() + (math.inf if seconds is None else seconds)

    def watch() -> None:
        # Again and again: what came between two statements was for none.
        while not done.wait(max(0.001, min(_WATCH_INTERVAL, end - time.monotonic()))):
            if stop.is_set() or time.monotonic() >= end:
                engine.interrupt()

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    except duckdb.InterruptException as error:
        if stop.is_set():
            raise Stopped("nobody waits for this report any more") from error
        raise
    finally:
        done.set()
        watching.join()


def _told_error(error: duckdb.Error, seconds: float | None) -> KanalonyError:
    message = str(error).splitlines()[0]
    smaller = "ask for a shorter period, or for fewer dimensions"
    if isinstance(error, duckdb.InterruptException):
        return StorageError(f"this report takes longer than {seconds:g} s", smaller)
    if isinstance(error, duckdb.OutOfMemoryException):
        return StorageError(f"this report takes too much memory: {message}", smaller)
    if is_disk_full(error):
        return StorageError(f"this report takes too much room: {message}", "free the directory for temporary files")
    return FormatError(f"the lake cannot be read: {message}", "if a file is damaged, put it back from a backup")


class _Statement:
    """A query on its way to SQL."""

    def __init__(
        self,
        tables: Tables,
        vocabulary: Vocabulary,
        query: Query,
        exact_events: int,
        text_bytes: int | None,
    ) -> None:
        self._tables = tables
        self._vocabulary = vocabulary
        self._exact_events = exact_events
        self._text_bytes = text_bytes
        self._query = query
        _check_size(query)
        for text in (*query.metrics, *query.dimensions, *query.filters, *sum(query.filters.values(), ())):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise WrongUse(f"{text!r} is no text in UTF-8", "send it as it is in the events") from error
        self._metrics = [vocabulary.metric(name) for name in dict.fromkeys(query.metrics)]
        self._dimensions = [vocabulary.dimension(name) for name in dict.fromkeys(query.dimensions)]
        for name in query.filters:
            if vocabulary.dimension(name) in TIME_DIMENSIONS:
                raise WrongUse(f"{name} cannot be filtered", "name a period instead")
        self._order = self._ordered()
        ends = [None if end is None else clock.micros(end) for end in (query.start, query.end)]
        self._span = tables.covered(*ends)
        self._quarters = self._local_quarters()
        self._bound: dict[str, Any] = {}
        # Names that an operator chose stay out of the SQL.
        self._keys = [f"d{number}" for number in range(len(self._dimensions))]
        self._values = [f"m{number}" for number in range(len(self._metrics))]
        self._conditions = " AND ".join(
            ["true", *(f"list_contains({self._values_of(values)}, {name})" for name, values in self._filters())]
        )
        self._read: dict[str, Source] = {}
        self._estimated: list[str] = []

    def _ordered(self) -> list[tuple[str, bool]]:
        if not self._metrics:
            raise WrongUse("no metric is asked for", "name one, as play")
        known = [*self._dimensions, *self._names()]
        for name, _ in self._query.order:
            if name not in known:
                raise WrongUse(f"cannot order by {name!r}, which is not asked for", f"there are {', '.join(known)}")
        times = [(name, False) for name in self._dimensions if name in TIME_DIMENSIONS]
        order = list(self._query.order) or times or [(self._metrics[0].name, True)]
        return order + [(name, False) for name in self._dimensions if name not in dict(order)]

    def _local_quarters(self) -> pa.Table | None:
        """What tells local days and hours from those of UTC; None when they are the same."""
        first, end = self._span
        zone = self._query.timezone
        names = {"day", "hour"}.intersection(self._dimensions)
        if zone is UTC or end <= first or (names == {"hour"} and clock.whole_offsets(zone, first, end)):
            return None
        return clock.quarters(self._tables.spans(self._span), zone, names) if names else None

    def _bind(self, value: Any) -> str:
        self._bound[f"p{len(self._bound)}"] = value
        return f"$p{len(self._bound) - 1}"

    def _values_of(self, values: Iterable[str]) -> str:
        """SQL for a filter's values as dimensions have them."""
        return f"list_transform({self._bind(list(values))}, lambda value: {bounded('value')})"

    def _filters(self) -> list[tuple[str, tuple[str, ...]]]:
        """The aliases of filtered dimensions, and their values."""
        return [(f"f{number}", values) for number, values in enumerate(self._query.filters.values())]

    def _longest(self) -> int:
        """The most seconds that a table may put together for the dimensions of time."""
        lengths = [TIME_DIMENSIONS[name] or _DAY for name in self._dimensions if name in TIME_DIMENSIONS]
        if self._quarters is not None:
            local = [self._quarters[name] for name in self._quarters.schema.names[1:]]
            lengths.append(3600 if all(at % clock.HOUR == 0 for column in local for at in column.to_pylist()) else 60)
        return min([_DAY, *lengths])

    # SQL.

    def run(self, engine: duckdb.DuckDBPyConnection, spill: Path) -> Result:
        """Ask for it."""
        nothing = pa.table({name: pa.array([], pa.int64()) for name in (*self._keys, *self._values)})
        latest = max((file.last for file in self._tables.events), default=None)
        result = Result(
            self._metrics,
            self._dimensions,
            self._told(nothing, with_dimensions=True),
            None if latest is None else clock.moment(latest, UTC),
            estimated=self._estimated,
        )
        if self._span[0] >= self._span[1]:
            return result
        sql = self._statement()
        if self._quarters is not None:
            engine.register("quarters", self._quarters)
        bound = dict(self._bound)
        for source in self._read.values():
            if source.rollup:
                bound[source.name] = [str(file.path) for file in _near(source)]
            else:
                bound["files"] = with_all_columns(_near(source, LOOK_BEHIND, LOOK_AHEAD), spill)
        table = self._fetch(engine, sql, bound)
        if table.num_rows:
            # The total is the last row; without dimensions it is the only one.
            result.count = table["position"][-1].as_py() - bool(self._keys)
            (result.totals,) = self._told(table.slice(table.num_rows - 1), with_dimensions=False).to_pylist()
            on_page = table.num_rows - 1 if self._keys else int(not self._query.offset)
            result.table = self._told(table.slice(0, on_page), with_dimensions=True)
        result.tables = list(self._read)
        return result

    def _fetch(self, engine: duckdb.DuckDBPyConnection, sql: str, bound: dict[str, Any]) -> pa.Table:
        """The rows of a statement. Raises WrongUse when there is too much text in them."""
        if self._text_bytes is None or not self._keys:
            return engine.sql(sql, params=bound).to_arrow_table()
        engine.execute(f"CREATE TEMP TABLE page AS {sql}", bound)  # within the engine's memory, or on the disk
        length = " + ".join(f"coalesce(strlen({key}::VARCHAR), 0)" for key in self._keys)
        ((size,),) = engine.sql(f"SELECT coalesce(sum({length}), 0) FROM page").fetchall()
        if size > self._text_bytes:
            raise too_large(self._text_bytes)
        return engine.sql("SELECT * FROM page ORDER BY position").to_arrow_table()

    def _told(self, table: pa.Table, *, with_dimensions: bool) -> pa.Table:
        """Columns by the names that were asked for, with times of the query's zone."""
        names, columns = [], []
        for key, name in zip(self._keys, self._dimensions, strict=True) if with_dimensions else ():
            is_time = name in TIME_DIMENSIONS
            names.append(name)
            columns.append(
                clock.local(table[key], name, self._query.timezone) if is_time else table[key].cast("string")
            )
        for value, metric in zip(self._values, self._metrics, strict=True):
            names.append(metric.name)
            columns.append(table[value].cast(pa.int64() if metric.is_count else pa.float64()))
        return pa.table(columns, names)

    def _names(self) -> list[str]:
        return [metric.name for metric in self._metrics]

    def _statement(self) -> str:
        names = {PEAK, SESSIONS, USERS, VIDEOS}.intersection(*[sum((metric.inputs for metric in self._metrics), ())])
        measures = {measure.name: measure for metric in self._metrics for measure in measures_of(metric)}
        measures.setdefault("events", MEASURES["events"])
        keys = self._keys
        sums = self._sums(list(measures.values()), self._longest())
        rolled = [f"{measure.rolled}::{measure.kind} AS {measure.name}" for measure in measures.values()]
        parts = {"sums": f"SELECT {', '.join([*keys, *rolled])} FROM ({sums}) {self._grouped()}"}
        if PEAK in names:
            parts["peaks"] = self._peaks()
        if SESSIONS in names:
            parts["sessions"] = self._sessions()
        if USERS in names:
            parts["users"] = self._distinct_rows(USERS, "userId")
        if VIDEOS in names:
            parts["videos"] = self._distinct_rows(VIDEOS, "entry")
        joins = ""
        for part in list(parts)[1:]:
            same = [f"{part}.{key} IS NOT DISTINCT FROM sums.{key}" for key in keys]
            joins += f" LEFT JOIN {part} ON {' AND '.join(['true', *same])}"
        inputs = {name: name for name in measures} | {name: f"coalesce({name}, 0)" for name in names}
        columns = [f"sums.{key} AS {key}" for key in keys]
        for value, metric in zip(self._values, self._metrics, strict=True):
            columns.append(f"{metric.sql(inputs)} AS {value}")
        columns.append(f"{f'sums.{keys[0]} IS NULL' if keys else 'true'} AS is_total")
        alias = dict(zip((*self._dimensions, *self._names()), (*keys, *self._values), strict=True))
        order = ["is_total", *(f"{alias[name]} {'DESC' if down else 'ASC'} NULLS LAST" for name, down in self._order)]
        page = f"position > {self._bind(self._query.offset)}"
        if self._query.limit is not None:
            page += f" AND position <= {self._bind(self._query.offset + self._query.limit)}"
        with_parts = ",\n".join(f"{name} AS ({sql})" for name, sql in parts.items())
        return (
            f"WITH {with_parts},\n"
            f"answer AS (SELECT {', '.join(columns)} FROM sums{joins} WHERE events > 0),\n"
            f"numbered AS (SELECT *, row_number() OVER (ORDER BY {', '.join(order)}) AS position FROM answer)\n"
            f"SELECT * FROM numbered WHERE {page} OR is_total ORDER BY position"
        )

    def _grouped(self) -> str:
        """By the dimensions, and all together: the total is the row without any."""
        return f"GROUP BY GROUPING SETS (({', '.join(self._keys)}), ())" if self._keys else ""

    def _columns(self, *more: str) -> list[str | None]:
        """The rollups' columns of dimensions and filters, and further ones."""
        names = [name for name in (*self._dimensions, *self._query.filters) if name not in TIME_DIMENSIONS]
        return [*(self._vocabulary.column(name) for name in names), *more]

    def _sums(self, measures: list[Measure], longest: int, *more: str) -> str:
        """SQL for sums of measures by the dimensions, and by further columns of rollups, from the cheapest tables; more
        than one row for the same dimensions where there is more than one table.
        """
        parts = []
        columns = self._columns(*more) + [None] * any(not is_in_rollups(measure) for measure in measures)
        for source in self._tables.cheapest(self._span, columns, longest):
            aggregates = [
                f"{measure.rolled if source.rollup else measure.raw} AS {measure.name}" for measure in measures
            ]
            parts.append(self._from(source, measures, aggregates, {name: name for name in more}, more))
        return " UNION ALL ".join(parts)

    def _from(
        self,
        source: Source,
        measures: Collection[Measure],
        aggregates: Iterable[str],
        more: Mapping[str, str] = MappingProxyType({}),
        needed: Iterable[str] = (),
    ) -> str:
        """SQL for aggregates of measures, by the dimensions and by more columns (alias: SQL), of one table. `needed`
        are columns of it that the aggregates and the SQL name.
        """
        known = self._read.setdefault(source.name, replace(source, spans=[]))
        known.spans += source.spans
        times = {
            key: self._time(name)
            for key, name in zip(self._keys, self._dimensions, strict=True)
            if name in TIME_DIMENSIONS
        }
        rows = self._rollup_rows(source, measures) if source.rollup else self._event_rows(source, measures, needed)
        columns = [f"{times[key]} AS {key}" if key in times else key for key in self._keys]
        columns += [f"{sql} AS {alias}" for alias, sql in more.items()]
        join = f" JOIN quarters ON t // {clock.QUARTER} = quarter" if self._quarters is not None and times else ""
        group = " GROUP BY ALL" if columns else ""
        return f"SELECT {', '.join([*columns, *aggregates])} FROM ({rows}){join}{group}"

    def _time(self, name: str) -> str:
        """SQL for a dimension of time, in µs since 1970."""
        if self._quarters is not None and name in self._quarters.schema.names:
            return f"quarters.{name}"
        length = (TIME_DIMENSIONS[name] or _DAY) * 1_000_000
        return f"t // {length} * {length}"

    def _aliases(self, raw: bool) -> dict[str, str]:
        """SQL for dimensions and filters in a table, by alias."""
        aliases = {}
        named = [*zip(self._keys, self._dimensions, strict=True)]
        named += [(alias, name) for (alias, _), name in zip(self._filters(), self._query.filters, strict=True)]
        for alias, name in named:
            if name not in TIME_DIMENSIONS:
                aliases[alias] = self._vocabulary.raw(name, self._bind) if raw else str(self._vocabulary.column(name))
        return aliases

    def _rollup_rows(self, source: Source, measures: Collection[Measure]) -> str:
        assert source.rollup
        stored = [f"{sql} AS {alias}" for alias, sql in self._aliases(raw=False).items()]
        stored += [f"{stored_as(measure)} AS {measure.name}" for measure in measures if measure.other_type is not None]
        spans = " OR ".join(f"t >= {first} AND t < {end}" for first, end in source.spans)
        return (
            f"SELECT * FROM (SELECT epoch_us(time) AS t, *{''.join(f', {column}' for column in stored)} "
            f"FROM read_parquet(${source.name}, hive_partitioning = false)) WHERE ({spans}) AND ({self._conditions})"
        )

    def _event_rows(self, source: Source, measures: Collection[Measure], needed: Iterable[str]) -> str:
        columns = self._aliases(raw=True)
        columns |= {name: RAW_DIMENSIONS.get(name, name) for name in needed}
        return facts(columns, measures, source.spans, where=self._conditions)

    def _peaks(self) -> str:
        """The most views in ten seconds, by the dimensions."""
        view = MEASURES["view"]
        keys = [*self._keys, "bucket"]
        parts = []
        for source in self._tables.cheapest(self._span, self._columns(), 10):
            aggregate = f"{view.rolled if source.rollup else view.raw} AS view"
            parts.append(self._from(source, [view], [aggregate], {"bucket": "t // 10000000"}))
        rows = " UNION ALL ".join(parts)
        sets = f"GROUPING SETS (({', '.join(keys)}), (bucket))" if self._keys else "bucket"
        buckets = f"SELECT {', '.join(keys)}, sum(view) AS views FROM ({rows}) GROUP BY {sets}"
        grouped = f"GROUP BY {', '.join(self._keys)}" if self._keys else ""
        return f"SELECT {', '.join([*self._keys, f'max(views) AS {PEAK}'])} FROM ({buckets}) {grouped}"

    def _distinct_rows(self, name: str, column: str) -> str:
        """How many values of a column there are for each partner, by the dimensions; exactly."""
        rows = self._sums([], self._longest(), "partner", column)
        counted = f"count(DISTINCT (partner, {column})) AS {name}"
        return (
            f"SELECT {', '.join([*self._keys, counted])} FROM ({rows}) WHERE {column} <> '{UNKNOWN}' {self._grouped()}"
        )

    def _sessions(self) -> str:
        """How many sessions there are, by the dimensions: exactly, or by sketches where that would take too long."""
        sources = self._tables.cheapest(self._span, self._columns(), self._longest())
        if self._tables.count(self._span) <= self._exact_events or not any(
            source.rollup and source.rollup.has_sketch for source in sources
        ):
            everything = Source(None, self._tables.events, [self._span])
            rows = self._from(everything, [], [], {"sessionId": "sessionId"}, ["sessionId"])
            counted = f"count(DISTINCT sessionId) AS {SESSIONS}"
            return f"SELECT {', '.join([*self._keys, counted])} FROM ({rows}) WHERE sessionId <> '' {self._grouped()}"
        self._estimated.append(SESSIONS)
        parts = []
        edges = Source(None, self._tables.events)
        for source in sources:
            if source.rollup and source.rollup.has_sketch:
                sketches = f"list({SKETCH}) FILTER ({SKETCH} IS NOT NULL) AS sketches"
                parts.append(self._from(source, [], [sketches, "NULL::VARCHAR[] AS ids"]))
            else:
                edges.spans += source.spans
        if edges.spans:
            ids = "list(DISTINCT sessionId) FILTER (sessionId <> '') AS ids"
            parts.append(self._from(edges, [], ["NULL::BLOB[] AS sketches", ids], needed=["sessionId"]))
        estimate = ", ".join(f"flatten(list({name}) FILTER ({name} IS NOT NULL))" for name in ("sketches", "ids"))
        return (
            f"SELECT {', '.join([*self._keys, f'kanalony_distinct({estimate}) AS {SESSIONS}'])} "
            f"FROM ({' UNION ALL '.join(parts)}) {self._grouped()}"
        )


def too_large(most: int) -> WrongUse:
    """The error for an answer of more than so many bytes."""
    return WrongUse(
        f"the answer has more than {most:,} bytes",
        "ask for smaller pages (pageSize), or for fewer metrics and dimensions",
    )


def _check_size(query: Query) -> None:
    """Raises WrongUse when there is too much in a query."""
    for what, count, most in (
        ("metrics", len(query.metrics), MOST_METRICS),
        ("dimensions", len(query.dimensions), MOST_DIMENSIONS),
        ("names to order by", len(query.order), MOST_METRICS + MOST_DIMENSIONS),
        ("filters", len(query.filters), MOST_FILTERS),
        ("values of filters", sum(map(len, query.filters.values())), MOST_VALUES),
    ):
        if count > most:
            raise WrongUse(f"there are {count:,} {what} in this query, and {most:,} at most", "ask for less at a time")


def _near(source: Source, before: int = 0, after: int = 0) -> list[LakeFile]:
    """The files of a table that may have rows of its periods, or of so many µs before or after one."""
    return [
        file
        for file in source.files
        if any(file.last >= first - before and file.first < end + after for first, end in source.spans)
    ]


def _distinct(sketches: pa.Array, ids: pa.Array) -> pa.Array:
    """For each row the estimated number of distinct texts in sketches, and among further ones."""
    found = []
    for row in range(len(sketches)):
        union = theta_union(SKETCH_SIZE)
        for sketch in sketches[row].as_py() or ():
            union.update(compact_theta_sketch.deserialize(sketch))
        union.update(compact_theta_sketch.deserialize(sketch_of(ids[row].as_py() or [])))
        found.append(round(union.get_result().get_estimate()))
    return pa.array(found, pa.int64())
