"""Queries as people write them: on the command line, and to the query action."""

from collections.abc import Sequence
from datetime import UTC, datetime

from kanalony.errors import WrongUse
from kanalony.reports.clock import read_period, read_zone
from kanalony.reports.query import Query


def names(text: str) -> tuple[str, ...]:
    """Names that are parted by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def read_order(text: str) -> tuple[tuple[str, bool], ...]:
    """Names to sort by, and whether they descend, which a - in front says; + says the opposite."""
    return tuple((name.lstrip("+-"), name.startswith("-")) for name in names(text))


def read_command(
    *,
    metrics: str,
    dimensions: str,
    start: str | None,
    end: str | None,
    filters: Sequence[str],
    order: str,
    limit: int | None,
    page: int,
    timezone: str,
) -> Query:
    """The query of `kanalony report`. Raises WrongUse."""
    zone = read_zone(timezone)
    now = datetime.now(UTC)
    wanted: dict[str, tuple[str, ...]] = {}
    for text in filters:
        name, equals, value = text.partition("=")
        if not equals:
            raise WrongUse(f"--filter is {text!r}", "write it like --filter partner=585231")
        wanted[name] = (*wanted.get(name, ()), value)
    if page > 1 and limit is None:
        raise WrongUse("--page needs --limit", "say how many rows a page has, as --limit 20")
    return Query(
        metrics=names(metrics),
        dimensions=names(dimensions),
        filters=wanted,
        timezone=zone,
        order=read_order(order),
        limit=limit,
        offset=(page - 1) * (limit or 0),
        **period(
            None if start is None else read_period(start, zone, now)[0],
            None if end is None else read_period(end, zone, now)[1],
        ),
    )


def period(start: datetime | None, end: datetime | None) -> dict[str, datetime | None]:
    """`start` and `end` of a query. Raises WrongUse when they are the wrong way round."""
    if start is not None and end is not None and start > end:
        raise WrongUse(
            f"the period begins at {start:%Y-%m-%dT%H:%M:%SZ}, after its end at {end:%Y-%m-%dT%H:%M:%SZ}", "swap them"
        )
    return {"start": start, "end": end}
