"""Options and arguments that several commands share, and options that are settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kanalony.segments.directory import DataDirectory
from kanalony.settings.loading import load_settings
from kanalony.settings.shared import DataSettings, default_text

_F = TypeVar("_F", bound=Callable[..., Any])

DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Data directory.  [default: data, unless settings name another]",
)
CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Settings file.  [default: kanalony.toml, if it exists]",
)
PATHS = click.argument("paths", nargs=-1, type=click.Path(path_type=Path))


def setting(model: type[DataSettings], name: str, *, multiple: bool = False) -> Callable[[_F], _F]:
    """Makes an option of a setting, with the meaning and default that the model states.

    Args:
        model: Class of the settings.
        name: Field of the class. `loading.py` checks the value and names the option in errors.
        multiple: Whether the option may be given several times.
    """
    field = model.model_fields[name]
    text = " ".join((field.description or "").split())
    flag = f"--{name.replace('_', '-')}"
    default = default_text(field)
    if field.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", default=None, help=f"{text}  [default: {default}]")
    default += ", may be given more than once" if multiple else ""
    return click.option(flag, metavar="VALUE", multiple=multiple, help=f"{text}  [default: {default}]")


def existing_data(data: Path | None, settings: DataSettings | None = None) -> DataDirectory:
    """Returns the data directory to read: the value of --data, or the default of `kanalony serve` here.

    Raises:
        UsageError: There is no data directory, or settings are wrong.
        FormatError: A later version of kanalony created it.
    """
    return DataDirectory.existing(data or (settings or load_settings(DataSettings)).data)
