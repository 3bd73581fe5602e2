"""Planner: which tables answer a query, and for which parts of its period."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kanalony.aggregate.manifest import read_lake
from kanalony.aggregate.parquet import LakeFile
from kanalony.aggregate.rollups import ROLLUPS, ReadOnlyRollup, Rollup
from kanalony.errors import FormatError
from kanalony.units import HOUR

log = logging.getLogger(__name__)


class Span(NamedTuple):
    """A period [first, end) in µs since 1970."""

    first: int
    end: int


@dataclass
class Scan:
    """A table that a query reads, and the periods it reads there. The table of events has no rollup."""

    rollup: Rollup | None
    files: list[LakeFile]
    spans: list[Span] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The table's name, as reports show it."""
        return self.rollup.name if self.rollup else "events"

    def near_files(self, before: int = 0, after: int = 0) -> list[LakeFile]:
        """Lists the files that may have rows of the periods.

        Args:
            before: µs by which each period is extended at its beginning.
            after: µs by which each period is extended at its end.
        """
        return [
            file
            for file in self.files
            if any(file.last >= span.first - before and file.first < span.end + after for span in self.spans)
        ]


class Snapshot:
    """The files of the lake and its rollups at one moment."""

    def __init__(self, lake: Path) -> None:
        """Reads the tables' logs.

        Args:
            lake: Directory of the lake.

        Raises:
            FormatError: The directory holds something else, or a part of the lake is lost.
        """
        # The lake first: a rollup that is ahead of the lake or lags behind it is not used.
        events = read_lake(lake)
        self.events = events.files
        self._rollups = []
        for known in ROLLUPS:
            try:
                rollup = ReadOnlyRollup(lake, known)
            except FormatError as error:
                log.warning("cannot read a rollup, using other tables: %s (%s)", error, error.hint)
                continue
            if (rollup.lake, rollup.batch) == (events.number_of, events.batch):
                self._rollups.append(rollup)

    @property
    def files(self) -> list[LakeFile]:
        """All files: those of the usable rollups, then those of events."""
        return [file for rollup in self._rollups for file in rollup.files] + self.events

    def drop_rollups(self) -> None:
        """Plans without rollups from now on."""
        self._rollups = []

    def clip(self, first: int | None, end: int | None) -> Span:
        """Clips a period to the whole hours that have events; None stands for no bound."""
        if not self.events:
            return Span(0, 0)
        earliest = min(file.first for file in self.events) // HOUR * HOUR
        latest = (max(file.last for file in self.events) // HOUR + 1) * HOUR
        return Span(max(earliest, earliest if first is None else first), min(latest, latest if end is None else end))

    def occupied(self, span: Span) -> list[Span]:
        """Lists the parts of a period, in whole hours and in order, that may have events."""
        spans: list[Span] = []
        for file in sorted(self.events, key=lambda file: file.first):
            first, end = max(span.first, file.first // HOUR * HOUR), min(span.end, (file.last // HOUR + 1) * HOUR)
            if spans and first <= spans[-1].end:
                spans[-1] = Span(spans[-1].first, max(end, spans[-1].end))
            elif first < end:
                spans.append(Span(first, end))
        return spans

    def most_events(self, span: Span) -> int:
        """Returns an upper bound of the number of events in a period."""
        return sum(file.rows for file in self.events if file.last >= span.first and file.first < span.end)

    def plan(self, span: Span, columns: Iterable[str | None], seconds: int) -> list[Scan]:
        """Chooses the cheapest tables for a period: the coarsest where it suffices, finer ones for the rest.

        Args:
            span: The period.
            columns: Columns of rollups that the query groups or filters by; None for one that only events have.
            seconds: The coarsest resolution that suffices.
        """
        needed = set(columns)
        suitable = [
            table
            for table in self._rollups
            if needed <= set(table.rollup.dimensions) and table.rollup.seconds <= seconds
        ]
        scans: dict[str, Scan] = {}
        for table, part in _divide(span, suitable):
            scan = Scan(table.rollup, table.files) if table else Scan(None, self.events)
            if table is None or any(file.last >= part.first and file.first < part.end for file in table.files):
                scans.setdefault(scan.name, scan).spans.append(part)
        return list(scans.values()) or [Scan(None, self.events, [span])]


def _divide(span: Span, rollups: list[ReadOnlyRollup]) -> Iterator[tuple[ReadOnlyRollup | None, Span]]:
    """Divides a period among rollups, given from the coarsest to the finest; None stands for the table of events."""
    first, end = span
    if first >= end:
        return
    if not rollups:
        yield None, span
        return
    coarsest, *finer = rollups
    length = coarsest.rollup.interval
    begin = -(-max(first, coarsest.kept_from) // length) * length
    stop = end // length * length
    if begin >= stop:
        yield from _divide(span, finer)
        return
    yield from _divide(Span(first, begin), finer)
    for gap in coarsest.gaps:
        if begin < gap + HOUR and gap < stop:
            if begin < gap:
                yield coarsest, Span(begin, gap)
            yield from _divide(Span(max(begin, gap), min(stop, gap + HOUR)), finer)
            begin = gap + HOUR
    if begin < stop:
        yield coarsest, Span(begin, stop)
    yield from _divide(Span(stop, end), finer)
