"""Settings of the collector."""

import json
import re
import socket
import sys
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, ValidationInfo
from pydantic_settings import NoDecode

from kanalony.core.frames import FIELD_NAMES
from kanalony.core.journal import BLOCK_UNIT, MAX_BLOCKS
from kanalony.core.querystring import bare_name
from kanalony.errors import UsageError
from kanalony.paths import ICON_PATH, ROBOTS_PATH
from kanalony.settings.shared import DataSettings, Directory, Several, one_or_several, to_text

GUARDED = ("data", "redact", "anonymize_ip")  # a reload changes them only when they are set to another value

# Bytes of a record beside its body: meinheld passes at most 8 KiB of the URL and of each header, and redaction and
# truncation make some of them longer.
_REQUEST_ROOM = (len(FIELD_NAMES) + 1) * (8 << 10)
_READ_AT_START = ("host", "port", "server")


def check_meinheld() -> None:
    """Checks that meinheld can serve here: it is an extra, and Python 3.13 cannot load it.

    Raises:
        UsageError: It cannot.
    """
    if sys.version_info >= (3, 13):
        raise UsageError("meinheld needs Python 3.12 or earlier", "use --server granian")
    if not find_spec("meinheld") or not find_spec("gunicorn"):
        raise UsageError(
            "meinheld is not installed",
            "use --server granian, or MEINHELD_NOGREEN=1 CPPFLAGS=-DHTTP_PARSER_STRICT=0 "
            "pip install --no-cache-dir 'kanalony[meinheld]'",
        )


def _default_server() -> Literal["meinheld", "granian"]:
    try:
        check_meinheld()
    except UsageError:
        return "granian"
    return "meinheld"


def _host_name() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:63] or "localhost"


def _block_for(max_body: int) -> ByteSize:
    """Returns the smallest block that holds a body of `max_body` bytes, URL and headers."""
    return ByteSize(-(-(max_body + _REQUEST_ROOM) // BLOCK_UNIT) * BLOCK_UNIT)


def _holds_a_request(size: ByteSize, info: ValidationInfo) -> ByteSize:
    if size % BLOCK_UNIT:
        raise ValueError(f"must be a multiple of {BLOCK_UNIT} bytes")
    needed = _block_for(info.data.get("max_body", 0))
    if size < needed:
        raise ValueError(f"must be at least {needed}, to hold a request with the largest body (max_body)")
    return size


def _origin(text: str) -> str:
    if not re.fullmatch(r"null|https?://[a-z0-9._-]+(:[0-9]+)?|https?://\[[0-9a-f:]+\](:[0-9]+)?", text.lower()):
        raise ValueError("must be one origin as browsers send it, like https://videos.example")
    return re.sub(r"^(http:.*):80$|^(https:.*):443$", r"\1\2", text.lower())


def _tracking_path(text: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", text):
        raise ValueError("must be a path like /e, of letters, digits and . _ ~ -")
    if text in (ROBOTS_PATH, ICON_PATH):
        raise ValueError("must be another path: this one has a response of its own")
    return text


def _parameter_name(text: str) -> str:
    name = bare_name(text)
    if text == "event:" or not re.fullmatch(r"[^\s,&=%\[\]\ud800-\udfff]+", name):
        raise ValueError("must be the name of one parameter, decoded and without brackets, like ks")
    return name


def _network(text: object) -> object:
    try:
        return ip_network(text) if isinstance(text, str) else text
    except ValueError as error:
        raise ValueError(f"must be a network like 10.0.0.0/8: {error}") from error


class ServeSettings(DataSettings):
    """Settings of `kanalony serve`."""

    commands: ClassVar[tuple[str, ...]] = ("serve",)

    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on. Let other machines reach it only through a proxy."""

    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""

    group: str | None = Field(None, min_length=1)
    """Group whose members may read stored events. Without it only the collector's own user can."""

    spool: Annotated[tuple[Directory, ...], NoDecode, BeforeValidator(one_or_several)] = ()
    """Further directory, preferably on another disk, for events that the data directory has no room for."""

    workers: int = Field(1, ge=1, le=256)
    """Number of serving processes: one for each core that the collector may use."""

    server: Literal["meinheld", "granian"] = Field(
        default_factory=_default_server,
        json_schema_extra={"default_text": "meinheld where it is installed and runs, else granian"},
    )
    """HTTP server. meinheld: fastest, for use behind a proxy, on Python 3.12 or earlier. granian: maintained and
    hardened."""

    ack: Literal["written", "synced"] = "written"
    """What status 200 promises. written: the event survives the death of every process; a power loss may cost the
    events of the last sync_interval. synced: the event survives a power loss too, for one disk sync per event."""

    trusted_proxy: Several[Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]] = ()
    """Network (CIDR), such as 10.0.0.0/8, whose X-Forwarded-For headers are trusted: that of the proxies in front, and
    no other."""

    path: Several[Annotated[str, AfterValidator(_tracking_path)]] = ()
    """Further path that takes events, such as /e: content blockers know /collect. A path that ends in .gif answers with
    a pixel."""

    max_body: ByteSize = Field(ByteSize(1 << 20), ge=1 << 10, le=32 << 20)
    """Largest body of a POST, in bytes; a larger one is answered with 413."""

    allow_origin: Several[Annotated[str, AfterValidator(_origin)]] = ()
    """Origin, such as https://videos.example, whose pages may read responses and send JSON. Without one, all may."""

    shed_views: bool = False
    """Ask players that accept a JSON response to stop sending view events while the journal is nearly full."""

    anonymize_ip: Literal["no", "truncate", "hmac", "drop"] = "no"
    """What replaces client addresses before they reach the disk. truncate: their network, /24 or /48. hmac: a token,
    the same for an address until midnight UTC. drop: nothing."""

    redact: Several[Annotated[str, AfterValidator(_parameter_name)]] = ()
    """Parameter, such as ks, whose values are replaced before they reach the disk, in queries and bodies."""

    host_id: str = Field(
        default_factory=_host_name,
        pattern=r"^[A-Za-z0-9.-]{1,63}$",
        json_schema_extra={"default_text": "host name of the machine"},
    )
    """Name of this machine in the names of segments: shows which collector wrote a file. Need not be unique."""

    keepalive: int = Field(75, ge=1, le=120)
    """Seconds that an idle connection stays open. Longer saves players handshakes, shorter saves file descriptors."""

    heartbeat: int = Field(30, ge=2, le=600)
    """Seconds after which a worker that does not respond is killed and replaced."""

    worker_memory: ByteSize = Field(ByteSize(256 << 20), ge=16 << 20)
    """Bytes by which the memory of a worker may grow before it is replaced (meinheld only, which leaks some memory of
    the requests it refuses). Smaller replaces workers more often, which costs a start of half a second each."""

    journal_block_size: Annotated[ByteSize, AfterValidator(_holds_a_request)] = Field(
        default_factory=lambda known: _block_for(known.get("max_body", 0)),
        ge=64 << 10,
        le=64 << 20,
        json_schema_extra={"default_text": f"max_body + {_REQUEST_ROOM >> 10}KiB"},
    )
    """Largest size, in bytes, of the events in one frame, and of one request. Larger compresses a little better and is
    read in larger steps."""

    journal_blocks: int = Field(32, ge=2, le=MAX_BLOCKS)
    """Number of blocks in the journal of each worker: how long the disk may stall before requests are answered with
    503. Takes as much disk space and page cache."""

    segment_size: ByteSize = Field(ByteSize(64 << 20), ge=64 << 10)
    """Size in bytes at which a segment is sealed. Change it only when segments are shipped elsewhere."""

    segment_age: float = Field(60.0, ge=1)
    """Seconds after which a segment is sealed, and its events can be compacted."""

    sync_interval: float = Field(1.0, ge=0.1, le=60)
    """Seconds of acknowledged events that a power loss may cost when ack is written. Shorter costs more disk syncs."""


def describe_reload(old: ServeSettings, new: ServeSettings) -> tuple[list[str], list[str]]:
    """Describes what a reload changes.

    Returns:
        A line for each changed option: those of privacy and the data directory, and the others.

    Raises:
        UsageError: Privacy or the data directory would change only because an option is no longer set: a truncated file
            looks like that.
    """
    lost = [name for name in GUARDED if name in old.model_fields_set - new.model_fields_set]
    if any(getattr(old, name) != getattr(new, name) for name in lost):
        default = {name: ServeSettings.model_fields[name].get_default() for name in lost}
        example = ", ".join(f"{name} = {json.dumps(value, default=str)}" for name, value in default.items())
        raise UsageError(
            f"{', '.join(lost)} was set before and is not set now", f"to change it on purpose, write {example}"
        )
    guarded: list[str] = []
    others: list[str] = []
    for name in ServeSettings.model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            when = ", from the next start on" if name in _READ_AT_START else ""
            (guarded if name in GUARDED else others).append(f"{name}: {to_text(before)} → {to_text(after)}{when}")
    return guarded, others
