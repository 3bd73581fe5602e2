"""The expected contents of columns, computed slowly with Python's own parsers. Shares no code with kanalony."""

import json
import re
from typing import Any
from urllib.parse import parse_qsl

KINDS: dict[str, str] = dict.fromkeys(
    [
        "eventType",
        "partnerId",
        "eventIndex",
        "uiConfId",
        "sessionStartTime",
        "tabMode",
        "soundMode",
        "screenMode",
        "viewabilityMode",
    ],
    "int",
)
KINDS |= dict.fromkeys(
    [
        "position",
        "targetPosition",
        "bufferTime",
        "bufferTimeSum",
        "actualBitrate",
        "preferredBitrate",
        "averageBitrate",
        "joinTime",
        "canPlay",
        "playTimeSum",
        "droppedFramesRatio",
        "bandwidth",
        "segmentDownloadTime",
        "manifestDownloadTime",
        "forwardBufferHealth",
        "targetBuffer",
        "networkConnectionOverhead",
        "playbackSpeed",
        "errorPosition",
    ],
    "float",
)
KINDS |= dict.fromkeys(
    [
        "entryId",
        "flavourId",
        "sessionId",
        "ks",
        "kalsig",
        "userId",
        "clientVer",
        "clientTag",
        "deliveryType",
        "playbackType",
        "playbackContext",
        "application",
        "networkConnectionType",
        "audioLanguage",
        "captionsLanguage",
        "language",
        "caption",
        "socialNetwork",
        "reportType",
        "errorCode",
        "errorDetails",
        "referrer",
        "customVar1",
        "customVar2",
        "customVar3",
    ],
    "text",
)
SPELLINGS = {"uiconfId": "uiConfId", "socialNetwrok": "socialNetwork"}


class _Raw(str):
    """A number as it was written."""


def json_pairs(text: str) -> list[tuple[str, str]]:
    """Returns the members of a JSON object as parameters. Nested values are compared as JSON."""

    def text_of(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, bool):
            return "true" if value else "false"
        return value if isinstance(value, str) else json.dumps(value)

    pairs = json.loads(text, parse_int=_Raw, parse_float=_Raw, object_pairs_hook=lambda members: members)
    return [(name, text_of(value)) for name, value in pairs]


def query_pairs(query: bytes) -> list[tuple[str, str]]:
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True, encoding="latin-1") and [
        (name.encode("latin-1").decode("utf-8", "replace"), value.encode("latin-1").decode("utf-8", "replace"))
        for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    ]


def row(pairs: list[tuple[str, str]]) -> tuple[dict[str, Any], dict[str, list[str]], list[str], list[str]]:
    """Returns (typed columns that are not null, the map, names that conflict, names of cast failures)."""
    typed: dict[str, Any] = {}
    rest: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    conflicts, cast_failures = [], []
    clashed = set()
    for sent, value in pairs:
        name = sent[6:] if sent.startswith("event:") and len(sent) > 6 else sent
        canonical = SPELLINGS.get(name, name)
        if canonical not in KINDS:
            rest.setdefault(name, []).append(value)
        elif canonical in first:
            if value != first[canonical] and canonical not in clashed:
                clashed.add(canonical)
                conflicts.append(name)
            rest.setdefault(name, []).append(value)
        else:
            first[canonical] = value
            fits: Any = value
            if KINDS[canonical] == "int":
                fits = int(value) if re.fullmatch(r"-?[0-9]{1,18}", value) else None
            elif KINDS[canonical] == "float":
                number = re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", value)
                fits = float(value) if number and abs(float(value)) != float("inf") and len(value) < 400 else None
            if fits is not None:
                typed[canonical] = fits
            elif value:
                cast_failures.append(canonical)
                rest.setdefault(name, []).append(value)
    return typed, rest, conflicts, cast_failures
