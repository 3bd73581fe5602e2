"""Metrics once more, from what players sent, in plain Python: one event after the other, no tables, no SQL."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from math import floor
from typing import Any
from urllib.parse import parse_qsl

TYPES = {
    1: "playerImpression",
    2: "playRequested",
    3: "play",
    4: "resume",
    11: "playThrough25",
    12: "playThrough50",
    13: "playThrough75",
    14: "playThrough100",
    15: "playThrough90",
    21: "shareClicked",
    22: "shared",
    23: "downloadClicked",
    24: "reportClicked",
    25: "reportSubmitted",
    31: "enterFullscreen",
    32: "exitFullscreen",
    33: "pauseClicked",
    34: "replay",
    35: "seek",
    36: "relatedClicked",
    37: "relatedSelected",
    38: "captions",
    39: "sourceSelected",
    40: "info",
    41: "speed",
    42: "audioSelected",
    43: "flavorSwitch",
    45: "bufferStart",
    46: "bufferEnd",
    98: "error",
    99: "view",
}
SENT = ("application", "playbackContext", "playbackType", "customVar1", "customVar2", "customVar3", "userId")
TEN_MINUTES = 600_000_000  # µs


@dataclass
class Event:
    """An event that was kept, what it is counted by, and what it adds. Times are µs."""

    at: int
    parameters: dict[str, str]
    dimensions: dict[str, str]
    kind: int | None = None
    index: int | None = None
    watched: int = 0
    missing: int = 0
    expected: int = 0
    buffered: int | None = None
    bitrate: int | None = None
    joined: int | None = None

    def number(self, name: str, most: float) -> float | None:
        try:
            value = float(self.parameters[name])
        except (KeyError, ValueError):
            return None
        return value if 0 <= value <= most else None


def whole(value: float | None, scale: float) -> int | None:
    """The nearest whole number, a half away from zero."""
    return None if value is None else floor(value * scale + 0.5)


def _int(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def read(sent: Iterable[tuple[int, str, dict[str, str]]]) -> list[Event]:
    """Events of (time in µs, query, dimensions of headers), in order of time, without duplicates."""
    events = []
    last: dict[str, int] = {}
    for at, query, dimensions in sorted(sent, key=lambda item: item[0]):
        parameters: dict[str, str] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            parameters.setdefault(name, value)
        if parameters.get("sessionId"):
            if query in last and at - last[query] <= TEN_MINUTES:
                continue
            last[query] = at
        named = {
            "partner": parameters.get("partnerId"),
            "entry": parameters.get("entryId"),
            "category": parameters.get("playbackContext"),
            **{name: parameters.get(name) for name in SENT},
            **dimensions,
        }
        event = Event(at, parameters, {name: value or "Unknown" for name, value in named.items()})
        event.kind = _int(parameters.get("eventType", ""))
        event.index = _int(parameters.get("eventIndex", ""))
        event.buffered = whole(event.number("bufferTime", 86400), 1e6)
        event.bitrate = whole(event.number("actualBitrate", 10_000_000), 1e3) if event.kind == 99 else None
        event.joined = whole(event.number("joinTime", 86400), 1e6) if event.kind == 3 else None
        events.append(event)
    _follow_runs(events)
    return events


def _goes_on(at: int, index: int, before: tuple[int, int] | None) -> bool:
    """Whether an event with a time and an index belongs to the run of another before it."""
    if before is None or at - before[0] > TEN_MINUTES or index - before[1] > 1000:
        return False
    if index > before[1]:
        return True
    return at - before[0] < 15_000_000 and before[1] - index <= 3


def _follow_runs(events: list[Event]) -> None:
    previous: dict[tuple[str, str, str], tuple[int, int]] = {}
    played_before: dict[tuple[str, str, str], tuple[int, int, int]] = {}
    view_before: dict[tuple[str, str, str], tuple[int, int]] = {}
    for event in sorted(events, key=lambda event: (event.at, event.index or 0)):
        session, is_view = event.parameters.get("sessionId"), event.kind == 99
        if not session or event.index is None:
            event.watched = 10_000_000 if is_view else 0
            continue
        index = event.index
        key = (event.dimensions["partner"], event.dimensions["entry"], session)
        here = (event.at, index)
        if _goes_on(*here, previous.get(key)):
            step = index - previous[key][1]
            event.expected = step
            event.missing = step - 1 if step else 0
        else:
            event.expected = 1
        previous[key] = here
        played = whole(event.number("playTimeSum", 1e9), 1e6)
        last = played_before.get(key)
        was_played = _goes_on(*here, last[:2] if last else None)
        if played is not None:
            if was_played and last and 0 <= played - last[2] <= TEN_MINUTES:
                event.watched = played - last[2]
            played_before[key] = (*here, played)
        elif is_view and not was_played and _goes_on(*here, view_before.get(key)):
            event.watched = 10_000_000
        if is_view:
            view_before[key] = here


def time_label(at: int, name: str, zone: tzinfo) -> str:
    """The day, hour, minute or ten seconds of a time, as reports write it."""
    local = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)).astimezone(zone)
    if name == "day":
        return local.date().isoformat()
    local = local.replace(microsecond=0)
    if name == "tenSeconds":
        local = local.replace(second=local.second // 10 * 10)
    else:
        local = local.replace(second=0, minute=local.minute if name == "minute" else 0)
    return local.isoformat(timespec="seconds" if local.second else "minutes")


@dataclass
class Group:
    """The events that have the same dimensions."""

    events: list[Event] = field(default_factory=list)

    def distinct(self, value: Callable[[Event], Any]) -> int:
        return len({value(event) for event in self.events} - {None})


def ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def percentile(values: list[int], share: float) -> float | None:
    """Between the two nearest values, as far as the share is from each."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _known(event: Event, name: str) -> tuple[str, str] | None:
    value = event.dimensions[name]
    return None if value == "Unknown" else (event.dimensions["partner"], value)


def metrics(group: Group) -> dict[str, float | None]:
    """Every metric of a group of events."""
    kinds = Counter(event.kind for event in group.events)
    n = {name: kinds[kind] for kind, name in TYPES.items()}
    watched = sum(event.watched for event in group.events) / 60e6
    buffering = sum(event.buffered for event in group.events if event.buffered is not None) / 1e6
    bitrates = [event.bitrate for event in group.events if event.bitrate is not None]
    joins = [event.joined for event in group.events if event.joined is not None]
    buckets: dict[int, int] = defaultdict(int)
    for event in group.events:
        buckets[event.at // 10_000_000] += event.kind == 99
    median, high = percentile(joins, 0.5), percentile(joins, 0.95)
    missing = sum(event.missing for event in group.events)
    return {
        **n,
        "events": len(group.events),
        "playRatio": ratio(n["play"], n["playerImpression"]),
        "averageViewDropOff": ratio(sum(0.25 * n[f"playThrough{share}"] for share in (25, 50, 75, 100)), n["play"]),
        "estimatedMinutesWatched": n["view"] / 6,
        "minutesWatched": watched,
        "averageViewDuration": ratio(watched, n["play"]),
        "peakView": max(buckets.values()),
        "bufferingTime": buffering,
        "rebufferRatio": ratio(buffering, buffering + watched * 60),
        "averageActualBitrate": ratio(sum(bitrates) / 1e3, len(bitrates)),
        "averageJoinTime": ratio(sum(joins) / 1e6, len(joins)),
        "joinTimeP50": None if median is None else median / 1e6,
        "joinTimeP95": None if high is None else high / 1e6,
        "errorRate": ratio(n["error"], n["playRequested"]),
        "uniqueSessions": group.distinct(lambda event: event.parameters.get("sessionId") or None),
        "uniqueKnownUsers": group.distinct(lambda event: _known(event, "userId")),
        "uniqueVideos": group.distinct(lambda event: _known(event, "entry")),
        "lossRate": ratio(max(missing, 0), sum(event.expected for event in group.events)),
    }


def report(
    events: Iterable[Event], dimensions: tuple[str, ...] = (), zone: tzinfo = UTC
) -> dict[tuple[str, ...], dict[str, float | None]]:
    """Every metric by dimensions."""
    groups: dict[tuple[str, ...], Group] = defaultdict(Group)
    labels: dict[tuple[int, str], str] = {}

    def value(event: Event, name: str) -> str:
        if name in event.dimensions:
            return event.dimensions[name]
        moment = (event.at // 10_000_000, name)
        if moment not in labels:
            labels[moment] = time_label(event.at, name, zone)
        return labels[moment]

    for event in events:
        groups[tuple(value(event, name) for name in dimensions)].events.append(event)
    return {key: metrics(group) for key, group in groups.items()}
