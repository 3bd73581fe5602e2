"""Which tables can answer a question, and which of them are the cheapest."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kanalony.aggregate.manifest import read_lake
from kanalony.aggregate.parquet import LakeFile
from kanalony.aggregate.rollups import ROLLUPS, ReadOnlyRollup, Rollup
from kanalony.errors import FormatError
from kanalony.units import HOUR

log = logging.getLogger("kanalony")

Span = tuple[int, int]
"""A period [first, end) in µs since 1970."""


@dataclass
class Source:
    """A table that is read, and the periods it is read for. Without a rollup that is the table of events."""

    rollup: Rollup | None
    files: list[LakeFile]
    spans: list[Span] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.rollup.name if self.rollup else "events"


class Tables:
    """The lake and its rollups as they are now."""

    def __init__(self, lake: Path) -> None:
        """`lake` is the directory of the lake. Raises FormatError when it holds something else, or has lost
        a part.
        """
        # The lake first: a rollup that is ahead of it is not used, nor one that lags behind.
        events = read_lake(lake)
        self.events = events.files
        self._rollups = []
        for known in ROLLUPS:
            try:
                rollup = ReadOnlyRollup(lake, known)
            except FormatError as error:
                log.warning("a rollup cannot be read, others answer instead: %s (%s)", error, error.hint)
                continue
            if (rollup.lake, rollup.batch) == (events.number_of, events.batch):
                self._rollups.append(rollup)

    @property
    def files(self) -> list[LakeFile]:
        """Those of the tables that can be read: of rollups, then of events."""
        return [file for rollup in self._rollups for file in rollup.files] + self.events

    def drop_rollups(self) -> None:
        """Do without rollups from now on."""
        self._rollups = []

    def spans(self, span: Span) -> list[Span]:
        """The parts of a period in which there may be events, in order."""
        spans: list[Span] = []
        for file in sorted(self.events, key=lambda file: file.first):
            first, end = max(span[0], file.first // HOUR * HOUR), min(span[1], (file.last // HOUR + 1) * HOUR)
            if spans and first <= spans[-1][1]:
                spans[-1] = spans[-1][0], max(end, spans[-1][1])
            elif first < end:
                spans.append((first, end))
        return spans

    def covered(self, first: int | None, end: int | None) -> Span:
        """A period as far as there are events: in whole hours where it reaches beyond them."""
        if not self.events:
            return 0, 0
        earliest = min(file.first for file in self.events) // HOUR * HOUR
        latest = (max(file.last for file in self.events) // HOUR + 1) * HOUR
        return max(earliest, earliest if first is None else first), min(latest, latest if end is None else end)

    def count(self, span: Span) -> int:
        """How many events there are in a period, at the most."""
        return sum(file.rows for file in self.events if file.last >= span[0] and file.first < span[1])

    def cheapest(self, span: Span, columns: Iterable[str | None], seconds: int) -> list[Source]:
        """The tables that tell these dimensions apart, and times as short as these seconds: the coarsest for as much
        of a period as it can answer, finer ones for what is left. A column of None is one that only the events have.
        """
        needed = set(columns)
        able = [
            rollup
            for rollup in self._rollups
            if needed <= set(rollup.rollup.dimensions) and rollup.rollup.seconds <= seconds
        ]
        sources: dict[str, Source] = {}

        def plan(first: int, end: int, rollups: list[ReadOnlyRollup]) -> None:
            if first >= end:
                return
            if not rollups:
                sources.setdefault("events", Source(None, self.events)).spans.append((first, end))
                return
            coarsest, *finer = rollups
            length = coarsest.rollup.seconds * 1_000_000
            begin = -(-max(first, coarsest.kept_from) // length) * length
            stop = end // length * length
            if begin >= stop:
                plan(first, end, finer)
                return
            plan(first, begin, finer)
            for gap in coarsest.gaps:
                if begin < gap + HOUR and gap < stop:
                    use(coarsest, begin, gap)
                    plan(max(begin, gap), min(stop, gap + HOUR), finer)
                    begin = gap + HOUR
            use(coarsest, begin, stop)
            plan(stop, end, finer)

        def use(rollup: ReadOnlyRollup, first: int, end: int) -> None:
            if any(file.last >= first and file.first < end for file in rollup.files) and first < end:
                name = rollup.rollup.name
                sources.setdefault(name, Source(rollup.rollup, rollup.files)).spans.append((first, end))

        plan(*span, able)
        return list(sources.values()) or [Source(None, self.events, [span])]
