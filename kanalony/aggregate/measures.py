"""What an event adds to reports: its dimensions and its measures, as SQL over the lake.

The one place that says so. Rollups store these sums, queries take them from rollups or from the events themselves, and
both come to the same: every sum is of integers, and whatever depends on other events depends on such as were received
at most RUN_GAP before. docs/reports.md says what the measures mean.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from kanalony.events import DIMENSIONS, EVENT_TYPES, PARAMETERS, UNKNOWN

RUN_GAP = 600_000_000
"""µs. Two events of a session and entry that are further apart belong to different runs of the player's counter."""

REORDER_TIME = 15_000_000
"""µs. Events closer to each other than this may arrive in another order than they were sent in."""

REORDER_STEPS = 3
"""By so much may eventIndex fall for that reason; more is a counter that began anew."""

MOST_STEPS = 1000
"""A counter that leaps by more was set, not counted: a player sends some hundred events in RUN_GAP at the most."""

VIEW_SECONDS = 10  # of playback that a view stands for
MOST_SECONDS = 86_400  # of bufferTime and joinTime; more is not a time that somebody waited
MOST_KBPS = 10_000_000  # of a bitrate


class Measure(NamedTuple):
    """What is summed. `raw` is the aggregate over events (`facts`), `rolled` that over partial ones of a table or
    several; `kind` is the type of its column."""

    name: str
    raw: str
    rolled: str
    kind: str = "BIGINT"
    of_runs: bool = False


def _sum(name: str, *, of_runs: bool = False) -> Measure:
    return Measure(name, f"coalesce(sum({name}), 0)", f"coalesce(sum({name}), 0)", of_runs=of_runs)


def _count(name: str, condition: str) -> Measure:
    return Measure(name, f"count(*) FILTER ({condition})", f"coalesce(sum({name}), 0)")


_KNOWN = ", ".join(map(str, EVENT_TYPES.values()))

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        _count("events", "true"),
        *(_count(name, f"eventType = {number}") for name, number in EVENT_TYPES.items()),
        _sum("bufferMicros"),
        _sum("watchedMicros", of_runs=True),
        _sum("bitrateSum"),
        _count("bitrates", "bitrateSum IS NOT NULL"),
        _sum("joinMicros"),
        _count("joins", "joinMicros IS NOT NULL"),
        _sum("missing", of_runs=True),
        _sum("expected", of_runs=True),
        Measure(
            "joinTimes",
            "list(joinMicros) FILTER (joinMicros IS NOT NULL)",
            "flatten(list(joinTimes) FILTER (joinTimes IS NOT NULL))",
            "BIGINT[]",
        ),
    )
}
"""Those that rollups have columns of. Times are µs, bitrates thousandths of kbps."""

OTHER_TYPES = Measure(
    "otherTypes", f"histogram(eventType) FILTER (eventType NOT IN ({_KNOWN}))", "", "MAP(BIGINT, BIGINT)"
)
"""How many events there were of each type that has no name."""


def type_measure(number: int) -> Measure:
    """How many events there were of a type that has no name. Its column in rollups is that of OTHER_TYPES."""
    return _count(f"type{number}", f"eventType = {number}")


def stored_as(measure: Measure) -> str:
    """The SQL that a rollup has a measure under."""
    if measure.name in MEASURES:
        return measure.name
    return f"coalesce({OTHER_TYPES.name}[{measure.name.removeprefix('type')}], 0)"


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


_IN_RUN = "(coalesce(sessionId <> '', false) AND eventIndex IS NOT NULL)"
RUN_KEY = (
    f"hash({RAW_DIMENSIONS['partner']}, {RAW_DIMENSIONS['entry']}, sessionId, "
    f'CASE WHEN NOT {_IN_RUN} THEN hash(worker, sequence, "index") END)'
)
"""SQL for a number that the events of a run share; events that are in none have one each."""


def _same_run(previous: str) -> str:
    """Whether an event belongs to the run of a previous one, whose time is t_PREVIOUS and eventIndex i_PREVIOUS."""
    t, i = f"t_{previous}", f"i_{previous}"
    return (
        f"coalesce(t - {t} <= {RUN_GAP} AND i - {i} <= {MOST_STEPS} AND NOT (i <= {i} AND "
        f"(t - {t} >= {REORDER_TIME} OR {i} - i > {REORDER_STEPS})), false)"
    )


def _in_runs(source: str, wanted: Collection[str]) -> str:
    """SQL that adds to events the measures of runs that are wanted.

    Runs are told by neighbours alone: an event goes on from the last one before it (_any), that with a playTimeSum
    (_played), the last view (_view). So an event's share depends on nothing older than RUN_GAP, and steps of a counter
    add up to the same whatever order they arrived in.
    """
    shares = {name: sql for name, sql in _SHARES.items() if name in wanted}
    lags = [
        f"lag(CASE WHEN {condition} THEN {name} END IGNORE NULLS) OVER run AS {name}_{previous}"
        for previous, condition, names in (
            ("any", "true", ("t", "i")),
            ("played", "played IS NOT NULL", ("t", "i", "played")),
            ("view", _IS_VIEW, ("t", "i")),
        )
        for name in names
        if any(f"{name}_{previous}" in sql for sql in shares.values())
    ]
    return (
        f"SELECT *, {', '.join(f'{sql} AS {name}' for name, sql in shares.items())} FROM ("
        f"SELECT *, {', '.join(lags)} FROM ({source}) "
        'WINDOW run AS (PARTITION BY key ORDER BY t, i, sequence, "index"))'
    )


_IS_VIEW = f"eventType = {EVENT_TYPES['view']}"
_SHARES = {
    "expected": f"CASE WHEN NOT in_run THEN 0 WHEN {_same_run('any')} THEN i - i_any ELSE 1 END",
    "missing": f"CASE WHEN in_run AND {_same_run('any')} AND i <> i_any THEN i - i_any - 1 ELSE 0 END",
    "watchedMicros": f"""CASE
WHEN in_run AND played IS NOT NULL THEN CASE
  WHEN {_same_run("played")} AND played - played_played BETWEEN 0 AND {RUN_GAP} THEN played - played_played ELSE 0 END
WHEN NOT coalesce({_IS_VIEW}, false) OR in_run AND {_same_run("played")} THEN 0
WHEN NOT in_run OR {_same_run("view")} THEN {VIEW_SECONDS * 1_000_000}
ELSE 0 END""",
}
"""An event's measures that depend on those before it."""


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
    dimensions' names, dimensions what `join` adds to the table."""
    of_runs = any(measure.of_runs for measure in measures)
    needed = " ".join(measure.raw for measure in measures)
    columns = ["epoch_us(receivedAt) AS t", "eventType"]
    columns += [f"{sql} AS {name}" for name, sql in dimensions.items()]
    columns += [f"{sql} AS {name}" for name, sql in _VALUES.items() if name in needed]
    # Nothing else: what is not named here takes no memory where the events are kept.
    result = ["t", "eventType", *dimensions, *(name for name in (*_VALUES, *_SHARES) if name in needed)]
    if of_runs:
        columns += [
            f"{_IN_RUN} AS in_run",
            f"{RUN_KEY} AS key",
            "eventIndex AS i",
            "sequence",
            '"index"',
            f"{_whole('playTimeSum', 10**9)} AS played",
        ]
    in_spans = " OR ".join(f"t >= {first} AND t < {end}" for first, end in spans)
    context = RUN_GAP if of_runs else 0
    read = " OR ".join(
        f"receivedAt >= make_timestamptz({first - context}) AND receivedAt < make_timestamptz({end})"
        for first, end in spans
    )
    source = f"SELECT {', '.join(columns)} FROM {EVENTS} {join} WHERE {read}"
    if of_runs:
        source = _in_runs(source, [measure.name for measure in measures])
    return f"SELECT {', '.join(result)} FROM ({source}) WHERE ({in_spans}) AND ({where})"
