"""The vocabulary of the Event Tracking API: the parameters that have a column of their own in the lake.

Code elsewhere names none of them twice. Sources: the Event Tracking API, and the analytics plugin of the Kaltura
player, which sends more than the API's page says.
"""

from typing import Literal, NamedTuple

Kind = Literal["int", "float", "text"]


class Parameter(NamedTuple):
    """A parameter with a column of its own. `unit` is for people; `spellings` are further names that mean the same."""

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
"""The parameters of the API that have a column. Any other is kept in the map column `parameters`."""
