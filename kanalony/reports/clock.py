"""Time as people mean it: time zones, days that are not 24 hours long, periods like `-24h`, `today` and `2026-06`."""

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kanalony.errors import WrongUse

QUARTER = 900_000_000
"""µs: a quarter of an hour, of which every time zone's offset is a multiple nowadays."""

HOUR = 4 * QUARTER

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORMS = "-24h, -7d, now, today, yesterday, 2026, 2026-06, 2026-06-01 or 2026-06-01T13:00"


def micros(moment: datetime) -> int:
    """µs since 1970 of a time with a zone."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment(micros: int, zone: tzinfo) -> datetime:
    """The opposite."""
    return (_EPOCH + timedelta(microseconds=micros)).astimezone(zone)


def read_zone(name: str) -> tzinfo:
    """A time zone by its name, as Europe/Paris. Raises WrongUse."""
    try:
        return UTC if name.upper() == "UTC" else ZoneInfo(name)
    except (ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise _no_zone(name) from error
    except KeyError as error:
        raise _no_zone(name) from error


def _no_zone(name: str) -> WrongUse:
    return WrongUse(f"there is no time zone {name!r}", "name one like Europe/Paris, or UTC")


def read_offset(minutes: str) -> tzinfo:
    """A time zone by its minutes east of UTC. Raises WrongUse."""
    if not re.fullmatch(r"[+-]?[0-9]{1,3}", minutes) or abs(int(minutes)) > 14 * 60 or int(minutes) % 15:
        raise WrongUse(
            f"timezoneOffset is {minutes!r}", "it must be minutes east of UTC: 120 for UTC+2, a multiple of 15"
        )
    return timezone(timedelta(minutes=int(minutes))) if int(minutes) else UTC


def read_period(text: str, zone: tzinfo, now: datetime) -> tuple[datetime, datetime]:
    """First and end of the period that a text names, for the place of a time zone; the same twice for a moment. Raises
    WrongUse.
    """
    text = text.strip()
    if match := re.fullmatch(r"-([0-9]{1,6})([smhdw])", text):
        units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
        try:
            then = now - timedelta(**{units[match[2]]: int(match[1])})
        except OverflowError as error:
            raise WrongUse(f"{text!r} is before all time", "name a shorter time") from error
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
        raise WrongUse(f"{text!r} is no time: {error}", f"write it like {_FORMS}") from error
    raise WrongUse(f"{text!r} is no time", f"write it like {_FORMS}")


def _day(day: date, zone: tzinfo) -> datetime:
    """When a day begins. Where a clock is put forward at midnight that is the moment it is put forward."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def whole_offsets(zone: tzinfo, first: int, end: int) -> bool:
    """Whether a zone's hours are those of UTC, at the days of a period in µs since 1970."""
    days = range(first, end + 24 * HOUR, 24 * HOUR)
    return all(_offset(day, zone) % HOUR == 0 for day in days)


def quarters(spans: Sequence[tuple[int, int]], zone: tzinfo, names: set[str]) -> pa.Table:
    """For each `quarter` of an hour of some periods, by its number since 1970, the beginning of the local `day` and
    `hour` it is in, as far as `names` has these, in µs since 1970. An hour in which the clock is changed by half of one
    is two: one ends, and one begins, where it is changed.
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
    """Times in µs since 1970 as dates, for the dimension `day`, or as times of a zone."""
    if name == "day":
        return pa.array([moment(at, zone).date() for at in column.to_pylist()], pa.date32())
    return column.cast(pa.timestamp("us", _name(zone)))


def _name(zone: tzinfo) -> str:
    if isinstance(zone, ZoneInfo):
        return zone.key
    return "UTC" if zone is UTC else (str(zone) if zone != UTC else "UTC").removeprefix("UTC")


def label(value: date | datetime) -> str:
    """A date or a time as people and JSON have it: ISO 8601, with seconds where there are any."""
    if not isinstance(value, datetime):
        return value.isoformat()
    return value.isoformat(timespec="seconds" if value.second else "minutes")
