"""The vocabulary of the Event Tracking API: event types, parameters, and what reports can ask for.

Every name is defined here once. Sources: the Event Tracking API, and the analytics plugin of the Kaltura player, which
sends parameters that the API's page does not list. docs/reports.md describes metrics and dimensions for users.
"""

from collections.abc import Mapping
from string import Formatter
from typing import Literal, NamedTuple

from kanalony.units import HOUR, MINUTE, SECOND

Kind = Literal["int", "float", "text"]

VIEW_INTERVAL = 10 * SECOND
"""µs. The playback that a `view` event stands for; players send one whenever that much was played."""

_SECOND, _MINUTE = f"{SECOND:.0e}", f"{MINUTE:.0e}"  # in formulas: measures are in µs; with an exponent a DOUBLE


class Parameter(NamedTuple):
    """A parameter with a column of its own.

    `kind` is the type of the column, `unit` documents its values, and `spellings` are further names of the parameter.
    """

    name: str
    kind: Kind
    unit: str = ""
    spellings: tuple[str, ...] = ()


PARAMETERS: tuple[Parameter, ...] = (
    # identity
    Parameter("eventType", "int"),
    Parameter("partnerId", "int"),
    Parameter("entryId", "text"),
    Parameter("flavourId", "text"),
    Parameter("sessionId", "text"),
    Parameter("eventIndex", "int"),
    Parameter("ks", "text"),
    Parameter("kalsig", "text"),
    Parameter("uiConfId", "int", spellings=("uiconfId",)),
    Parameter("userId", "text"),
    # player
    Parameter("clientVer", "text"),
    Parameter("clientTag", "text"),
    Parameter("deliveryType", "text"),
    Parameter("playbackType", "text"),
    Parameter("playbackContext", "text"),
    Parameter("application", "text"),
    Parameter("sessionStartTime", "int", "s or ms since 1970"),
    # position
    Parameter("position", "float", "s"),
    Parameter("targetPosition", "float", "s"),
    # quality
    Parameter("bufferTime", "float", "s"),
    Parameter("bufferTimeSum", "float", "s"),
    Parameter("actualBitrate", "float", "kbps"),
    Parameter("preferredBitrate", "float", "kbps"),
    Parameter("averageBitrate", "float", "kbps"),
    Parameter("joinTime", "float", "s"),
    Parameter("canPlay", "float", "s"),
    Parameter("playTimeSum", "float", "s"),
    Parameter("droppedFramesRatio", "float"),
    Parameter("bandwidth", "float", "kbps"),
    Parameter("segmentDownloadTime", "float", "s"),
    Parameter("manifestDownloadTime", "float", "s"),
    Parameter("forwardBufferHealth", "float"),
    Parameter("targetBuffer", "float"),
    Parameter("networkConnectionType", "text"),
    Parameter("networkConnectionOverhead", "float"),
    # screen
    Parameter("tabMode", "int"),
    Parameter("soundMode", "int"),
    Parameter("screenMode", "int"),
    Parameter("viewabilityMode", "int"),
    Parameter("audioLanguage", "text"),
    Parameter("captionsLanguage", "text"),
    Parameter("language", "text"),
    Parameter("caption", "text"),
    Parameter("playbackSpeed", "float"),
    # sharing, faults
    Parameter("socialNetwork", "text", spellings=("socialNetwrok",)),
    Parameter("reportType", "text"),
    Parameter("errorCode", "text"),
    Parameter("errorDetails", "text"),
    Parameter("errorPosition", "float", "s"),
    # page
    Parameter("referrer", "text"),
    # custom
    Parameter("customVar1", "text"),
    Parameter("customVar2", "text"),
    Parameter("customVar3", "text"),
)
"""The parameters that have a column, in its order. All others are kept in the map column `parameters`."""


EVENT_TYPES: dict[str, int] = {
    "playerImpression": 1,
    "playRequested": 2,
    "play": 3,
    "resume": 4,
    "playThrough25": 11,
    "playThrough50": 12,
    "playThrough75": 13,
    "playThrough100": 14,
    "playThrough90": 15,
    "shareClicked": 21,
    "shared": 22,
    "downloadClicked": 23,
    "reportClicked": 24,
    "reportSubmitted": 25,
    "enterFullscreen": 31,
    "exitFullscreen": 32,
    "pauseClicked": 33,
    "replay": 34,
    "seek": 35,
    "relatedClicked": 36,
    "relatedSelected": 37,
    "captions": 38,
    "sourceSelected": 39,
    "info": 40,
    "speed": 41,
    "audioSelected": 42,
    "flavorSwitch": 43,
    "bufferStart": 45,
    "bufferEnd": 46,
    "error": 98,
    "view": 99,
}
"""Numbers of event types by name, as the API defines them. Each is also a metric. Events of other types are kept, and
counted by their number."""


class Dimension(NamedTuple):
    """What reports group and filter by. `column` is its column in rollups."""

    name: str
    meaning: str
    column: str


DIMENSIONS: tuple[Dimension, ...] = (
    Dimension("partner", "partnerId, or that of the ks", "partner"),
    Dimension("entry", "entryId: the video", "entry"),
    Dimension("device", "of the user agent", "device"),
    Dimension("operatingSystem", "of the user agent", "operatingSystem"),
    Dimension("browser", "of the user agent", "browser"),
    Dimension("country", "of the address", "country"),
    Dimension("region", "of the address", "region"),
    Dimension("city", "of the address", "city"),
    Dimension("syndicationDomain", "host of the referrer", "syndicationDomain"),
    Dimension("referrer", "host[:port]/path of the referrer, in lower case", "referrer"),
    Dimension("application", "as sent", "application"),
    Dimension("category", "the category id that playbackContext holds", "playbackContext"),
    Dimension("playbackContext", "as sent", "playbackContext"),
    Dimension("playbackType", "vod, live, dvr; as sent", "playbackType"),
    Dimension("customVar1", "as sent", "customVar1"),
    Dimension("customVar2", "as sent", "customVar2"),
    Dimension("customVar3", "as sent", "customVar3"),
    Dimension("userId", "userId, or that of the ks", "userId"),
)
"""All dimensions except those of time."""

TIME_DIMENSIONS: dict[str, int | None] = {
    "day": None,
    "hour": HOUR // SECOND,
    "minute": MINUTE // SECOND,
    "tenSeconds": VIEW_INTERVAL // SECOND,
}
"""Dimensions of time, and their lengths in seconds. The length of a day varies."""

UNKNOWN = "Unknown"
"""The value of a dimension that an event lacks."""


class Metric(NamedTuple):
    """A number that reports show.

    `formula` is SQL in which `{name}` stands for a measure of events, summed (kanalony.aggregate.measures), or for a
    peak or distinct count that a query computes on its own (kanalony.reports.statement). It is null where it divides
    by nothing. `is_count` marks whole numbers.
    """

    name: str
    unit: str
    meaning: str
    formula: str
    is_count: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names in the formula, without repetitions."""
        return tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(self.formula) if name))

    def sql(self, columns: Mapping[str, str]) -> str:
        """Returns the formula as SQL, with the SQL of `columns` in place of the names."""
        return self.formula.format_map(columns)


def _count(name: str, meaning: str) -> Metric:
    return Metric(name, "", meaning, f"{{{name}}}", is_count=True)


def _ratio(numerator: str, denominator: str) -> str:
    return f"({numerator}) / nullif({denominator}, 0)"


METRICS: tuple[Metric, ...] = (
    _count("events", "all events, of whatever type"),
    *(_count(name, f"events of type {number}") for name, number in EVENT_TYPES.items()),
    Metric("playRatio", "", "play divided by playerImpression", _ratio("{play}", "{playerImpression}")),
    Metric(
        "averageViewDropOff",
        "",
        "how far plays came: a quarter for each of playThrough25, 50, 75 and 100, divided by play",
        _ratio("0.25 * ({playThrough25} + {playThrough50} + {playThrough75} + {playThrough100})", "{play}"),
    ),
    Metric(
        "estimatedMinutesWatched",
        "min",
        "view divided by 6: players send one every ten seconds",
        f"{{view}} / {MINUTE // VIEW_INTERVAL}",
    ),
    Metric(
        "minutesWatched",
        "min",
        "by playTimeSum, without the extra view at first play",
        f"{{watchedMicros}} / {_MINUTE}",
    ),
    Metric(
        "averageViewDuration",
        "min",
        "minutesWatched divided by play",
        _ratio(f"{{watchedMicros}} / {_MINUTE}", "{play}"),
    ),
    _count("peakView", "most views in ten seconds"),
    Metric("bufferingTime", "s", "sum of bufferTime", f"{{bufferMicros}} / {_SECOND}"),
    Metric(
        "rebufferRatio",
        "",
        "bufferingTime divided by the sum of it and the time watched",
        _ratio("{bufferMicros}", "{bufferMicros} + {watchedMicros}"),
    ),
    Metric("averageActualBitrate", "kbps", "mean of views", _ratio("{bitrateSum} / 1e3", "{bitrates}")),
    Metric("averageJoinTime", "s", "mean of plays", _ratio(f"{{joinMicros}} / {_SECOND}", "{joins}")),
    Metric("joinTimeP50", "s", "median of plays", f"list_aggregate({{joinTimes}}, 'quantile_cont', 0.5) / {_SECOND}"),
    Metric(
        "joinTimeP95",
        "s",
        "95th percentile of plays",
        f"list_aggregate({{joinTimes}}, 'quantile_cont', 0.95) / {_SECOND}",
    ),
    Metric("errorRate", "", "error divided by playRequested", _ratio("{error}", "{playRequested}")),
    _count("uniqueSessions", "distinct sessionId"),
    _count("uniqueKnownUsers", "distinct users of a partner, unknown ones aside"),
    _count("uniqueVideos", "distinct entries of a partner, unknown ones aside"),
    Metric(
        "lossRate",
        "",
        "eventIndex values that are missing inside play sequences, divided by those expected there",
        _ratio("{missing}", "{expected}"),
    ),
)
