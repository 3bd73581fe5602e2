"""What an event adds to reports: its dimensions and its measures, as SQL over the lake.

The one place that says so. Rollups store these sums, queries take them from rollups or from the events themselves, and
both come to the same: every sum is of integers, and what depends on other events depends only on events received from
LOOK_BEHIND before to LOOK_AHEAD after. docs/reports.md says what the measures mean.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kanalony.events import DIMENSIONS, EVENT_TYPES, PARAMETERS, UNKNOWN

SEQUENCE_GAP = 600_000_000
"""µs. The longest time between an event and the next one of its play sequence."""

MOST_STEPS = 1000
"""The most that eventIndex grows from an event to the next one of its play sequence: a player sends some hundred events
in SEQUENCE_GAP, so a counter that grows by more was set, not counted."""

OVERTAKEN_BY = 8
"""How many events, and by how much larger an eventIndex, may overtake an event."""

OVERTAKEN_WITHIN = 25_000_000
"""µs. An event is received less than this after an event that overtakes it. A counter starts again after 30 s."""

LOOK_BEHIND = SEQUENCE_GAP + 2 * OVERTAKEN_WITHIN
"""µs. An event's measures depend on no event received earlier than this before it: its own place and that of an event
SEQUENCE_GAP before it are each up to OVERTAKEN_WITHIN before the time of receipt."""

LOOK_AHEAD = OVERTAKEN_WITHIN
"""µs. An event's measures depend on no event received later than this after it."""

VIEW_SECONDS = 10  # of playback that a view stands for
MOST_SECONDS = 86_400  # of bufferTime and joinTime; more is not a time that somebody waited
MOST_KBPS = 10_000_000  # of a bitrate


class Measure(NamedTuple):
    """What is summed. `raw` is the aggregate over events (`facts`), `rolled` that over partial ones of a table or
    several; `kind` is the type of its column. `inputs` are the columns of `facts` that `raw` reads besides the type of
    event. `other_type` is the type of event that is counted, where that has no name.
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
"""Those that rollups have columns of. Times are µs, bitrates thousandths of kbps."""

OTHER_TYPES = "otherTypes"
"""The column of rollups with the number of events of each type that has no name: a map."""

MOST_OTHER_TYPE = 999
"""The largest of them: each is an entry in a row, and strangers choose the numbers. Reports count larger ones from the
events."""

IS_OTHER_TYPE = f"eventType BETWEEN 0 AND {MOST_OTHER_TYPE} AND eventType NOT IN ({_KNOWN})"
"""SQL for whether an event is of such a type."""


def type_measure(number: int) -> Measure:
    """How many events there were of a type that has no name. Rollups have it in OTHER_TYPES."""
    return _count(f"type{number}", f"eventType = {number}")._replace(other_type=number)


def find_measure(name: str) -> Measure:
    """Returns the measure of that name: one of MEASURES, or that of `type_measure`, as type201."""
    return MEASURES[name] if name in MEASURES else type_measure(int(name.removeprefix("type")))


def is_in_rollups(measure: Measure) -> bool:
    """Whether rollups have a measure."""
    return measure.other_type is None or measure.other_type <= MOST_OTHER_TYPE


def stored_as(measure: Measure) -> str:
    """The SQL that a rollup has a measure under."""
    return measure.name if measure.other_type is None else f"coalesce({OTHER_TYPES}[{measure.other_type}], 0)"


MOST_BYTES = 1024
"""UTF-8 of a dimension's value that is kept whole: tables, memory and answers grow with what a stranger sends."""

_KEPT_CHARACTERS = 200  # of a longer one: at most 800 bytes, so that what comes of it is within MOST_BYTES


def bounded(text: str) -> str:
    """SQL for a text as dimensions have it: beyond MOST_BYTES its beginning and its SHA-256."""
    shortened = f"left({text}, {_KEPT_CHARACTERS}) || '…' || sha256({text})"
    return f"CASE WHEN strlen({text}) > {MOST_BYTES} THEN {shortened} ELSE {text} END"


# The user 0 of a ks is an anonymous viewer: so it stands in rows of versions that did not know.
_USER = "coalesce(nullif(userId, ''), nullif(ksUserId, '0'))"
_TEXT = {"partner": "coalesce(partnerId, ksPartnerId)::VARCHAR", "userId": _USER}
_COLUMNS = {"entry": "entryId", "referrer": "referrerPage"}


def _known(text: str) -> str:
    return f"coalesce(nullif({text}, ''), '{UNKNOWN}')"


RAW_DIMENSIONS: dict[str, str] = {
    dimension.column: _known(_TEXT.get(dimension.column, _COLUMNS.get(dimension.column, dimension.column)))
    for dimension in DIMENSIONS
}
"""The columns of dimensions in rollups, and what they are of an event in the lake, as SQL."""

_TYPED = {
    name: (parameter.name, parameter.kind)
    for parameter in PARAMETERS
    for name in (parameter.name, *parameter.spellings)
}


def parameter_dimension(parameter: str, bind: Callable[[str], str]) -> str:
    """SQL for a parameter of an event as a dimension; `bind` makes SQL of its name."""
    name, kind = _TYPED.get(parameter, (None, ""))
    if kind == "text":  # any text fits, so nothing is left beside the column
        return _known(str(name))
    kept = bounded(f"parameters[{bind(name or parameter)}][1]")
    return _known(f"coalesce({name}::VARCHAR, {kept})" if name else kept)


_IN_SEQUENCE = "(coalesce(sessionId <> '', false) AND eventIndex IS NOT NULL)"
SEQUENCE_KEY = (
    f"hash({RAW_DIMENSIONS['partner']}, {RAW_DIMENSIONS['entry']}, sessionId, "
    f'CASE WHEN NOT {_IN_SEQUENCE} THEN hash(worker, sequence, "index") END)'
)
"""SQL for a number that the events of one partner, entry and session share; events outside of play sequences have one
each."""

_IS_VIEW = f"coalesce(eventType = {EVENT_TYPES['view']}, false)"
_CONTINUES = f"coalesce(place - place_before <= {SEQUENCE_GAP} AND i - i_before BETWEEN 0 AND {MOST_STEPS}, false)"


def _is_near(kind: str) -> str:
    """SQL for whether the nearest event of a kind before an event is of the same play sequence and near enough."""
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
THEN {VIEW_SECONDS * 1_000_000}
ELSE 0 END""",
}
"""An event's measures that depend on its neighbours: those that the event before it suffices for, and those that need
the last event with a playTimeSum and the last view."""


def _in_sequences(source: str, wanted: Collection[str]) -> str:
    """SQL that adds the wanted measures of play sequences to events."""
    overtaking = range(OVERTAKEN_BY, 0, -1)  # the earliest first
    lags = [f"lag({name}, {n}) OVER received AS {name}_{n}" for n in overtaking for name in ("t", "i")]
    largest = f"greatest({', '.join(f'i_{n}' for n in overtaking)})"
    places = [
        f"WHEN coalesce({largest} <= i, true) THEN t",  # most events: the rest takes time
        *(
            f"WHEN i_{n} - i BETWEEN 1 AND {OVERTAKEN_BY} AND t - t_{n} < {OVERTAKEN_WITHIN} THEN t_{n}"
            for n in overtaking
        ),
    ]
    steps = [f"{sql} AS {name}" for name, sql in _STEPS.items() if name in wanted]
    watched = [f"{sql} AS {name}" for name, sql in _WATCHED.items() if name in wanted]
    # Row numbers of 32 bits instead of what they stand for: DuckDB sorts keys of up to 32 bytes faster.
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
    """The hours since 1970 whose sums can change when events arrive that were received at these times, in µs since
    1970.
    """
    seconds = np.unique(received // 1_000_000)
    reach = (-LOOK_AHEAD // 1_000_000, 0, LOOK_BEHIND // 1_000_000)
    return np.unique((seconds[:, None] + reach) // 3600).tolist()  # type: ignore[no-any-return]


def _whole(value: str, most: int, *, scale: str = "1e6", event_type: str = "") -> str:
    """SQL for a value in whole parts of its unit, of events of a type; null where it is not what players send."""
    of_type = f"eventType = {EVENT_TYPES[event_type]} AND " if event_type else ""
    return f"CASE WHEN {of_type}{value} BETWEEN 0 AND {most} THEN round({value} * {scale})::BIGINT END"


_TEXTS = (
    *(parameter.name for parameter in PARAMETERS if parameter.kind == "text"),
    *("ksUserId", "browser", "operatingSystem", "device", "syndicationDomain", "referrerPage"),
)
_BOUNDED = ", ".join(f"{bounded(name)} AS {name}" for name in _TEXTS)
EVENTS = f"(SELECT * REPLACE ({_BOUNDED}) FROM read_parquet($files, union_by_name = true, hive_partitioning = false))"
"""The events of files of the lake, with texts as dimensions have them. Some files may be of a version that had fewer
columns: see `with_all_columns`. A text is bounded where it is read: joins and windows copy what is left of it."""

_VALUES = {
    "bufferMicros": _whole("bufferTime", MOST_SECONDS),
    "bitrateSum": _whole("actualBitrate", MOST_KBPS, scale="1e3", event_type="view"),
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
    """SQL for events of the lake's files `$files` with the columns that dimensions (name: SQL) and measures need, and
    their time `t` in µs since 1970. Of those received in one of the spans [first, end) in µs. `where` may use the
    dimensions' names, dimensions what `join` adds to the table.
    """
    of_sequences = any(measure.of_sequences for measure in measures)
    needed = {name for measure in measures for name in measure.inputs}
    columns = ["epoch_us(receivedAt) AS t", "eventType"]
    columns += [f"{sql} AS {name}" for name, sql in dimensions.items()]
    columns += [f"{sql} AS {name}" for name, sql in _VALUES.items() if name in needed]
    # Nothing else: what is not named here takes no memory where the events are kept.
    result = ["t", "eventType", *dimensions, *(name for name in (*_VALUES, *_STEPS, *_WATCHED) if name in needed)]
    if of_sequences:
        columns += [
            f"{_IN_SEQUENCE} AS in_sequence",
            f"{SEQUENCE_KEY} AS key",
            "eventIndex AS i",
            "worker",
            "sequence",
            '"index"',
            f"{_whole('playTimeSum', 10**9)} AS played",
        ]
    in_spans = " OR ".join(f"t >= {first} AND t < {end}" for first, end in spans)
    before, after = (LOOK_BEHIND, LOOK_AHEAD) if of_sequences else (0, 0)
    read = " OR ".join(
        f"receivedAt >= make_timestamptz({first - before}) AND receivedAt < make_timestamptz({end + after})"
        for first, end in spans
    )
    source = f"SELECT {', '.join(columns)} FROM {EVENTS} {join} WHERE {read}"
    if of_sequences:
        source = _in_sequences(source, [measure.name for measure in measures])
    return f"SELECT {', '.join(result)} FROM ({source}) WHERE ({in_spans}) AND ({where})"
