"""Queries as people write them: on the command line, and to the query action."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

from kanalony.errors import WrongUse
from kanalony.reports.clock import read_offset, read_period, read_zone
from kanalony.reports.query import Query

MOST_ROWS = 10_000
"""Of a page of the query action."""

_PARAMETERS = (
    *("metrics", "dimensions", "filters", "partnerId", "startDate", "endDate", "timezoneOffset", "timezone"),
    *("orderBy", "pageSize", "pageIndex"),
)
_PAGER = re.compile(r"pager(?:\[(\w+)\]|:(\w+))")
_IGNORED = ("service", "action", "format", "apiKey", "ks", "clientTag")


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


def read_action(parameters: Mapping[str, Any]) -> Query:
    """The query of the query action: texts as in a query string, or values as in a JSON body. Raises WrongUse."""
    given: dict[str, Any] = {}
    for name, value in parameters.items():
        if name == "pager":
            pager = _object(name, value)
            if not isinstance(pager, dict):
                raise WrongUse(f"pager is {value!r}", 'write it like {"pageSize": 20, "pageIndex": 1}')
            given |= pager
        elif match := _PAGER.fullmatch(name):
            given[match[1] or match[2]] = value
        elif name not in _IGNORED:
            given[name] = value
    for name in given:
        if name not in _PARAMETERS:
            raise WrongUse(f"there is no parameter {name!r}", f"there are {', '.join(_PARAMETERS)}")
    if "timezone" in given and "timezoneOffset" in given:
        raise WrongUse("both timezone and timezoneOffset are given", "leave one out")
    zone = read_offset(str(given.get("timezoneOffset", 0)))
    if "timezone" in given:
        zone = read_zone(_text("timezone", given["timezone"]))
    filters = _filters(given.get("filters"))
    if given.get("partnerId") not in (None, ""):
        partner = str(given["partnerId"])
        filters["partner"] = tuple(value for value in filters.get("partner", (partner,)) if value == partner)
    size = _whole("pageSize", given.get("pageSize", 500), MOST_ROWS)
    return Query(
        metrics=_list("metrics", given.get("metrics", "")),
        dimensions=_list("dimensions", given.get("dimensions", "")),
        filters=filters,
        timezone=zone,
        order=read_order(",".join(_list("orderBy", given.get("orderBy", "")))),
        limit=size,
        offset=size * (_whole("pageIndex", given.get("pageIndex", 1), 10**9) - 1),
        **period(*(_minute(name, given[name], zone) if given.get(name) else None for name in ("startDate", "endDate"))),
    )


def _minute(name: str, value: Any, zone: tzinfo) -> datetime:
    try:
        return datetime.strptime(_text(name, value), "%m/%d/%Y %H:%M").replace(tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise WrongUse(f"{name} is {value!r}", "write it as MM/dd/yyyy HH:mm, like 06/30/2026 23:59") from error


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise WrongUse(f"{name} is {value!r}", "it must be a text")
    return value


def _list(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return names(_text(name, value))


def _whole(name: str, value: Any, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", str(value)) or not 1 <= int(value) <= most:
        raise WrongUse(f"{name} is {value!r}", f"it must be a whole number from 1 to {most:,}")
    return int(value)


def _object(name: str, value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise WrongUse(f"{name} is not JSON: {error}", "write an object, like {}") from error
    return value


def _filters(value: Any) -> dict[str, tuple[str, ...]]:
    """`[{"dimension": "entry", "values": ["0_a"]}]`, as JSON or as a text of it."""
    found: dict[str, tuple[str, ...]] = {}
    items = [] if value in (None, "") else _object("filters", value)
    if not isinstance(items, list):
        raise WrongUse("filters are no list", _FILTERS)
    for item in items:
        values = item.get("values") if isinstance(item, dict) else None
        if not isinstance(values, list) or not isinstance(item.get("dimension"), str):
            raise WrongUse("filters are not what they should be", _FILTERS)
        if not all(isinstance(text, str | int) for text in values):
            raise WrongUse("a filter's values are not texts", _FILTERS)
        found[item["dimension"]] = (*found.get(item["dimension"], ()), *map(str, values))
    return found


_FILTERS = 'write them like [{"dimension": "entry", "values": ["0_a", "0_b"]}]'
