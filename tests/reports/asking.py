"""A small language for tests of reports: events at chosen times, a lake of them, queries."""

from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any
from urllib.parse import urlencode

from kanalony.reports.execution import Reports
from kanalony.reports.query import Query
from kanalony.reports.renderer import as_object
from kanalony.reports.vocabulary import Vocabulary
from kanalony.segments.directory import DataDirectory
from tests.aggregate.lakes import SECOND, Sent, roll_up, seal

PLAY, VIEW, ERROR, IMPRESSION, REQUESTED = 3, 99, 98, 1, 2


def at(text: str) -> int:
    """Returns a time (ISO 8601, by default in UTC) in µs since 1970."""
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000) * 1000


def event(when: int | str, kind: int | str, **parameters: Any) -> Sent:
    """Returns an event as a player sends it, by default of partner 1, entry e and session s."""
    values = {"eventType": kind, "partnerId": 1, "entryId": "e", "sessionId": "s", **parameters}
    query = urlencode({name: value for name, value in values.items() if value is not None})
    return Sent(at(when) if isinstance(when, str) else when, query.encode())


def session(start: int | str, views: int, *, name: str = "s", **parameters: Any) -> list[Sent]:
    """Returns the events of a viewer: an impression, a play, and a view every ten seconds, the first at once."""
    first = at(start) if isinstance(start, str) else start
    kinds = [IMPRESSION, REQUESTED, PLAY, *([VIEW] * views)]
    return [
        event(
            first + max(0, number - 3) * 10 * SECOND,
            kind,
            **{"sessionId": name, "eventIndex": number + 1, **parameters},
        )
        for number, kind in enumerate(kinds)
    ]


_workers = iter(range(1000, 1 << 30))


def store(data: DataDirectory, *sent: Sent, **options: Any) -> int:
    """Seals events in a segment of a new worker and compacts it; returns the number of hours computed."""
    if sent:
        seal(data, [sent], worker=next(_workers))
    return roll_up(data, **options)


def ask(
    data: DataDirectory,
    metrics: str,
    dimensions: str = "",
    *,
    vocabulary: Vocabulary | None = None,
    exact_events: int = 1 << 60,
    start: str | None = None,
    end: str | None = None,
    zone: tzinfo = UTC,
    filters: Mapping[str, tuple[str, ...]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Returns the answer as JSON has it.

    Args:
        data: The data directory.
        metrics: Names, separated by spaces.
        dimensions: Names, separated by spaces.
        vocabulary: Metrics and dimensions; those of the API when None.
        exact_events: Sessions of more events than this are estimated.
        start: First moment of the period, ISO 8601.
        end: End of the period, ISO 8601.
        zone: Time zone for hours and days.
        filters: Values by dimension.
        more: Further fields of the query.
    """
    query = Query(
        tuple(metrics.split()),
        tuple(dimensions.split()),
        filters or {},
        start=None if start is None else datetime.fromisoformat(start),
        end=None if end is None else datetime.fromisoformat(end),
        timezone=zone,
        **more,
    )
    return as_object(Reports(data, vocabulary, exact_events=exact_events).run(query))


def rows(*arguments: Any, **options: Any) -> list[tuple[Any, ...]]:
    """Returns the rows of an answer, without names."""
    return [tuple(row.values()) for row in ask(*arguments, **options)["rows"]]


def one(*arguments: Any, **options: Any) -> Any:
    """Returns the only number of an answer."""
    ((value,),) = rows(*arguments, **options)
    return value
