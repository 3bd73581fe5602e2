"""The metrics of docs/reports.md in plain Python, written from the document alone.

The reference follows the document sentence by sentence and is as simple as possible: one event after the other, lists
and sets, no tables, no SQL. It shares no code with the product. Where the document leaves a choice, a comment names
the reading.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from itertools import pairwise
from math import floor, isfinite
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
PLAY, VIEW = 3, 99
TIMES = ("day", "hour", "minute", "tenSeconds")

SECOND = 1_000_000  # in µs, as every time here
TEN_SECONDS = 10 * SECOND
TEN_MINUTES = 600 * SECOND
DAY = 86_400 * SECOND
TEN_GBPS = 10_000_000_000  # in thousandths of kbps


@dataclass(eq=False)
class Event:
    """An event of the lake, and what it adds to the sums. Times are µs, bitrates thousandths of kbps."""

    at: int  # time of receipt
    parameters: dict[str, str]
    dimensions: dict[str, str]
    session: str = ""  # sessionId
    user: tuple[str, str] | None = None  # with the partner; None for `Unknown`
    entry: tuple[str, str] | None = None  # with the partner; None for `Unknown`
    kind: int | None = None  # eventType
    number: int | None = None  # eventIndex
    play_time_sum: int | None = None
    buffered: int | None = None
    joined: int | None = None
    bitrate: int | None = None
    place: int | None = None  # of an event in a play sequence
    watched: int = 0
    expected: int = 0
    missing: int = 0


# Requests.


def integer(text: str) -> int | None:
    """Returns the value of an integer column, of at most 18 digits; None for other text."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def whole(text: str, scale: int, most: int | None = None) -> int | None:
    """Returns the value of a number column in whole parts; None for values that no player sends.

    Args:
        text: The value.
        scale: Parts of one. A half of a part is rounded away from zero.
        most: No player sends more parts than this, nor negative values.
    """
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", text) or not isfinite(float(text)):
        return None
    value = int((Decimal(text) * scale).to_integral_value(ROUND_HALF_UP))
    return None if value < 0 or (most is not None and value > most) else value


def parameters_of(query: str) -> dict[str, str]:
    """Returns the first value of each parameter, by its name without `event:`."""
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        parameters.setdefault(name.removeprefix("event:"), value)
    return parameters


def event_of(at: int, query: str, derived: dict[str, str | None]) -> Event:
    """Returns the event of a query; `derived` holds the dimensions of its headers, its address and its `ks`."""
    sent = defaultdict(str, parameters_of(query))
    partner = integer(sent["partnerId"])
    dimensions: dict[str, str | None] = {
        "partner": None if partner is None else str(partner),
        "entry": sent["entryId"],
        "application": sent["application"],
        "category": sent["playbackContext"],
        "playbackContext": sent["playbackContext"],
        "playbackType": sent["playbackType"],
        "customVar1": sent["customVar1"],
        "customVar2": sent["customVar2"],
        "customVar3": sent["customVar3"],
        "userId": sent["userId"],
    }
    values = {name: value or "Unknown" for name, value in (dimensions | derived).items()}
    return Event(
        at,
        dict(sent),
        values,
        session=sent["sessionId"],
        user=known(values, "userId"),
        entry=known(values, "entry"),
        kind=integer(sent["eventType"]),
        number=integer(sent["eventIndex"]),
        play_time_sum=whole(sent["playTimeSum"], SECOND),
        buffered=whole(sent["bufferTime"], SECOND, most=DAY),
        joined=whole(sent["joinTime"], SECOND, most=DAY),
        bitrate=whole(sent["actualBitrate"], 1000, most=TEN_GBPS),
    )


def read(sent: Iterable[tuple[int, str, dict[str, str | None]]]) -> list[Event]:
    """Returns the events of the lake in order of receipt, without duplicates, with what each adds to the sums.

    Args:
        sent: for each request its time in µs, its query, and the dimensions of its headers, its address and its `ks`.
            Those of the same time stand in the order of worker, sequence number and index.
    """
    events: list[Event] = []
    kept: dict[str, int] = {}
    for at, query, derived in sorted(sent, key=lambda request: request[0]):
        event = event_of(at, query, derived)
        if event.session:
            if query in kept and at - kept[query] <= TEN_MINUTES:
                continue
            kept[query] = at
        events.append(event)
    for event in events:
        if event.kind == VIEW and not has_sequence(event):
            event.watched = TEN_SECONDS
    for sequence in play_sequences(events):
        add_loss(sequence)
        add_watched(sequence)
    return events


def known(dimensions: dict[str, str], name: str) -> tuple[str, str] | None:
    """Returns the value of a dimension, with the partner; None for `Unknown`."""
    return None if dimensions[name] == "Unknown" else (dimensions["partner"], dimensions[name])


# Play sequences.


def has_sequence(event: Event) -> bool:
    return event.session != "" and event.number is not None


def number_of(event: Event) -> int:
    assert event.number is not None, "an event in a play sequence has a number"
    return event.number


def place_of(event: Event) -> int:
    assert event.place is not None, "an event in a play sequence has a place"
    return event.place


def play_sequences(events: Iterable[Event]) -> list[list[Event]]:
    """Divides events, given in order of receipt, into play sequences. Every event with a sequence gets its place."""
    # An unknown partner or entry is one like any other.
    received: dict[tuple[str, str, str], list[Event]] = defaultdict(list)
    for event in events:
        if has_sequence(event):
            key = (event.dimensions["partner"], event.session, event.dimensions["entry"])
            received[key].append(event)
    sequences = []
    for group in received.values():
        give_places(group)
        sequences += divided(in_order(group))
    return sequences


def give_places(received: list[Event]) -> None:
    """Place: gives each event its place; all are of one partner, session and entry, in order of receipt."""
    for i, event in enumerate(received):
        overtook = [
            other
            for other in received[max(0, i - 8) : i]
            if 1 <= number_of(other) - number_of(event) <= 8 and event.at - other.at < 25 * SECOND
        ]
        event.place = overtook[0].at if overtook else event.at


def in_order(received: list[Event]) -> list[Event]:
    """Order: by place, then by number. `sorted` keeps the order of receipt of equal ones."""
    return sorted(received, key=lambda event: (place_of(event), number_of(event)))


def divided(ordered: list[Event]) -> list[list[Event]]:
    """Sequence: divides ordered events where a sequence ends and the next begins."""
    sequences: list[list[Event]] = []
    for event in ordered:
        if not sequences or starts_sequence(event, sequences[-1][-1]):
            sequences.append([])
        sequences[-1].append(event)
    return sequences


def starts_sequence(event: Event, before: Event) -> bool:
    return (
        place_of(event) - place_of(before) > TEN_MINUTES
        or number_of(event) < number_of(before)
        or number_of(event) - number_of(before) > 1000
    )


# lossRate.


def expected_numbers(sequence: list[Event]) -> set[int]:
    """Returns the numbers that a sequence should have: from its smallest to its largest."""
    numbers = {number_of(event) for event in sequence}
    return set(range(min(numbers), max(numbers) + 1))


def missing_numbers(sequence: list[Event]) -> set[int]:
    """Returns the numbers that a sequence should have and lacks."""
    return expected_numbers(sequence) - {number_of(event) for event in sequence}


def add_loss(sequence: list[Event]) -> None:
    """Adds what each event adds to expected and missing."""
    sequence[0].expected = 1
    for before, event in pairwise(sequence):
        if number_of(event) != number_of(before):
            event.expected = number_of(event) - number_of(before)
            event.missing = event.expected - 1


# minutesWatched.


def add_watched(sequence: list[Event]) -> None:
    """Adds what each event adds to the time watched."""
    for i, event in enumerate(sequence):
        before = sequence[:i]
        if event.play_time_sum is not None:
            event.watched = watched_since(event, before)
        elif event.kind == VIEW:
            event.watched = watched_at_view(event, before)


def watched_since(event: Event, before: list[Event]) -> int:
    """Returns what an event with a `playTimeSum` adds; `before` are the events before it in its sequence."""
    nearest = last(before, lambda other: other.play_time_sum is not None)
    if nearest is None or not close_before(nearest, event):
        return 0
    assert event.play_time_sum is not None
    assert nearest.play_time_sum is not None
    difference = event.play_time_sum - nearest.play_time_sum
    return difference if 0 <= difference <= TEN_MINUTES else 0


def watched_at_view(event: Event, before: list[Event]) -> int:
    """Returns what a view without `playTimeSum` adds; `before` are the events before it in its sequence."""
    if any(other.play_time_sum is not None and close_before(other, event) for other in before):
        return 0
    nearest = last(before, lambda other: other.kind == VIEW)
    if nearest is None or nearest.number == event.number or not close_before(nearest, event):
        return 0
    return TEN_SECONDS


def close_before(other: Event, event: Event) -> bool:
    """Whether the place of an earlier event is at most ten minutes earlier."""
    return place_of(event) - place_of(other) <= TEN_MINUTES


def last(events: list[Event], fits: Callable[[Event], bool]) -> Event | None:
    return next((event for event in reversed(events) if fits(event)), None)


# Metrics and rows.


@dataclass
class Group:
    """The events of one row."""

    events: list[Event] = field(default_factory=list)


def ratio(numerator: float, denominator: float) -> float | None:
    """Divides; a ratio with nothing to divide by is empty."""
    return numerator / denominator if denominator else None


def percentile(values: list[int], share: float) -> float | None:
    """Returns a percentile, interpolated linearly between two values: of 3 and 5, P50 is 4 and P95 is 4.9."""
    if not values:
        return None
    ranked = sorted(values)
    rank = share * (len(ranked) - 1)
    below = floor(rank)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (rank - below) * (ranked[above] - ranked[below])


def metrics(group: Group) -> dict[str, float | None]:
    """Computes every metric of the events of a row."""
    events = group.events
    kinds = Counter(event.kind for event in events)
    count = {name: kinds[kind] for kind, name in TYPES.items()}
    views = [event for event in events if event.kind == VIEW]
    views_at = Counter(event.at // TEN_SECONDS for event in views)
    buffered = sum(event.buffered for event in events if event.buffered is not None)
    bitrates = [event.bitrate for event in views if event.bitrate is not None]
    joined = [event.joined for event in events if event.kind == PLAY and event.joined is not None]
    watched = sum(event.watched for event in events)
    quartiles = ("playThrough25", "playThrough50", "playThrough75", "playThrough100")

    def seconds(micros: float | None) -> float | None:
        return None if micros is None else micros / SECOND

    return {
        "events": len(events),
        **count,
        "playRatio": ratio(count["play"], count["playerImpression"]),
        "averageViewDropOff": ratio(sum(0.25 * count[name] for name in quartiles), count["play"]),
        "estimatedMinutesWatched": count["view"] / 6,
        "minutesWatched": watched / (60 * SECOND),
        "averageViewDuration": ratio(watched / (60 * SECOND), count["play"]),
        "peakView": max(views_at.values(), default=0),
        "bufferingTime": buffered / SECOND,
        "rebufferRatio": ratio(buffered, buffered + watched),
        "averageActualBitrate": ratio(sum(bitrates), 1000 * len(bitrates)),
        "averageJoinTime": ratio(sum(joined), SECOND * len(joined)),
        "joinTimeP50": seconds(percentile(joined, 0.5)),
        "joinTimeP95": seconds(percentile(joined, 0.95)),
        "errorRate": ratio(count["error"], count["playRequested"]),
        "uniqueSessions": len({event.session for event in events} - {""}),
        "uniqueKnownUsers": len({event.user for event in events} - {None}),
        "uniqueVideos": len({event.entry for event in events} - {None}),
        "lossRate": ratio(sum(event.missing for event in events), sum(event.expected for event in events)),
    }


def time_label(at: int, name: str, zone: tzinfo) -> str:
    """Formats the day, hour, minute or ten seconds of a time as reports do: the zone's clock, with its offset.

    Seconds are written unless they are 0.
    """
    clock = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)).astimezone(zone)
    if name == "day":
        return clock.date().isoformat()
    if name == "hour":
        clock = clock.replace(minute=0)
    seconds = clock.second // 10 * 10 if name == "tenSeconds" else 0
    return clock.replace(second=seconds, microsecond=0).isoformat(timespec="seconds" if seconds else "minutes")


def key_of(event: Event, dimensions: tuple[str, ...], zone: tzinfo) -> tuple[str, ...]:
    """Returns the values of an event's dimensions."""
    return tuple(
        _label_of_bucket(event.at // TEN_SECONDS, name, zone) if name in TIMES else event.dimensions[name]
        for name in dimensions
    )


@cache
def _label_of_bucket(bucket: int, name: str, zone: tzinfo) -> str:
    """Formats the times of ten seconds, numbered since 1970: all of them have the same label."""
    return time_label(bucket * TEN_SECONDS, name, zone)


def report(
    events: Iterable[Event], dimensions: tuple[str, ...] = (), zone: tzinfo = UTC
) -> dict[tuple[str, ...], dict[str, float | None]]:
    """Computes every metric by dimensions: a row for each combination of values that events have."""
    rows: dict[tuple[str, ...], Group] = defaultdict(Group)
    for event in events:
        rows[key_of(event, dimensions, zone)].events.append(event)
    return {values: metrics(group) for values, group in rows.items()}
