"""Metrics and dimensions by name: those of the API, and those that an operator registers."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping

from kanalony.aggregate.measures import RAW_DIMENSIONS, parameter_dimension, type_measure
from kanalony.core.querystring import bare_name
from kanalony.errors import UsageError
from kanalony.events import DIMENSIONS, EVENT_TYPES, METRICS, TIME_DIMENSIONS, Metric

_TYPE_NAMES = {number: name for name, number in EVENT_TYPES.items()}
_COLUMNS = {dimension.name: dimension.column for dimension in DIMENSIONS}
_MOST_SIMILAR = 3
_LEAST_SIMILARITY = 0.5


class UnknownName(UsageError):
    """An unknown metric or dimension.

    Attributes:
        kind: `metric` or `dimension`.
        name: The unknown name.
        near: Up to three known names that are similar.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        """Finds similar names among the known ones."""
        known = list(known)
        by_lower = {other.lower(): other for other in known}
        found = difflib.get_close_matches(name.lower(), by_lower, _MOST_SIMILAR, _LEAST_SIMILARITY)
        found += [other for other in by_lower if name and name.lower() in other and other not in found]
        self.kind, self.name, self.near = kind, name, [by_lower[other] for other in found[:_MOST_SIMILAR]]
        hint = f"did you mean {' or '.join(self.near)}?" if self.near else f"choose from {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}", hint)


class Vocabulary:
    """All metrics and dimensions of a query.

    Attributes:
        metrics: Metrics by name.
        dimensions: Meanings by name of the dimension.
    """

    def __init__(self, events: Mapping[str, int] | None = None, parameters: Mapping[str, str] | None = None) -> None:
        """Adds registered names to those of the API.

        Args:
            events: Types of events by name; each is a metric.
            parameters: Parameters of events by name of the dimension, with or without the prefix `event:`.

        Raises:
            UsageError: A name is taken.
        """
        # Players send either event:x or x; the lake has x.
        self._parameters = {name: bare_name(text) for name, text in (parameters or {}).items()}
        self.metrics = {metric.name: metric for metric in METRICS}
        self.dimensions = {dimension.name: dimension.meaning for dimension in DIMENSIONS}
        self.dimensions |= dict.fromkeys(TIME_DIMENSIONS, "time of receipt")
        taken = {name.lower() for name in (*self.metrics, *self.dimensions)}
        for name in [*(events or {}), *self._parameters]:
            if name.lower() in taken:
                raise UsageError(f"{name!r} is already a metric or dimension", "choose another name in kanalony.toml")
            taken.add(name.lower())
        for name, number in (events or {}).items():
            self.metrics[name] = _type_metric(name, number)
        self.dimensions |= {name: f"parameter {parameter}" for name, parameter in self._parameters.items()}

    def metric(self, name: str) -> Metric:
        """Returns a metric; a number stands for events of that type. Raises UnknownName."""
        if re.fullmatch(r"[0-9]{1,18}", name):
            return _type_metric(name, int(name))
        if name not in self.metrics:
            raise UnknownName("metric", name, self.metrics)
        return self.metrics[name]

    def dimension(self, name: str) -> str:
        """Returns the name of a dimension. Raises UnknownName."""
        if name not in self.dimensions:
            raise UnknownName("dimension", name, self.dimensions)
        return name

    def column(self, name: str) -> str | None:
        """Returns the column that rollups have for a dimension; None when only events have it."""
        return _COLUMNS.get(name)

    def raw(self, name: str, bind: Callable[[str], str]) -> str:
        """Returns a dimension as SQL over events.

        Args:
            name: Name of the dimension.
            bind: Binds a text as a parameter and returns its SQL.
        """
        column = self.column(name)
        if column is not None:
            return RAW_DIMENSIONS[column]
        return parameter_dimension(self._parameters[name], bind)


def _type_metric(name: str, number: int) -> Metric:
    """The metric that counts events of a type."""
    measure = _TYPE_NAMES[number] if number in _TYPE_NAMES else type_measure(number).name
    return Metric(name, "", f"events of type {number}", f"{{{measure}}}", is_count=True)
