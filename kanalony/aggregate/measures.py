"""Dimensions and measures of events, as SQL over the lake.

This is their one definition. Rollups store sums of measures; queries take them from rollups or from the events, with
the same result: every sum is of integers, and an event's measures depend on no events but those received from
LOOK_BEHIND before it to LOOK_AHEAD after it. docs/reports.md defines the measures.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kanalony.events import DIMENSIONS, EVENT_TYPES, PARAMETERS, UNKNOWN, VIEW_INTERVAL
from kanalony.units import DAY, HOUR, MINUTE, SECOND

SEQUENCE_GAP = 10 * MINUTE
"""µs. The longest time between an event and the next one of its play sequence."""

MOST_STEPS = 1000
"""The largest step of eventIndex from an event to the next one of its play sequence. A player sends some hundred events
in SEQUENCE_GAP, so a counter that grows by more was set, not counted."""

OVERTAKEN_BY = 8
"""The number of events that may overtake an event, and the largest difference of their eventIndex to its own."""

OVERTAKEN_WITHIN = 25 * SECOND
"""µs. An event is received less than this after an event that overtakes it. Less than 30 s, after which a counter may
start again."""

LOOK_BEHIND = SEQUENCE_GAP + 2 * OVERTAKEN_WITHIN
"""µs. An event's measures depend on no event received earlier than this before it: its own place and that of an event
SEQUENCE_GAP before it are each up to OVERTAKEN_WITHIN before the time of receipt."""

LOOK_AHEAD = OVERTAKEN_WITHIN
"""µs. An event's measures depend on no event received later than this after it."""

MOST_SECONDS = DAY // SECOND
"""Of bufferTime and joinTime. Nobody waits longer: a larger value is not a time."""

MOST_KBPS = 10_000_000
"""Of a bitrate."""

_MOST_PLAYED = 10**9  # seconds, of playTimeSum: some 30 years


class Measure(NamedTuple):
    """A sum over events.

    Attributes:
        name: Its name, and that of its column in rollups.
        raw: SQL aggregate over events (`facts`).
        rolled: SQL aggregate over partial sums, those of rows of rollups.
        kind: SQL type of its column.
        inputs: Columns of `facts` that `raw` reads, besides the type of event.
        of_sequences: Whether it depends on other events of the play sequence.
        other_type: The type of event that it counts, when that type has no name.
    """

    name: str
    raw: str
    rolled: str
    kind: str = "BIGINT"
    inputs: tuple[str, ...] = ()
    of_sequences: bool = False
    other_type: int | None = None


def _sum(name: str, *, of_sequences: bool = False) -> Measure:
    total = f"coalesce(sum({name}), 0)"
    return Measure(name, total, total, inputs=(name,), of_sequences=of_sequences)


def _count(name: str, condition: str, *inputs: str) -> Measure:
    return Measure(name, f"count(*) FILTER ({condition})", f"coalesce(sum({name}), 0)", inputs=inputs)


_KNOWN = ", ".join(map(str, EVENT_TYPES.values()))

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        _count("events", "true"),
        *(_count(name, f"eventType = {number}") for name, number in EVENT_TYPES.items()),
        _sum("bufferMicros"),
        _sum("watchedMicros", of_sequences=True),
        _sum("bitrateSum"),
        _count("bitrates", "bitrateSum IS NOT NULL", "bitrateSum"),
        _sum("joinMicros"),
        _count("joins", "joinMicros IS NOT NULL", "joinMicros"),
        _sum("missing", of_sequences=True),
        _sum("expected", of_sequences=True),
        Measure(
            "joinTimes",
            "list(joinMicros) FILTER (joinMicros IS NOT NULL)",
            "flatten(list(joinTimes) FILTER (joinTimes IS NOT NULL))",
            "BIGINT[]",
            ("joinMicros",),
        ),
    )
}
"""The measures with a column in rollups, by name. Times are in µs, bitrates in thousandths of kbps."""

OTHER_TYPES = "otherTypes"
"""Column of rollups: a map from each type of event without a name to the number of its events."""

MOST_OTHER_TYPE = 999
"""The largest type in that map. Each takes an entry in a row, and strangers choose the numbers; reports count larger
types from the events."""

IS_OTHER_TYPE = f"eventType BETWEEN 0 AND {MOST_OTHER_TYPE} AND eventType NOT IN ({_KNOWN})"
"""SQL condition: the event counts in that map."""


def type_measure(number: int) -> Measure:
    """Returns the measure that counts events of a type without a name. Rollups have it in OTHER_TYPES."""
    return _count(f"type{number}", f"eventType = {number}")._replace(other_type=number)


def find_measure(name: str) -> Measure:
    """Returns the measure with a name: one of MEASURES, or one of `type_measure`, such as type201."""
    return MEASURES[name] if name in MEASURES else type_measure(int(name.removeprefix("type")))


def is_in_rollups(measure: Measure) -> bool:
    """Returns whether rollups have a measure."""
    return measure.other_type is None or measure.other_type <= MOST_OTHER_TYPE


def stored_as(measure: Measure) -> str:
    """Returns SQL for a measure in a row of a rollup."""
    return measure.name if measure.other_type is None else f"coalesce({OTHER_TYPES}[{measure.other_type}], 0)"


MOST_BYTES = 1024
"""The longest value of a dimension, in UTF-8, that is kept whole: tables, memory and responses grow with the values
that strangers send."""

_KEPT_CHARACTERS = 200  # of a longer value: at most 800 bytes, so that the shortened one is within MOST_BYTES


def bounded(text: str) -> str:
    """Returns SQL for a text as a dimension: when longer than MOST_BYTES, its beginning and its SHA-256.

    Args:
        text: SQL for the text.
    """
    shortened = f"left({text}, {_KEPT_CHARACTERS}) || '…' || sha256({text})"
    return f"CASE WHEN strlen({text}) > {MOST_BYTES} THEN {shortened} ELSE {text} END"


# User 0 of a ks is an anonymous viewer; rows of early versions have it as ksUserId.
_USER = "coalesce(nullif(userId, ''), nullif(ksUserId, '0'))"
_TEXT = {"partner": "coalesce(partnerId, ksPartnerId)::VARCHAR", "userId": _USER}
_COLUMNS = {"entry": "entryId", "referrer": "referrerPage"}


def _known(text: str) -> str:
    return f"coalesce(nullif({text}, ''), '{UNKNOWN}')"


RAW_DIMENSIONS: dict[str, str] = {
    dimension.column: _known(_TEXT.get(dimension.column, _COLUMNS.get(dimension.column, dimension.column)))
    for dimension in DIMENSIONS
}
"""SQL for the dimensions of an event in the lake, by their columns in rollups."""

_TYPED = {
    name: (parameter.name, parameter.kind)
    for parameter in PARAMETERS
    for name in (parameter.name, *parameter.spellings)
}


def parameter_dimension(parameter: str, bind: Callable[[str], str]) -> str:
    """Returns SQL for a parameter of an event as a dimension.

    Args:
        parameter: The parameter's name.
        bind: Binds a text to the statement, and returns SQL for it.
    """
    name, kind = _TYPED.get(parameter, (None, ""))
    if kind == "text":  # every text fits the column, so `parameters` has none of them
        return _known(str(name))
    kept = bounded(f"parameters[{bind(name or parameter)}][1]")
    return _known(f"coalesce({name}::VARCHAR, {kept})" if name else kept)


_IN_SEQUENCE = "(coalesce(sessionId <> '', false) AND eventIndex IS NOT NULL)"
SEQUENCE_KEY = (
    f"hash({RAW_DIMENSIONS['partner']}, {RAW_DIMENSIONS['entry']}, sessionId, "
    f'CASE WHEN NOT {_IN_SEQUENCE} THEN hash(worker, sequence, "index") END)'
)
"""SQL for a number that the events of one partner, entry and session share. Each event outside of play sequences has a
number of its own."""

_IS_VIEW = f"coalesce(eventType = {EVENT_TYPES['view']}, false)"
_CONTINUES = f"coalesce(place - place_before <= {SEQUENCE_GAP} AND i - i_before BETWEEN 0 AND {MOST_STEPS}, false)"


def _is_near(kind: str) -> str:
    """Returns an SQL condition: the last event of a kind before an event is in the same play sequence, and near."""
    return f"coalesce({kind}.number >= first AND place - {kind}.place <= {SEQUENCE_GAP}, false)"


_STEPS = {
    "expected": f"CASE WHEN NOT in_sequence THEN 0 WHEN {_CONTINUES} THEN i - i_before ELSE 1 END",
    "missing": f"CASE WHEN {_CONTINUES} THEN greatest(i - i_before - 1, 0) ELSE 0 END",
}
_WATCHED = {
    "watchedMicros": f"""CASE
WHEN in_sequence AND played IS NOT NULL THEN CASE
  WHEN {_is_near("last_played")} AND played - last_played.played BETWEEN 0 AND {SEQUENCE_GAP}
  THEN played - last_played.played ELSE 0 END
WHEN {_IS_VIEW} AND (NOT in_sequence OR NOT {_is_near("last_played")} AND {_is_near("last_view")} AND i <> last_view.i)
THEN {VIEW_INTERVAL}
ELSE 0 END""",
}
"""SQL for measures that depend on other events of the play sequence. _STEPS need the event before; _WATCHED need the
last event with a playTimeSum, and the last view."""


def _in_sequences(source: str, wanted: Collection[str]) -> str:
    """Returns SQL that adds measures of play sequences to events.

    Args:
        source: SQL for events, with the columns that `facts` gives them.
        wanted: Names of measures; those of _STEPS and _WATCHED count.
    """
    overtaking = range(OVERTAKEN_BY, 0, -1)  # the earliest first
    lags = [f"lag({name}, {n}) OVER received AS {name}_{n}" for n in overtaking for name in ("t", "i")]
    largest = f"greatest({', '.join(f'i_{n}' for n in overtaking)})"
    places = [
        f"WHEN coalesce({largest} <= i, true) THEN t",  # most events: the other branches take time
        *(
            f"WHEN i_{n} - i BETWEEN 1 AND {OVERTAKEN_BY} AND t - t_{n} < {OVERTAKEN_WITHIN} THEN t_{n}"
            for n in overtaking
        ),
    ]
    steps = [f"{sql} AS {name}" for name, sql in _STEPS.items() if name in wanted]
    watched = [f"{sql} AS {name}" for name, sql in _WATCHED.items() if name in wanted]
    # Row numbers of 32 bits instead of the columns they order by: DuckDB sorts keys of up to 32 bytes faster.
    source = f"""
SELECT *, lag(place) OVER sequences AS place_before, lag(i) OVER sequences AS i_before,
  row_number() OVER sequences::UINTEGER AS number
FROM (
  SELECT *, CASE {" ".join(places)} ELSE t END AS place
  FROM (
    SELECT *, {", ".join(lags)}, row_number() OVER received::UINTEGER AS receipt
    FROM ({source}) WINDOW received AS (PARTITION BY key ORDER BY t, worker, sequence, "index")
  )
)
WINDOW sequences AS (PARTITION BY key ORDER BY place, i, receipt)"""
    if watched:
        source = f"""
SELECT *,
  max(CASE WHEN NOT {_CONTINUES} THEN number END) OVER numbers AS first,
  lag(CASE WHEN played IS NOT NULL THEN {{number: number, place: place, played: played}} END IGNORE NULLS)
    OVER numbers AS last_played,
  lag(CASE WHEN {_IS_VIEW} THEN {{number: number, place: place, i: i}} END IGNORE NULLS) OVER numbers AS last_view
FROM ({source}) WINDOW numbers AS (PARTITION BY key ORDER BY number)"""
    return f"SELECT *, {', '.join([*steps, *watched])} FROM ({source})"


def touched_hours(received: npt.NDArray[np.int64]) -> list[int]:
    """Returns the hours since 1970 whose sums can change when these events arrive.

    Args:
        received: Times of receipt in µs since 1970.
    """
    seconds = np.unique(received // SECOND)
    reach = (-LOOK_AHEAD // SECOND, 0, LOOK_BEHIND // SECOND)
    return np.unique((seconds[:, None] + reach) // (HOUR // SECOND)).tolist()  # type: ignore[no-any-return]


def _whole(value: str, most: int, *, parts: int = SECOND, event_type: str = "") -> str:
    """Returns SQL for a value as an integer; null outside [0, most], which players do not send.

    Args:
        value: SQL for the value.
        most: Its upper limit.
        parts: How many parts of the integer make one unit of the value.
        event_type: The only type of event with this value; any when empty.
    """
    of_type = f"eventType = {EVENT_TYPES[event_type]} AND " if event_type else ""
    return f"CASE WHEN {of_type}{value} BETWEEN 0 AND {most} THEN round({value} * {parts:.0e})::BIGINT END"


_TEXTS = (
    *(parameter.name for parameter in PARAMETERS if parameter.kind == "text"),
    *("ksUserId", "browser", "operatingSystem", "device", "syndicationDomain", "referrerPage"),
)
_BOUNDED = ", ".join(f"{bounded(name)} AS {name}" for name in _TEXTS)
EVENTS = f"(SELECT * REPLACE ({_BOUNDED}) FROM read_parquet($files, union_by_name = true, hive_partitioning = false))"
"""SQL for the events of the lake's files `$files`, with texts bounded as dimensions. Files of older versions have fewer
columns: see `with_all_columns`. Texts are bounded where they are read, because joins and windows copy them."""

_VALUES = {
    "bufferMicros": _whole("bufferTime", MOST_SECONDS),
    "bitrateSum": _whole("actualBitrate", MOST_KBPS, parts=1000, event_type="view"),
    "joinMicros": _whole("joinTime", MOST_SECONDS, event_type="play"),
}


def facts(
    dimensions: Mapping[str, str],
    measures: Collection[Measure],
    spans: Collection[tuple[int, int]],
    *,
    join: str = "",
    where: str = "true",
) -> str:
    """Returns SQL for events of the lake's files `$files`: their time `t` in µs since 1970, dimensions, and measures.

    Args:
        dimensions: SQL by name; it may use the columns that `join` adds.
        measures: The measures whose columns are needed.
        spans: The events' times of receipt: [first, end) in µs since 1970, one or more.
        join: SQL of a join with another table.
        where: SQL condition; it may use the names of dimensions.
    """
    of_sequences = any(measure.of_sequences for measure in measures)
    needed = {name for measure in measures for name in measure.inputs}
    columns = ["epoch_us(receivedAt) AS t", "eventType"]
    columns += [f"{sql} AS {name}" for name, sql in dimensions.items()]
    columns += [f"{sql} AS {name}" for name, sql in _VALUES.items() if name in needed]
    # Only columns that a measure reads: the writer of rollups holds these rows in memory.
    result = ["t", "eventType", *dimensions, *(name for name in (*_VALUES, *_STEPS, *_WATCHED) if name in needed)]
    if of_sequences:
        columns += [
            f"{_IN_SEQUENCE} AS in_sequence",
            f"{SEQUENCE_KEY} AS key",
            "eventIndex AS i",
            "worker",
            "sequence",
            '"index"',
            f"{_whole('playTimeSum', _MOST_PLAYED)} AS played",
        ]
    in_spans = " OR ".join(f"t >= {first} AND t < {end}" for first, end in spans)
    before, after = (LOOK_BEHIND, LOOK_AHEAD) if of_sequences else (0, 0)
    read = " OR ".join(
        f"receivedAt >= make_timestamptz({first - before}) AND receivedAt < make_timestamptz({end + after})"
        for first, end in spans
    )
    source = f"SELECT {', '.join(columns)} FROM {EVENTS} {join} WHERE {read}"
    if of_sequences:
        source = _in_sequences(source, needed)
    return f"SELECT {', '.join(result)} FROM ({source}) WHERE ({in_spans}) AND ({where})"
