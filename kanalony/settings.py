"""Every option of the collector: its meaning, unit, default and trade-off.

What is set later wins: defaults, kanalony.toml, environment (KANALONY_ and the name in capitals), command line.
"""

import difflib
import json
import logging
import math
import os
import re
import socket
import stat
import sys
import tomllib
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, ValidationError, ValidationInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from kanalony.core.journal import BLOCK_UNIT, MAX_BLOCKS
from kanalony.core.querystring import bare_name
from kanalony.errors import WrongUse

log = logging.getLogger("kanalony")

DEFAULT_CONFIG = Path("kanalony.toml")
_REQUEST_ROOM = 96 << 10  # bytes for all of a request but its body: eight parts of 8 KiB, and redacted ones may grow
_TAKEN_PATHS = ("/robots.txt", "/favicon.ico")
_GUARDED = ("data", "redact", "anonymize_ip")  # a reload changes them only when they are set to something else
_READ_AT_START = ("host", "port", "server")
_SECRET = ("api_key",)
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))  # of times: their seconds, from the longest on
_GUARDED_STARTS = {"data_": "data", "redact": "redact", "anonymi": "anonymize_ip"}
_CLUSTER_NAME = re.compile(r"_service_(host|port.*)$|_port(_\d+_(tcp|udp|sctp).*)?$")  # what Kubernetes sets
_RESEMBLANCE = 0.7  # of an unknown variable to an option; SERVICE_PORT, which Kubernetes sets, resembles server by 0.67


def _host_name() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:63] or "localhost"


def check_meinheld() -> None:
    """Raises WrongUse when meinheld cannot serve here: it is an extra, and Python 3.13 cannot load it."""
    if sys.version_info >= (3, 13):
        raise WrongUse("meinheld runs on Python 3.12 at most", "take --server granian")
    if not find_spec("meinheld") or not find_spec("gunicorn"):
        raise WrongUse(
            "meinheld is not installed",
            "take --server granian, or MEINHELD_NOGREEN=1 CPPFLAGS=-DHTTP_PARSER_STRICT=0 "
            "pip install --no-cache-dir 'kanalony[meinheld]'",
        )


def _default_server() -> Literal["meinheld", "granian"]:
    try:
        check_meinheld()
    except WrongUse:
        return "granian"
    return "meinheld"


def _block_for(max_body: int) -> ByteSize:
    """The smallest block that holds any request with such a body."""
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
    if text in _TAKEN_PATHS:
        raise ValueError("must be another path: this one has an answer of its own")
    return text


def _parameter_name(text: str) -> str:
    name = bare_name(text)
    if text == "event:" or not re.fullmatch(r"[^\s,&=%\[\]\ud800-\udfff]+", name):
        raise ValueError("must be the name of one parameter, decoded and without brackets, like ks")
    return name


def _api_key(text: str) -> str:
    if not re.fullmatch(r"(0|[1-9][0-9]{0,17}|\*)=[!-+\--~]{8,}", text):
        raise ValueError("must be like 585231=KEY or *=KEY, with 8 signs or more, no spaces and no commas")
    return text


def _each_for_one(keys: tuple[str, ...]) -> tuple[str, ...]:
    partners: dict[str, str] = {}
    for partner, _, key in (text.partition("=") for text in keys):
        if partners.setdefault(key, partner) != partner:
            raise ValueError(
                f"must have a key of its own for each partner: {partners[key]} and {partner} have the same"
            )
    return keys


def _shown(parameter: str) -> str:
    if bare_name(parameter).lower() == "ks":
        raise ValueError("must be another parameter: a ks is a credential, and reports are no place for it")
    return parameter


def _length(length: float) -> float:
    if not length >= 0:
        raise ValueError("must be a length of time like 7d, or forever")
    return length


def _metric_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", text):
        raise ValueError("must be named by a letter, then letters, digits and _")
    return text


def _named(text: object) -> object:
    if text == "":
        raise ValueError("must be the name of a directory")
    return text


def _network(text: object) -> object:
    try:
        return ip_network(text) if isinstance(text, str) else text
    except ValueError as error:
        raise ValueError(f"must be a network like 10.0.0.0/8: {error}") from error


def seconds(text: object) -> object:
    """A length of time as people write it: 90, 90s, 15m, 12h, 7d or forever. Raises ValueError."""
    if not isinstance(text, str):
        return text
    if text in ("forever", "inf"):
        return math.inf
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text.strip())
    if not match:
        raise ValueError("must be a length of time like 60s, 15m, 12h or 7d")
    return float(match[1]) * {name: unit for unit, name in _UNITS}[match[2] or "s"]


def to_text(value: object) -> str:
    """The value of an option as people write it. Numbers that are not whole are times, in seconds."""
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, ByteSize):
        return value.human_readable().replace(".0", "")
    if not isinstance(value, float):
        return str(value)
    if value == math.inf:
        return "forever"
    unit, name = next((unit, name) for unit, name in _UNITS if value % unit == 0 or unit == 1)
    return f"{value / unit:g}{name}"


def _one_or_several(value: object) -> object:
    """The values of an option that may be given more than once, in one text: JSON, or one that stands for itself."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.lstrip().startswith("[") else [value] if value else []


def _several(value: object) -> object:
    """The same, or some that are parted by commas."""
    parts = _one_or_several(value)
    if isinstance(value, str) and parts == [value]:
        return [part.strip() for part in value.split(",") if part.strip()]
    return parts


_T = TypeVar("_T")
_Shown = Annotated[str, Field(min_length=1), AfterValidator(_shown)]
_Several = Annotated[tuple[_T, ...], NoDecode, BeforeValidator(_several)]


class Settings(BaseSettings):
    """Options of `kanalony serve`. Sizes are bytes and may be written like 64MiB; times are seconds."""

    model_config = SettingsConfigDict(
        env_prefix="KANALONY_", extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )

    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on. Anything but this machine's own only behind a proxy."""

    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""

    data: Annotated[Path, BeforeValidator(_named)] = Path("data")
    """Data directory, on a local disk; made when missing."""

    group: str | None = Field(None, min_length=1)
    """Group whose members may read what is stored. Without one only the collector's own user can."""

    spool: Annotated[
        tuple[Annotated[Path, BeforeValidator(_named)], ...], NoDecode, BeforeValidator(_one_or_several)
    ] = ()
    """Further directory, best on another disk, for what the data directory has no room for."""

    workers: int = Field(1, ge=1, le=256)
    """Serving processes: one for each core that players' traffic may take."""

    server: Literal["meinheld", "granian"] = Field(default_factory=_default_server)
    """HTTP server. meinheld: fastest, behind a proxy; the default where it is installed and runs, on Python 3.12 at
    most. granian: maintained and hardened; the default elsewhere."""

    ack: Literal["written", "synced"] = "written"
    """What a 200 means. written: survives the death of every process; a power loss may cost what came in the last
    sync_interval. synced: survives a power loss too, for one disk sync per event."""

    trusted_proxy: _Several[Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]] = ()
    """Network (CIDR) whose X-Forwarded-For is believed, as 10.0.0.0/8: the proxies in front, and nobody else."""

    path: _Several[Annotated[str, AfterValidator(_tracking_path)]] = ()
    """Further path to take events on, as /e: blockers know /collect. One that ends in .gif answers with a pixel."""

    max_body: ByteSize = Field(ByteSize(1 << 20), ge=1 << 10, le=32 << 20)
    """Most bytes of a POST's body; more is answered with 413."""

    allow_origin: _Several[Annotated[str, AfterValidator(_origin)]] = ()
    """Origin, as https://videos.example, whose pages may read answers and send JSON. Without any, all may."""

    shed_views: bool = False
    """Tell players that ask for a JSON answer to send no heartbeats while the journal is nearly full."""

    anonymize_ip: Literal["no", "truncate", "hmac", "drop"] = "no"
    """What becomes of client addresses before they reach the disk. truncate: /24 or /48. hmac: a token, the same for an
    address until midnight UTC. drop: nothing is kept."""

    redact: _Several[Annotated[str, AfterValidator(_parameter_name)]] = ()
    """Parameter, as ks, whose values are replaced before they reach the disk, in queries and bodies."""

    memory: ByteSize = Field(ByteSize(1 << 30), ge=512 << 20, le=1 << 40)
    """Of `kanalony compact`: bytes it may take. More makes larger files in the lake."""

    keep_segments: Annotated[float, BeforeValidator(seconds)] = 7 * 86400.0
    """Of `kanalony compact`: age at which segments that are in the lake are deleted, as 7d, 12h; or forever."""

    keep_ten_seconds: Annotated[float, BeforeValidator(seconds), AfterValidator(_length)] = 7 * 86400.0
    """Of `kanalony compact`: age at which sums by ten seconds are deleted. Reports take longer without them."""

    keep_minutes: Annotated[float, BeforeValidator(seconds), AfterValidator(_length)] = 180 * 86400.0
    """Of `kanalony compact`: age at which sums by minute are deleted. Reports take longer without them."""

    keep_hours: Annotated[float, BeforeValidator(seconds), AfterValidator(_length)] = math.inf
    """Of `kanalony compact`: age at which sums by hour are deleted. Reports take longer without them."""

    geoip: Path | None = None
    """Of `kanalony compact`: MaxMind database (.mmdb) that tells country, region and city of addresses."""

    ks_secrets: Path | None = None
    """Of `kanalony compact`: file with a line PARTNER_ID SECRET for each partner, to tell the user of a ks."""

    api_key: Annotated[_Several[Annotated[str, AfterValidator(_api_key)]], AfterValidator(_each_for_one)] = ()
    """Of `kanalony dashboard`: PARTNER_ID=KEY, a key that shows the rows of a partner; *=KEY shows all. Without any,
    who reaches the dashboard sees everything. On the command line other users of the machine can read it."""

    custom_events: dict[Annotated[str, AfterValidator(_metric_name)], Annotated[int, Field(ge=0, lt=10**18)]] = {}
    """Of reports: further event types by name, each a metric: `quizAnswered = 201` below [custom_events]."""

    custom_dimensions: dict[
        Annotated[str, AfterValidator(_metric_name)], Annotated[str, Field(min_length=1), AfterValidator(_shown)]
    ] = {}
    """Of reports: parameters of events by the name of a dimension: `campaign = "utm_campaign"` below
    [custom_dimensions]."""

    host_id: str = Field(default_factory=_host_name, pattern=r"^[A-Za-z0-9.-]{1,63}$")
    """Name of this machine in segments: tells people which collector wrote a file. Need not be unique."""

    keepalive: int = Field(75, ge=1, le=120)
    """Seconds an idle connection stays open. Longer saves players handshakes, shorter saves file descriptors."""

    heartbeat: int = Field(30, ge=2, le=600)
    """Seconds after which a worker that does not respond is killed and replaced."""

    worker_memory: ByteSize = Field(ByteSize(256 << 20), ge=16 << 20)
    """Bytes by which a worker's memory may grow before another takes its place (meinheld only, which leaks some of what
    it refuses). Smaller replaces workers more often, which costs a start of half a second each."""

    journal_block_size: Annotated[ByteSize, AfterValidator(_holds_a_request)] = Field(
        default_factory=lambda known: _block_for(known.get("max_body", 0)), ge=64 << 10, le=64 << 20
    )
    """Most bytes of events in one frame, and in one request. Larger compresses a little better and reads in larger
    steps. The default is max_body and 96 KiB."""

    journal_blocks: int = Field(32, ge=2, le=MAX_BLOCKS)
    """Blocks in each worker's journal: how long the disk may stall before answers turn into 503. Costs as much disk and
    page cache."""

    segment_size: ByteSize = Field(ByteSize(64 << 20), ge=64 << 10)
    """Bytes at which a segment is sealed. Leave it alone unless files are shipped elsewhere."""

    segment_age: float = Field(60.0, ge=1)
    """Seconds after which a segment is sealed: how soon its events can be aggregated."""

    sync_interval: float = Field(1.0, ge=0.1, le=60)
    """Seconds of acknowledged events that a power loss may cost when ack is written. Shorter costs more disk syncs."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings


def to_environment(settings: Settings) -> dict[str, str]:
    """The settings as environment variables, from which `load_settings` makes the same ones in another process."""
    values = settings.model_dump(mode="json")
    return {
        f"KANALONY_{name.upper()}": json.dumps(value) if isinstance(value, list | dict) else str(value)
        for name, value in values.items()
        if value is not None
    }


class SettingsReader:
    """Reads the settings of a serving process: at its start, and again at each reload."""

    def __init__(self, config: Path | None = None, **flags: Any) -> None:
        """The arguments are those of `load_settings`."""
        self._config = config
        self._flags = flags

    def __call__(self) -> Settings:
        """The settings as they are now. Raises WrongUse as `load_settings` does, and when kanalony.toml was there at an
        earlier call and is not any more.
        """
        config = self._config or _default_config()
        settings = load_settings(config, **self._flags)
        self._config = config  # read once, it must be there
        return settings


def describe_reload(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """What a reload changes, a line for each option, keys not shown: (of privacy and the data directory, of others).

    Raises WrongUse when privacy or the data directory would change only because an option is not set any more: that is
    what a truncated file looks like.
    """
    lost = [name for name in _GUARDED if name in old.model_fields_set - new.model_fields_set]
    if any(getattr(old, name) != getattr(new, name) for name in lost):
        default = {name: Settings.model_fields[name].get_default() for name in lost}
        example = ", ".join(f"{name} = {json.dumps(value, default=str)}" for name, value in default.items())
        raise WrongUse(f"{', '.join(lost)} was set and is not any more", f"to change it on purpose write {example}")
    guarded: list[str] = []
    others: list[str] = []
    for name in Settings.model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            change = "changed" if name in _SECRET else f"{to_text(before)} → {to_text(after)}"
            when = ", from the next start on" if name in _READ_AT_START else ""
            (guarded if name in _GUARDED else others).append(f"{name}: {change}{when}")
    return guarded, others


def _default_config() -> Path | None:
    """kanalony.toml when there is one, be it a link to nowhere."""
    return DEFAULT_CONFIG if os.path.lexists(DEFAULT_CONFIG) else None


def _read_config(path: Path) -> dict[str, Any]:
    """The options in a settings file. Raises WrongUse when it cannot be read, or is empty: no editor leaves it so, but
    a full disk and a power loss do, and then every option would silently be its default.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise WrongUse(f"the settings file {path} is not a regular file", "name a file with --config")
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError as error:
        what = f"the settings file {path} is a link to nothing" if path.is_symlink() else f"no settings file {path}"
        raise WrongUse(what, "name an existing file with --config") from error
    except OSError as error:
        reason = f"the settings file {path} cannot be read: {error.strerror}"
        raise WrongUse(reason, "check its permissions") from error
    except WrongUse:
        raise
    except ValueError as error:
        raise WrongUse(f"{path} is not valid TOML: {error}", "fix that line") from error
    if not text.strip():
        raise WrongUse(f"the settings file {path} is empty", "put it back, or delete it; a comment is enough")
    return values


def _check_environment() -> None:
    """Raises WrongUse for a variable that resembles an option. Other unknown ones are a warning: cluster managers put
    names of their own there (KANALONY_SERVICE_HOST).
    """
    prefixed = [name for name in os.environ if name.upper().startswith("KANALONY_")]
    unknown = {name: name.upper().removeprefix("KANALONY_").lower() for name in prefixed}
    unknown = {name: option for name, option in unknown.items() if option not in Settings.model_fields}
    for name, option in unknown.items():
        near = difflib.get_close_matches(option, Settings.model_fields, 1, _RESEMBLANCE)
        if not _CLUSTER_NAME.search(option):  # of privacy and the data directory, the beginning is enough
            near += [guarded for start, guarded in _GUARDED_STARTS.items() if option.startswith(start)]
        if near:
            raise WrongUse(f"{name} is no option", f"did you mean KANALONY_{near[0].upper()}?")
    if unknown:
        log.warning("ignored in the environment, since there are no such options: %s", ", ".join(unknown))


def load_settings(config: Path | None = None, **flags: Any) -> Settings:
    """Settings from all sources; flags that are None or () were not given.

    `config` must exist when named; otherwise kanalony.toml in the current directory is read if there is one. Raises
    WrongUse naming the option, where it came from if that is known, and what it must be.
    """
    path = config or _default_config()
    in_file = _read_config(path) if path else {}
    _check_environment()

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            *args: PydanticBaseSettingsSource,
            **named: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = super().settings_customise_sources(settings_cls, *args, **named)
            return *sources, InitSettingsSource(settings_cls, in_file)

    given = {name: value for name, value in flags.items() if value not in (None, ())}
    try:
        return FromFile(**given)
    except ValidationError as error:
        # A default that follows from a value which is wrong is no mistake of its own.
        found = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
        problems = "; ".join(_describe(problem, path or DEFAULT_CONFIG, given) for problem in found)
        raise WrongUse(problems, "see the command's --help") from error
    except SettingsError as error:
        name = str(error).partition('"')[2].partition('"')[0].upper()
        raise WrongUse(f"KANALONY_{name} is not JSON", 'write it like {"quizAnswered": 201}') from error


def _describe(problem: Any, path: Path, given: dict[str, Any]) -> str:
    name = str(problem["loc"][0])
    inner = ".".join(str(part) for part in problem["loc"][1:] if isinstance(part, str) and part != "[key]")
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown option {name!r}"
    variable = f"KANALONY_{name.upper()}"
    if name in given:
        source = f"--{name.replace('_', '-')}"
    elif variable in os.environ:
        source = variable
    else:
        source = f"{path}: {name}"
    source += f".{inner}" if inner else ""
    message = "must be a list" if problem["type"] == "tuple_type" else problem["msg"].removeprefix("Value error, ")
    # A key is not for logs and terminals, though it is a wrong one.
    value = "" if name == "api_key" else f" is {problem['input']!r}"
    return f"{source}{value}: {message[0].lower()}{message[1:]}"
