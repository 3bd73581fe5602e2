"""The settings that all commands share, and the forms that values take in files, variables and flags."""

import json
import math
import re
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

from pydantic import BeforeValidator, ByteSize
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "KANALONY_"  # of environment variables

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))  # of times: length in seconds, longest first


def seconds(text: object) -> object:
    """Reads a length of time: 90, 90s, 15m, 12h, 7d or forever.

    Returns:
        Seconds, or the argument itself when it is no string.

    Raises:
        ValueError: The string is not a length of time.
    """
    if not isinstance(text, str):
        return text
    if text in ("forever", "inf"):
        return math.inf
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text.strip())
    if not match:
        raise ValueError("must be a length of time like 60s, 15m, 12h or 7d")
    return float(match[1]) * {name: unit for unit, name in _UNITS}[match[2] or "s"]


def to_text(value: object) -> str:
    """Writes a value of an option as it stands in settings. Floats are times in seconds."""
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


def default_text(field: FieldInfo) -> str:
    """Describes the default of an option, in the same way on every machine.

    A field whose default depends on the machine or on other options describes it as `default_text` in its
    `json_schema_extra`.
    """
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "default_text" in extra:
        return str(extra["default_text"])
    default = field.get_default()
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, float) and not is_time(field):
        return f"{default:g}"
    return "none" if default == {} else to_text(default)


def is_time(field: FieldInfo) -> bool:
    """Returns whether values may be written with a unit of time, like 60s."""
    return _READ_TIME in field.metadata


def named_directory(text: object) -> object:
    """Refuses the empty string, which would be the current directory."""
    if text == "":
        raise ValueError("must be the name of a directory")
    return text


def one_or_several(value: object) -> object:
    """Splits the text of an option that may be given several times: a JSON list, or one value."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.lstrip().startswith("[") else [value] if value else []


def several(value: object) -> object:
    """Splits the text of an option that may be given several times: a JSON list, or values separated by commas."""
    parts = one_or_several(value)
    if isinstance(value, str) and parts == [value]:
        return [part.strip() for part in value.split(",") if part.strip()]
    return parts


_T = TypeVar("_T")
Several = Annotated[tuple[_T, ...], NoDecode, BeforeValidator(several)]
Directory = Annotated[Path, BeforeValidator(named_directory)]
_READ_TIME = BeforeValidator(seconds)
Time = Annotated[float, _READ_TIME]


class DataSettings(BaseSettings):
    """Settings of every command. Sizes are bytes and may be written like 64MiB; times are seconds."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        defer_build=True,  # `--help` needs no validators
    )

    commands: ClassVar[tuple[str, ...]] = ("cat", "verify", "ledger", "recover")
    """Commands that load this model."""

    data: Directory = Path("data")
    """Data directory, on a local disk. The collector creates it when it is missing."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Takes values from arguments and the environment only."""
        return init_settings, env_settings
