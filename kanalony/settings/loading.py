"""Reads the settings of a command: files, environment, flags, and what can be wrong in them."""

import difflib
import json
import logging
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsError

from kanalony.errors import UsageError
from kanalony.settings.compaction import CompactSettings
from kanalony.settings.reports import DashboardSettings, ReportSettings
from kanalony.settings.serving import ServeSettings
from kanalony.settings.shared import PREFIX, DataSettings

log = logging.getLogger(__name__)

DEFAULT_CONFIG = Path("kanalony.toml")
MODELS: tuple[type[DataSettings], ...] = (
    DataSettings,
    ServeSettings,
    CompactSettings,
    ReportSettings,
    DashboardSettings,
)
OPTIONS = tuple(dict.fromkeys(name for model in MODELS for name in model.model_fields))

_SECRET = ("api_key",)
_GUARDED_STARTS = {"data_": "data", "redact": "redact", "anonymi": "anonymize_ip"}  # of names that resemble GUARDED
_CLUSTER_NAME = re.compile(r"_service_(host|port.*)$|_port(_\d+_(tcp|udp|sctp).*)?$")  # what Kubernetes sets
_RESEMBLANCE = 0.7  # of an unknown variable to an option; SERVICE_PORT, which Kubernetes sets, resembles server by 0.67

_Model = TypeVar("_Model", bound=DataSettings)


def load_settings(model: type[_Model], config: Path | None = None, **flags: Any) -> _Model:
    """Loads the settings of one command. Options of other commands may be set too; their values are not looked at.

    Args:
        model: Class of the settings.
        config: Settings file, which must exist. None: kanalony.toml in the current directory, if there is one.
        flags: Values of the command line by option. None and () mean that a flag was not given.

    Raises:
        UsageError: An option is unknown or has a wrong value. The message names the option, its source if known, and
            what it must be.
    """
    path = config or _default_config()
    in_file = _read_config(path) if path else {}
    _check_environment()
    # Names may be in capitals, as in the environment. Of two spellings of one option the first wins.
    lowered = {name.lower(): value for name, value in reversed(in_file.items())}
    own = {name: value for name, value in lowered.items() if name in model.model_fields}

    class FromFile(model):  # type: ignore[valid-type, misc]
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            *args: PydanticBaseSettingsSource,
            **named: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = super().settings_customise_sources(settings_cls, *args, **named)
            return *sources, InitSettingsSource(settings_cls, own)

    given = {name: value for name, value in flags.items() if value not in (None, ())}
    problems = [f"{path}: unknown option {name!r}" for name in in_file if name.lower() not in OPTIONS]
    try:
        settings: _Model = FromFile(**given)
    except ValidationError as error:
        # A default that follows from a wrong value is no mistake of its own.
        found = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
        problems = [_describe(problem, path or DEFAULT_CONFIG, given) for problem in found] + problems
        raise _wrong(problems) from error
    except SettingsError as error:
        name = str(error).partition('"')[2].partition('"')[0].upper()
        raise UsageError(f"{PREFIX}{name} is not JSON", 'write it like {"quizAnswered": 201}') from error
    if problems:
        raise _wrong(problems)
    return settings


class SettingsReader:
    """Reads the settings of a collector: at its start, and again at each reload."""

    def __init__(self, config: Path | None = None, **flags: Any) -> None:
        """Takes the arguments of `load_settings`."""
        self._config = config
        self._flags = flags

    def __call__(self) -> ServeSettings:
        """Loads the current settings.

        Raises:
            UsageError: As `load_settings`, and when an earlier call read kanalony.toml and it no longer exists.
        """
        config = self._config or _default_config()
        settings = load_settings(ServeSettings, config, **self._flags)
        self._config = config  # read once, it must exist from now on
        return settings


def hand_to_workers(settings: ServeSettings) -> None:
    """Puts settings into the environment of this process, from which `ServeSettings()` makes the same ones in workers.

    All other options are removed: a worker that faces the internet reads no keys of the dashboard and no path to the
    secrets of partners. Variables that this process was started with stay in /proc/PID/environ of forked workers, which
    only its own user can read; options of kanalony.toml never get there.
    """
    for name in [name for name in os.environ if _option(name) in OPTIONS]:
        del os.environ[name]
    for option, value in settings.model_dump(mode="json").items():
        if value is not None:
            text = json.dumps(value) if isinstance(value, list | dict) else str(value)
            os.environ[f"{PREFIX}{option.upper()}"] = text


def _option(variable: str) -> str | None:
    """Returns the option, known or not, that an environment variable names; None for other variables."""
    name = variable.upper()
    return name.removeprefix(PREFIX).lower() if name.startswith(PREFIX) else None


def _default_config() -> Path | None:
    """Returns kanalony.toml when it exists, also as a dangling link."""
    return DEFAULT_CONFIG if os.path.lexists(DEFAULT_CONFIG) else None


def _read_config(path: Path) -> dict[str, Any]:
    """Reads the options in a settings file.

    Raises:
        UsageError: The file cannot be read, or is empty: no editor leaves it so, but a full disk and a power loss do,
            and then every option would silently be its default.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"the settings file {path} is not a regular file", "name a file with --config")
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError as error:
        what = f"the settings file {path} is a link to nothing" if path.is_symlink() else f"no settings file {path}"
        raise UsageError(what, "name an existing file with --config") from error
    except OSError as error:
        reason = f"the settings file {path} cannot be read: {error.strerror}"
        raise UsageError(reason, "check its permissions") from error
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {error}", "fix that line") from error
    if not text.strip():
        raise UsageError(f"the settings file {path} is empty", "restore or delete it; a comment is enough")
    return values


def _check_environment() -> None:
    """Checks the environment for misspelt options.

    Only a variable that resembles an option is an error. Other unknown ones are logged: cluster managers set names of
    their own there (KANALONY_SERVICE_HOST).

    Raises:
        UsageError: A variable resembles an option.
    """
    named = {variable: _option(variable) for variable in os.environ}
    unknown = {variable: option for variable, option in named.items() if option is not None and option not in OPTIONS}
    for variable, option in unknown.items():
        near = difflib.get_close_matches(option, OPTIONS, 1, _RESEMBLANCE)
        if not _CLUSTER_NAME.search(option):  # of privacy and the data directory, the beginning is enough
            near += [guarded for start, guarded in _GUARDED_STARTS.items() if option.startswith(start)]
        if near:
            raise UsageError(f"{variable} is not an option", f"did you mean {PREFIX}{near[0].upper()}?")
    if unknown:
        log.warning("ignored in the environment, since there are no such options: %s", ", ".join(unknown))


def _wrong(problems: list[str]) -> UsageError:
    return UsageError("; ".join(problems), "see the command's --help")


def _describe(problem: Any, path: Path, given: dict[str, Any]) -> str:
    """Describes one of pydantic's errors: where the value comes from, and what it must be."""
    name = str(problem["loc"][0])
    inner = ".".join(str(part) for part in problem["loc"][1:] if isinstance(part, str) and part != "[key]")
    variable = f"{PREFIX}{name.upper()}"
    if name in given:
        source = f"--{name.replace('_', '-')}"
    elif variable in os.environ:
        source = variable
    else:
        source = f"{path}: {name}"
    source += f".{inner}" if inner else ""
    message = "must be a list" if problem["type"] == "tuple_type" else problem["msg"].removeprefix("Value error, ")
    # Keys do not belong in logs and terminals, wrong ones neither.
    value = "" if name in _SECRET else f" is {problem['input']!r}"
    return f"{source}{value}: {message[0].lower()}{message[1:]}"
