"""Parses queries: options of `kanalony report`, and parameters of the query action."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

from kanalony.errors import UsageError
from kanalony.reports.clock import read_offset, read_period, read_zone
from kanalony.reports.query import Query

MOST_ROWS = 10_000
"""Rows of a page of the query action."""

_DEFAULT_ROWS = 500

_PARAMETERS = (
    *("metrics", "dimensions", "filters", "partnerId", "startDate", "endDate", "timezoneOffset", "timezone"),
    *("orderBy", "pageSize", "pageIndex"),
)
_PAGER = re.compile(r"pager(?:\[(\w+)\]|:(\w+))")
_FILTERS = 'write it like [{"dimension": "entry", "values": ["0_a", "0_b"]}]'
_IGNORED_PARAMETERS = ("service", "action", "format", "apiKey", "ks", "clientTag")


def names(text: str) -> tuple[str, ...]:
    """Splits names at commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def read_order(text: str) -> tuple[tuple[str, bool], ...]:
    """Parses names to sort by, each with whether it descends: `-play` does, `play` and `+play` do not."""
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
    """Returns the query of `kanalony report`, from the texts of its options. Raises UsageError."""
    zone = read_zone(timezone)
    now = datetime.now(UTC)
    values: dict[str, tuple[str, ...]] = {}
    for text in filters:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--filter is {text!r}", "write it like --filter partner=585231")
        values[name] = (*values.get(name, ()), value)
    if page > 1 and limit is None:
        raise UsageError("--page needs --limit", "set the rows of a page, for example --limit 20")
    first = None if start is None else read_period(start, zone, now)
    last = None if end is None else read_period(end, zone, now)
    if first and last:
        _check_period(first[0], last[0])  # the beginnings: --from 2026-06 --to 2026-06 is the whole month
    return Query(
        metrics=names(metrics),
        dimensions=names(dimensions),
        filters=values,
        start=first and first[0],
        end=last and last[1],
        timezone=zone,
        order=read_order(order),
        limit=limit,
        offset=(page - 1) * (limit or 0),
    )


def _check_period(start: datetime | None, end: datetime | None) -> None:
    """Raises UsageError when a period ends before it begins."""
    if start is not None and end is not None and start > end:
        raise UsageError(
            f"the period begins at {start:%Y-%m-%dT%H:%M:%SZ}, after its end at {end:%Y-%m-%dT%H:%M:%SZ}", "swap them"
        )


def read_action(parameters: Mapping[str, Any]) -> Query:
    """Returns the query of the query action.

    Args:
        parameters: Texts as in a query string, or values as in a JSON body.

    Raises:
        UsageError: A parameter is unknown or has a wrong value.
    """
    given: dict[str, Any] = {}
    for name, value in parameters.items():
        if name == "pager":
            pager = _json(name, value)
            if not isinstance(pager, dict):
                raise UsageError(f"pager is {_short(value)}", 'write it like {"pageSize": 20, "pageIndex": 1}')
            given |= pager
        elif match := _PAGER.fullmatch(name):
            given[match[1] or match[2]] = value
        elif name not in _IGNORED_PARAMETERS:
            given[name] = value
    for name in given:
        if name not in _PARAMETERS:
            raise UsageError(f"unknown parameter {name!r}", f"choose from {', '.join(_PARAMETERS)}")
    if "timezone" in given and "timezoneOffset" in given:
        raise UsageError("both timezone and timezoneOffset are given", "leave one out")
    zone = read_offset(str(given.get("timezoneOffset", 0)))
    if "timezone" in given:
        zone = read_zone(_text("timezone", given["timezone"]))
    filters = _filters(given.get("filters"))
    if given.get("partnerId") not in (None, ""):
        partner = str(_whole("partnerId", given["partnerId"], 10**18 - 1, least=0))
        filters["partner"] = tuple(value for value in filters.get("partner", (partner,)) if value == partner)
    start, end = (
        _minute(name, given[name], zone) if given.get(name) not in (None, "") else None
        for name in ("startDate", "endDate")
    )
    _check_period(start, end)
    size = _whole("pageSize", given.get("pageSize", _DEFAULT_ROWS), MOST_ROWS)
    return Query(
        metrics=_list("metrics", given.get("metrics", "")),
        dimensions=_list("dimensions", given.get("dimensions", "")),
        filters=filters,
        timezone=zone,
        order=read_order(",".join(_list("orderBy", given.get("orderBy", "")))),
        limit=size,
        offset=size * (_whole("pageIndex", given.get("pageIndex", 1), 10**9) - 1),
        start=start,
        end=end,
    )


def _minute(name: str, value: Any, zone: tzinfo) -> datetime:
    try:
        return datetime.strptime(_text(name, value), "%m/%d/%Y %H:%M").replace(tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{name} is {_short(value)}", "write it as MM/dd/yyyy HH:mm, like 06/30/2026 23:59") from error


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} is {_short(value)}", "it must be a string")
    return value


def _list(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return names(_text(name, value))


def _whole(name: str, value: Any, most: int, *, least: int = 1) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", str(value)) or not least <= int(value) <= most:
        raise UsageError(f"{name} is {_short(value)}", f"it must be a whole number from {least} to {most:,}")
    return int(value)


def _short(value: Any) -> str:
    """Quotes a value for a message, shortened when it is long."""
    text = value if isinstance(value, str) else json.dumps(value)
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


def _json(name: str, value: Any) -> Any:
    """Decodes a value that is JSON text; returns others as they are."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{name} is not JSON: {error}", "see docs/reports.md for its format") from error
    return value


def _filters(value: Any) -> dict[str, tuple[str, ...]]:
    """Parses filters: `[{"dimension": "entry", "values": ["0_a"]}]`, as a list or as its JSON text."""
    found: dict[str, tuple[str, ...]] = {}
    items = [] if value in (None, "") else _json("filters", value)
    if not isinstance(items, list):
        raise UsageError("filters is not a list", _FILTERS)
    for item in items:
        values = item.get("values") if isinstance(item, dict) else None
        if not isinstance(values, list) or not isinstance(item.get("dimension"), str):
            raise UsageError("filters has an item that is not a dimension with values", _FILTERS)
        if not all(isinstance(text, str | int) and not isinstance(text, bool) for text in values):
            raise UsageError("filters has a value that is not a string", _FILTERS)
        found[item["dimension"]] = (*found.get(item["dimension"], ()), *map(str, values))
    return found
