"""A small language for tests of reports: events at chosen times, a lake of them, questions."""

from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any
from urllib.parse import urlencode

from kanalony.reports.execution import Reports
from kanalony.reports.query import Query
from kanalony.reports.renderer import as_object
from kanalony.reports.vocabulary import Vocabulary
from kanalony.segments.names import DataDirectory
from tests.aggregate.lakes import SECOND, Sent, roll_up, seal

PLAY, VIEW, ERROR, IMPRESSION, REQUESTED = 3, 99, 98, 1, 2


def at(text: str) -> int:
    """A time (ISO 8601, UTC when it does not say) in µs since 1970."""
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000) * 1000


def event(when: int | str, kind: int | str, **parameters: Any) -> Sent:
    """An event as a player sends it, of partner 1 and entry e unless told otherwise."""
    values = {"eventType": kind, "partnerId": 1, "entryId": "e", "sessionId": "s", **parameters}
    query = urlencode({name: value for name, value in values.items() if value is not None})
    return Sent(at(when) if isinstance(when, str) else when, query.encode())


def session(start: int | str, views: int, *, name: str = "s", **parameters: Any) -> list[Sent]:
    """Somebody who watches: an impression, a play, and a view every ten seconds, the first at once."""
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
    """Into the lake and the rollups, as a segment of a worker of its own; how many hours were computed."""
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
    """The answer, as JSON has it. Names are parted by spaces."""
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
    """The rows of an answer, without names."""
    return [tuple(row.values()) for row in ask(*arguments, **options)["rows"]]


def one(*arguments: Any, **options: Any) -> Any:
    """The only number of an answer."""
    ((value,),) = rows(*arguments, **options)
    return value
