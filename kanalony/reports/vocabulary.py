"""What can be asked for: metrics and dimensions of the API, and those that an operator has registered."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping

from kanalony.aggregate.measures import MEASURES, RAW_DIMENSIONS, Measure, parameter_dimension, type_measure
from kanalony.core.querystring import bare_name
from kanalony.errors import WrongUse
from kanalony.events import DIMENSIONS, EVENT_TYPES, METRICS, TIME_DIMENSIONS, Metric

PEAK, SESSIONS, USERS, VIDEOS = "peakView", "uniqueSessions", "uniqueKnownUsers", "uniqueVideos"
"""Names in formulas that stand for no sum of measures."""

_NAMES = {number: name for name, number in EVENT_TYPES.items()}


class UnknownName(WrongUse):
    """A metric or dimension that there is none of. `near` are names like it."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = list(known)
        by_lower = {other.lower(): other for other in known}
        found = difflib.get_close_matches(name.lower(), by_lower, 3, 0.5)
        found += [other for other in by_lower if name and name.lower() in other and other not in found]
        self.kind, self.name, self.near = kind, name, [by_lower[other] for other in found[:3]]
        hint = f"did you mean {' or '.join(self.near)}?" if self.near else f"there are {', '.join(known)}"
        super().__init__(f"there is no {kind} {name!r}", hint)


class Vocabulary:
    """Metrics and dimensions by name."""

    def __init__(self, events: Mapping[str, int] | None = None, parameters: Mapping[str, str] | None = None) -> None:
        """`events` are further event types by name, each of which is a metric; `parameters` are parameters of events
        by the name of the dimension that they are. Raises WrongUse for a name that is taken.
        """
        # Events may have it either way, as event:x or as x; the lake has x.
        self._parameters = {name: bare_name(text) for name, text in (parameters or {}).items()}
        self.metrics = {metric.name: metric for metric in METRICS}
        self.dimensions = {dimension.name: dimension.meaning for dimension in DIMENSIONS}
        self.dimensions |= dict.fromkeys(TIME_DIMENSIONS, "time of receipt")
        taken = {name.lower() for name in (*self.metrics, *self.dimensions)}
        for name in [*(events or {}), *self._parameters]:
            if name.lower() in taken:
                raise WrongUse(f"{name!r} is a metric or dimension already", "give it another name in kanalony.toml")
            taken.add(name.lower())
        for name, number in (events or {}).items():
            self.metrics[name] = self._of_type(name, number)
        self.dimensions |= {name: f"parameter {parameter}" for name, parameter in self._parameters.items()}

    @staticmethod
    def _of_type(name: str, number: int) -> Metric:
        return Metric(name, "", f"events of type {number}", _NAMES.get(number, type_measure(number).name))

    def metric(self, name: str) -> Metric:
        """A metric; a number stands for events of that type. Raises UnknownName."""
        if re.fullmatch(r"[0-9]{1,18}", name):
            return self._of_type(name, int(name))
        if name not in self.metrics:
            raise UnknownName("metric", name, self.metrics)
        return self.metrics[name]

    def dimension(self, name: str) -> str:
        """The name of a dimension. Raises UnknownName."""
        if name not in self.dimensions:
            raise UnknownName("dimension", name, self.dimensions)
        return name

    def column(self, name: str) -> str | None:
        """The column that rollups have of a dimension; None when they have none."""
        return next((dimension.column for dimension in DIMENSIONS if dimension.name == name), None)

    def raw(self, name: str, bind: Callable[[str], str]) -> str:
        """A dimension as SQL over the lake. `bind` makes SQL of a text."""
        column = self.column(name)
        if column is not None:
            return RAW_DIMENSIONS[column]
        return parameter_dimension(self._parameters[name], bind)


def measures_of(metric: Metric) -> list[Measure]:
    """The measures that a metric's formula names."""
    names = re.findall(r"[A-Za-z]\w*", metric.formula)
    found = [MEASURES[name] for name in names if name in MEASURES]
    return found + [type_measure(int(name[4:])) for name in names if re.fullmatch(r"type[0-9]+", name)]
