"""Local time: time zones, days that are not 24 hours long, periods like `-24h`, `today` and `2026-06`."""

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kanalony.errors import UsageError
from kanalony.units import DAY, HOUR

QUARTER = HOUR // 4
"""µs. Offsets of today's time zones are multiples of a quarter of an hour."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORMS = "-24h, -7d, now, today, yesterday, 2026, 2026-06, 2026-06-01 or 2026-06-01T13:00"


def micros(moment: datetime) -> int:
    """Converts a time with a time zone to µs since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment(micros: int, zone: tzinfo) -> datetime:
    """Converts µs since 1970 to a time in a time zone."""
    return (_EPOCH + timedelta(microseconds=micros)).astimezone(zone)


def read_zone(name: str) -> tzinfo:
    """Returns the time zone of a name like Europe/Paris. Raises UsageError."""
    try:
        return UTC if name.upper() == "UTC" else ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise UsageError(f"unknown time zone {name!r}", "use a name like Europe/Paris, or UTC") from error


def read_offset(minutes: str) -> tzinfo:
    """Returns the time zone of an offset, in minutes east of UTC. Raises UsageError."""
    if not re.fullmatch(r"[+-]?[0-9]{1,3}", minutes) or abs(int(minutes)) > 14 * 60 or int(minutes) % 15:
        raise UsageError(
            f"timezoneOffset is {minutes!r}", "it must be minutes east of UTC: 120 for UTC+2, a multiple of 15"
        )
    return timezone(timedelta(minutes=int(minutes))) if int(minutes) else UTC


def read_period(text: str, zone: tzinfo, now: datetime) -> tuple[datetime, datetime]:
    """Parses a period.

    Args:
        text: For example -24h, today, 2026-06 or 2026-06-01T13:00.
        zone: Time zone of its days, and of times without an offset.
        now: The current time.

    Returns:
        The first moment and the end; both are the same when the text names a moment.

    Raises:
        UsageError: The text is no period.
    """
    text = text.strip()
    if match := re.fullmatch(r"-([0-9]{1,6})([smhdw])", text):
        units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
        try:
            then = now - timedelta(**{units[match[2]]: int(match[1])})
        except OverflowError as error:
            raise UsageError(f"{text!r} is too long ago", "use a shorter time") from error
        return then, then
    if text == "now":
        return now, now
    today = now.astimezone(zone).date()
    try:
        if text in ("today", "yesterday"):
            day = today - timedelta(days=text == "yesterday")
            return _day(day, zone), _day(day + timedelta(days=1), zone)
        if re.fullmatch(r"[0-9]{4}", text):
            return _day(date(int(text), 1, 1), zone), _day(date(int(text) + 1, 1, 1), zone)
        if match := re.fullmatch(r"([0-9]{4})-([0-9]{2})", text):
            first = date(int(match[1]), int(match[2]), 1)
            return _day(first, zone), _day((first + timedelta(days=31)).replace(day=1), zone)
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            day = date.fromisoformat(text)
            return _day(day, zone), _day(day + timedelta(days=1), zone)
        if re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]", text):
            then = datetime.fromisoformat(text)
            then = then if then.tzinfo else then.replace(tzinfo=zone)
            return then.astimezone(UTC), then.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{text!r} is not a time: {error}", f"write it like {_FORMS}") from error
    raise UsageError(f"{text!r} is not a time", f"write it like {_FORMS}")


def _day(day: date, zone: tzinfo) -> datetime:
    """Returns when a day begins: where clocks are put forward at midnight, the moment of that."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def whole_offsets(zone: tzinfo, first: int, end: int) -> bool:
    """Whether the hours of a time zone are those of UTC on every day of a period, in µs since 1970."""
    days = range(first, end + DAY, DAY)
    return all(_offset(day, zone) % HOUR == 0 for day in days)


def quarters(spans: Sequence[tuple[int, int]], zone: tzinfo, names: set[str]) -> pa.Table:
    """Returns a table of the local days and hours of periods, by quarters of an hour.

    An hour in which the clock is changed by half an hour is two hours, divided at the change.

    Args:
        spans: Periods [first, end) in µs since 1970.
        zone: The time zone.
        names: `day`, `hour` or both.

    Returns:
        The columns `quarter`, the number of a quarter of an hour since 1970, and for each of the names the beginning of
        the local day or hour in µs since 1970.
    """
    parts = []
    for first, end in spans:
        numbers = np.arange(first // QUARTER, (end - 1) // QUARTER + 1, dtype=np.int64)
        starts = numbers * QUARTER
        columns = {"quarter": numbers}
        if "day" in names:
            midnights = _midnights(first, end, zone)
            columns["day"] = midnights[np.searchsorted(midnights, starts, "right") - 1]
        if "hour" in names:
            offsets = np.array([_offset(start, zone) for start in starts.tolist()], np.int64)
            changed = np.concatenate([[False], offsets[1:] != offsets[:-1]])
            changes = np.maximum.accumulate(np.where(changed, starts, 0))
            columns["hour"] = np.maximum((starts + offsets) // HOUR * HOUR - offsets, changes)
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def _midnights(first: int, end: int, zone: tzinfo) -> npt.NDArray[np.int64]:
    day = moment(first, zone).date()
    found: list[int] = []
    while not found or found[-1] < end:
        found.append(micros(_day(day, zone)))
        day += timedelta(days=1)
    return np.array(found, np.int64)


def _offset(at: int, zone: tzinfo) -> int:
    return (moment(at, zone).utcoffset() or timedelta()) // timedelta(microseconds=1)


def local(column: pa.ChunkedArray, name: str, zone: tzinfo) -> pa.Array | pa.ChunkedArray:
    """Converts times in µs since 1970 to dates for the dimension `day`, to times of a time zone for others."""
    if name == "day":
        return pa.array([moment(at, zone).date() for at in column.to_pylist()], pa.date32())
    return column.cast(pa.timestamp("us", _name(zone)))


def _name(zone: tzinfo) -> str:
    """Returns the name of a time zone as Arrow has it: Europe/Paris, +05:30 or UTC."""
    if isinstance(zone, ZoneInfo):
        return zone.key
    return "UTC" if zone is UTC else (str(zone) if zone != UTC else "UTC").removeprefix("UTC")


def label(value: date | datetime) -> str:
    """Formats a date or time as ISO 8601, with seconds unless they are 0."""
    if not isinstance(value, datetime):
        return value.isoformat()
    return value.isoformat(timespec="seconds" if value.second else "minutes")
