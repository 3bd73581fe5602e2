"""A query: metrics x dimensions x filters x period x time zone x order x page, and the checks of its names and size."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo

from kanalony.errors import UsageError
from kanalony.events import TIME_DIMENSIONS, Metric
from kanalony.reports.vocabulary import Vocabulary

MOST_METRICS = 100
MOST_DIMENSIONS = 20
MOST_FILTERS = 20
MOST_VALUES = 1_000
"""Limits of a query; `MOST_VALUES` counts the values of all its filters. Planning takes longer, and more memory, with
each."""


@dataclass(frozen=True)
class Query:
    """What a report shows.

    Attributes:
        metrics: Names of metrics; a number stands for events of that type.
        dimensions: Names of dimensions to group by.
        filters: Values by dimension; an event must have one of the values in each of these dimensions.
        start: First moment of the period, with a time zone; None for the lake's first.
        end: End of the period, not included; None for the lake's end.
        timezone: Time zone for hours and days.
        order: Names to sort by, each with whether it descends. Without any: by time, or else by the first metric,
            largest first.
        limit: Rows of a page; None for all.
        offset: Rows before the page.
        latest_of: Partner whose newest event is the answer's `latest`; None for all partners.
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


@dataclass(frozen=True)
class Selection:
    """A checked query's metrics and dimensions, without repetitions, and the complete order of its rows."""

    metrics: list[Metric]
    dimensions: list[str]
    order: list[tuple[str, bool]]

    @property
    def keys(self) -> list[str]:
        """SQL names of the dimensions. Names that an operator chose stay out of the SQL."""
        return [f"d{number}" for number in range(len(self.dimensions))]

    @property
    def values(self) -> list[str]:
        """SQL names of the metrics."""
        return [f"m{number}" for number in range(len(self.metrics))]


def check(query: Query, vocabulary: Vocabulary) -> Selection:
    """Checks a query and looks its names up.

    Raises:
        UsageError: The query exceeds a limit, holds text that is not UTF-8, filters by time, or orders by a name that
            it does not show.
        UnknownName: The query names an unknown metric or dimension.
    """
    _check_size(query)
    _check_texts(query)
    metrics = [vocabulary.metric(name) for name in dict.fromkeys(query.metrics)]
    dimensions = [vocabulary.dimension(name) for name in dict.fromkeys(query.dimensions)]
    for name in query.filters:
        if vocabulary.dimension(name) in TIME_DIMENSIONS:
            raise UsageError(f"cannot filter by {name}", "set a period instead")
    if not metrics:
        raise UsageError("no metrics are given", "name at least one, for example play")
    return Selection(metrics, dimensions, _complete_order(query, metrics, dimensions))


def _complete_order(query: Query, metrics: list[Metric], dimensions: list[str]) -> list[tuple[str, bool]]:
    known = [*dimensions, *(metric.name for metric in metrics)]
    for name, _ in query.order:
        if name not in known:
            raise UsageError(
                f"cannot order by {name!r}, which the query does not show", f"choose from {', '.join(known)}"
            )
    times = [(name, False) for name in dimensions if name in TIME_DIMENSIONS]
    order = list(query.order) or times or [(metrics[0].name, True)]
    ordered = {name for name, _ in order}
    return order + [(name, False) for name in dimensions if name not in ordered]


def _check_size(query: Query) -> None:
    for what, count, most in (
        ("metrics", len(query.metrics), MOST_METRICS),
        ("dimensions", len(query.dimensions), MOST_DIMENSIONS),
        ("names to order by", len(query.order), MOST_METRICS + MOST_DIMENSIONS),
        ("filters", len(query.filters), MOST_FILTERS),
        ("values in filters", sum(map(len, query.filters.values())), MOST_VALUES),
    ):
        if count > most:
            raise UsageError(f"the query has {count:,} {what}; at most {most:,} are allowed", "send a smaller query")


def _check_texts(query: Query) -> None:
    values = [value for values in query.filters.values() for value in values]
    for text in (*query.metrics, *query.dimensions, *query.filters, *values):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{text!r} is not valid UTF-8", "send the text as it is in the events") from error
