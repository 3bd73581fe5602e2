"""Builds one SQL statement for a query.

The statement reads the tables that the planner chose and adds up their sums: whole hours from the hours' rollup, the
edges of the period from minutes, ten seconds, and the events themselves. The result is the same whichever tables these
are. Values are bound as parameters; names come from the vocabulary.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC
from functools import partial
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from kanalony.aggregate.measures import (
    MEASURES,
    RAW_DIMENSIONS,
    Measure,
    bounded,
    facts,
    find_measure,
    is_in_rollups,
    stored_as,
)
from kanalony.aggregate.rollups import SKETCH
from kanalony.events import TIME_DIMENSIONS, UNKNOWN, VIEW_INTERVAL
from kanalony.reports import clock
from kanalony.reports.planner import Scan, Snapshot, Span
from kanalony.reports.query import Query, Selection
from kanalony.reports.sketches import ESTIMATE
from kanalony.reports.vocabulary import Vocabulary
from kanalony.units import DAY, HOUR, MINUTE, SECOND

PEAK, SESSIONS, USERS, VIDEOS = "peakView", "uniqueSessions", "uniqueKnownUsers", "uniqueVideos"
"""Names in formulas of metrics that are no sums of measures: each has a part of the statement of its own."""

_DAY = DAY // SECOND


@dataclass
class Statement:
    """SQL, and what it needs to run.

    Attributes:
        sql: A SELECT with the columns of the selection's keys and values, `is_total` and `position`, ordered by
            position. The last row is the total; its position is the number of all rows, itself included.
        parameters: Values of the SQL's parameters, except for the files of the tables.
        scans: The tables that the SQL reads: `$name` of a rollup, and `$files` for events.
        quarters: Table `quarters` of the SQL: local days and hours by quarters of an hour (clock.quarters). None when
            these are those of UTC.
        estimated: Names of metrics that sketches estimate.
    """

    sql: str
    parameters: dict[str, Any]
    scans: list[Scan]
    quarters: pa.Table | None = None
    estimated: list[str] = field(default_factory=list)


def build_statement(
    snapshot: Snapshot, vocabulary: Vocabulary, query: Query, selection: Selection, exact_events: int
) -> Statement | None:
    """Builds the statement of a checked query; None when the lake has nothing in its period.

    Args:
        snapshot: The tables.
        vocabulary: SQL of dimensions.
        query: The query.
        selection: What `check` returned for it.
        exact_events: Sessions of more events than this are estimated where rollups have sketches of them.
    """
    ends = [None if end is None else clock.micros(end) for end in (query.start, query.end)]
    span = snapshot.clip(*ends)
    if span.first >= span.end:
        return None
    return _Builder(snapshot, vocabulary, query, selection, span, exact_events).build()


class _Builder:
    """The state of a statement while it is built."""

    def __init__(
        self,
        snapshot: Snapshot,
        vocabulary: Vocabulary,
        query: Query,
        selection: Selection,
        span: Span,
        exact_events: int,
    ) -> None:
        self._snapshot = snapshot
        self._vocabulary = vocabulary
        self._query = query
        self._selection = selection
        self._span = span
        self._exact_events = exact_events
        self._keys = selection.keys
        self._dimensions = dict(zip(self._keys, selection.dimensions, strict=True))
        self._times = {key: name for key, name in self._dimensions.items() if name in TIME_DIMENSIONS}
        self._filters = {f"f{number}": name for number, name in enumerate(query.filters)}
        self._parameters: dict[str, Any] = {}
        self._scans: dict[str, Scan] = {}
        self._estimated: list[str] = []
        self._quarters = self._local_quarters()
        self._resolution = self._needed_resolution()
        conditions = [
            f"list_contains({self._bind_values(query.filters[name])}, {key})" for key, name in self._filters.items()
        ]
        self._conditions = " AND ".join(["true", *conditions])

    def build(self) -> Statement:
        inputs = list(dict.fromkeys(name for metric in self._selection.metrics for name in metric.inputs))
        computed: dict[str, tuple[str, Callable[[], str]]] = {
            PEAK: ("peaks", self._peaks),
            SESSIONS: ("sessions", self._sessions),
            USERS: ("users", partial(self._distinct, USERS, "userId")),
            VIDEOS: ("videos", partial(self._distinct, VIDEOS, "entry")),
        }
        measures = {name: find_measure(name) for name in ("events", *inputs) if name not in computed}
        parts = {"sums": self._sums(measures.values())}
        columns = {name: name for name in measures}
        for name, (part, build) in computed.items():
            if name in inputs:
                parts[part] = build()
                columns[name] = f"coalesce({part}.{name}, 0)"
        return Statement(
            self._answer(parts, columns), self._parameters, list(self._scans.values()), self._quarters, self._estimated
        )

    def _answer(self, parts: Mapping[str, str], columns: Mapping[str, str]) -> str:
        """SQL for the page and the total.

        Args:
            parts: Tables by name; `sums` has a row for each row of the answer, the others for some of them.
            columns: SQL for each input of the metrics' formulas.
        """
        keys, values = self._keys, self._selection.values
        joins = ""
        for part in parts:
            if part != "sums":
                same = [f"{part}.{key} IS NOT DISTINCT FROM sums.{key}" for key in keys]
                joins += f" LEFT JOIN {part} ON {' AND '.join(['true', *same])}"
        selected = [f"sums.{key} AS {key}" for key in keys]
        formulas = [metric.sql(columns) for metric in self._selection.metrics]
        selected += [f"{formula} AS {value}" for formula, value in zip(formulas, values, strict=True)]
        selected.append(f"{f'sums.{keys[0]} IS NULL' if keys else 'true'} AS is_total")
        names = [*self._selection.dimensions, *(metric.name for metric in self._selection.metrics)]
        column_of = dict(zip(names, (*keys, *values), strict=True))
        order = [f"{column_of[name]} {'DESC' if down else 'ASC'} NULLS LAST" for name, down in self._selection.order]
        page = f"position > {self._bind(self._query.offset)}"
        if self._query.limit is not None:
            page += f" AND position <= {self._bind(self._query.offset + self._query.limit)}"
        with_parts = ",\n".join(f"{name} AS ({sql})" for name, sql in parts.items())
        return (
            f"WITH {with_parts},\n"
            f"answer AS (SELECT {', '.join(selected)} FROM sums{joins} WHERE events > 0),\n"
            f"numbered AS (SELECT *, row_number() OVER (ORDER BY {', '.join(['is_total', *order])}) AS position "
            f"FROM answer)\n"
            f"SELECT * FROM numbered WHERE {page} OR is_total ORDER BY position"
        )

    # Parts of the statement: each has the keys, and one row more for the total, whose keys are null.

    def _sums(self, measures: Collection[Measure]) -> str:
        rows = self._partial_sums(measures)
        totals = [f"{measure.rolled}::{measure.kind} AS {measure.name}" for measure in measures]
        return f"SELECT {', '.join([*self._keys, *totals])} FROM ({rows}) {self._grouping()}"

    def _peaks(self) -> str:
        """Most views in ten seconds."""
        view = MEASURES["view"]
        rows = " UNION ALL ".join(
            self._select(scan, [view], [f"{_aggregate(scan, view)} AS view"], {"bucket": f"t // {VIEW_INTERVAL}"})
            for scan in self._snapshot.plan(self._span, self._columns(), VIEW_INTERVAL // SECOND)
        )
        keys = [*self._keys, "bucket"]
        sets = f"GROUPING SETS (({', '.join(keys)}), (bucket))" if self._keys else "bucket"
        buckets = f"SELECT {', '.join(keys)}, sum(view) AS views FROM ({rows}) GROUP BY {sets}"
        grouping = f"GROUP BY {', '.join(self._keys)}" if self._keys else ""
        return f"SELECT {', '.join([*self._keys, f'max(views) AS {PEAK}'])} FROM ({buckets}) {grouping}"

    def _distinct(self, name: str, column: str) -> str:
        """Distinct values of a column of rollups, those of each partner on their own, exactly."""
        rows = self._partial_sums([], "partner", column)
        count = f"count(DISTINCT (partner, {column})) AS {name}"
        return (
            f"SELECT {', '.join([*self._keys, count])} FROM ({rows}) WHERE {column} <> '{UNKNOWN}' {self._grouping()}"
        )

    def _sessions(self) -> str:
        """Distinct sessions: exactly, or by sketches where exactly would take too long."""
        scans = self._snapshot.plan(self._span, self._columns(), self._resolution)
        sketched = [scan for scan in scans if _has_sketches(scan)]
        if self._snapshot.most_events(self._span) <= self._exact_events or not sketched:
            everything = Scan(None, self._snapshot.events, [self._span])
            rows = self._select(everything, [], [], {"sessionId": "sessionId"}, ["sessionId"])
            count = f"count(DISTINCT sessionId) AS {SESSIONS}"
            return f"SELECT {', '.join([*self._keys, count])} FROM ({rows}) WHERE sessionId <> '' {self._grouping()}"
        self._estimated.append(SESSIONS)
        parts = []
        for scan in sketched:
            sketches = f"list({SKETCH}) FILTER ({SKETCH} IS NOT NULL) AS sketches"
            parts.append(self._select(scan, [], [sketches, "NULL::VARCHAR[] AS ids"]))
        edges = [span for scan in scans if not _has_sketches(scan) for span in scan.spans]
        if edges:
            events = Scan(None, self._snapshot.events, edges)
            ids = "list(DISTINCT sessionId) FILTER (sessionId <> '') AS ids"
            parts.append(self._select(events, [], ["NULL::BLOB[] AS sketches", ids], needed=["sessionId"]))
        lists = ", ".join(f"flatten(list({name}) FILTER ({name} IS NOT NULL))" for name in ("sketches", "ids"))
        selected = ", ".join([*self._keys, f"{ESTIMATE}({lists}) AS {SESSIONS}"])
        return f"SELECT {selected} FROM ({' UNION ALL '.join(parts)}) {self._grouping()}"

    def _grouping(self) -> str:
        """By the keys, and all rows together: the total is the row without keys."""
        return f"GROUP BY GROUPING SETS (({', '.join(self._keys)}), ())" if self._keys else ""

    # Rows of tables.

    def _partial_sums(self, measures: Collection[Measure], *more: str) -> str:
        """SQL for sums of measures by the keys, and by further columns of rollups, from the cheapest tables.

        Each table adds rows of its own, so several rows may have the same keys.
        """
        columns = self._columns(*more)
        if not all(map(is_in_rollups, measures)):
            columns.append(None)
        parts = []
        for scan in self._snapshot.plan(self._span, columns, self._resolution):
            aggregates = [f"{_aggregate(scan, measure)} AS {measure.name}" for measure in measures]
            parts.append(self._select(scan, measures, aggregates, {name: name for name in more}, more))
        return " UNION ALL ".join(parts)

    def _select(
        self,
        scan: Scan,
        measures: Collection[Measure],
        aggregates: Iterable[str],
        more: Mapping[str, str] = MappingProxyType({}),
        needed: Iterable[str] = (),
    ) -> str:
        """SQL for aggregates over one table, by the keys and by more columns.

        Args:
            scan: The table and the periods.
            measures: Measures that the aggregates use.
            aggregates: SQL with aliases.
            more: SQL of further columns to group by, by alias.
            needed: Columns of the table that the aggregates and `more` name.
        """
        noted = self._scans.setdefault(scan.name, replace(scan, spans=[]))
        noted.spans += scan.spans
        rows = self._rollup_rows(scan, measures) if scan.rollup else self._event_rows(scan, measures, needed)
        columns = [f"{self._time(self._times[key])} AS {key}" if key in self._times else key for key in self._keys]
        columns += [f"{sql} AS {alias}" for alias, sql in more.items()]
        join = ""
        if self._quarters is not None and self._times:
            join = f" JOIN quarters ON t // {clock.QUARTER} = quarter"
        group = " GROUP BY ALL" if columns else ""
        return f"SELECT {', '.join([*columns, *aggregates])} FROM ({rows}){join}{group}"

    def _rollup_rows(self, scan: Scan, measures: Collection[Measure]) -> str:
        columns = [f"{self._vocabulary.column(name)} AS {key}" for key, name in self._named().items()]
        columns += [f"{stored_as(measure)} AS {measure.name}" for measure in measures if measure.other_type is not None]
        spans = " OR ".join(f"t >= {span.first} AND t < {span.end}" for span in scan.spans)
        return (
            f"SELECT * FROM (SELECT epoch_us(time) AS t, *{''.join(f', {column}' for column in columns)} "
            f"FROM read_parquet(${scan.name}, hive_partitioning = false)) WHERE ({spans}) AND ({self._conditions})"
        )

    def _event_rows(self, scan: Scan, measures: Collection[Measure], needed: Iterable[str]) -> str:
        columns = {key: self._vocabulary.raw(name, self._bind) for key, name in self._named().items()}
        columns |= {name: RAW_DIMENSIONS.get(name, name) for name in needed}
        return facts(columns, measures, scan.spans, where=self._conditions)

    def _named(self) -> dict[str, str]:
        """Dimensions by SQL name, of rows and filters, except those of time."""
        return {key: name for key, name in (self._dimensions | self._filters).items() if name not in TIME_DIMENSIONS}

    def _columns(self, *more: str) -> list[str | None]:
        """Columns of rollups for the dimensions and filters, and further ones."""
        return [*(self._vocabulary.column(name) for name in self._named().values()), *more]

    # Parameters.

    def _bind(self, value: Any) -> str:
        name = f"p{len(self._parameters)}"
        self._parameters[name] = value
        return f"${name}"

    def _bind_values(self, values: Iterable[str]) -> str:
        """SQL for a filter's values, bounded as the dimensions' values are."""
        return f"list_transform({self._bind(list(values))}, lambda value: {bounded('value')})"

    # Time.

    def _time(self, name: str) -> str:
        """SQL for a dimension of time, in µs since 1970."""
        if self._quarters is not None and name in self._quarters.schema.names:
            return f"quarters.{name}"
        length = (TIME_DIMENSIONS[name] or _DAY) * SECOND
        return f"t // {length} * {length}"

    def _local_quarters(self) -> pa.Table | None:
        """Local days and hours by quarters of an hour; None when they are those of UTC."""
        zone = self._query.timezone
        names = {"day", "hour"}.intersection(self._times.values())
        if not names or zone is UTC or (names == {"hour"} and clock.whole_offsets(zone, *self._span)):
            return None
        return clock.quarters(self._snapshot.occupied(self._span), zone, names)

    def _needed_resolution(self) -> int:
        """The coarsest resolution in seconds that tells the query's times apart."""
        lengths = [_DAY, *(TIME_DIMENSIONS[name] or _DAY for name in self._times.values())]
        if self._quarters is not None:
            local = [self._quarters[name] for name in self._quarters.schema.names if name != "quarter"]
            is_whole = all(at % HOUR == 0 for column in local for at in column.to_pylist())
            lengths.append((HOUR if is_whole else MINUTE) // SECOND)
        return min(lengths)


def _aggregate(scan: Scan, measure: Measure) -> str:
    return measure.rolled if scan.rollup else measure.raw


def _has_sketches(scan: Scan) -> bool:
    return scan.rollup is not None and scan.rollup.has_sketch
