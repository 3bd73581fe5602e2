"""What a benchmark found: for people as text, for programs as JSON, for the eye as a chart."""

import json
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

_OURS = re.compile(r"^kanalony|: segments$|: the lake$|query of")


@dataclass(frozen=True)
class Measurement:
    """One quantity of one subject, measured once or several times: `CPU` of `nginx, buffered`, in `µs/event`."""

    subject: str
    quantity: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        """The median, and from minimum to maximum when it was measured more than once."""
        if len(self.values) == 1:
            return _digits(self.median)
        return f"{_digits(self.median)} ({_digits(min(self.values))} to {_digits(max(self.values))})"


def _digits(value: float) -> str:
    """Three significant digits, and all those before the point."""
    if not value:
        return "0"
    digits = max(0, 2 - _magnitude(value))
    return f"{value:,.{digits}f}"


def _magnitude(value: float) -> int:
    return int(f"{value:e}".split("e")[1])


@dataclass
class Outcome:
    """What a benchmark found. `missed` names the aims that were not reached, `slow` those of speed and size: they
    depend on the machine, and fail nothing.
    """

    lines: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    aims: int = 0

    def figure(self, name: str, value: object, aim: object = None) -> None:
        """Add a figure; with an aim, it must equal it."""
        self._line(name, value if isinstance(value, str) else f"{value:,}", aim, value)
        if aim is not None and value != aim:
            self.missed.append(name)

    def rate(self, name: str, value: float, aim: float) -> None:
        """Add events per second, with an aim."""
        self._line(name, f"{value:,.0f} events/s", f"{aim:,.0f}", value)
        if value < aim:
            self.slow.append(name)

    def below(self, name: str, value: float, aim: float, unit: str) -> None:
        """Add a figure that should be small."""
        self._line(name, f"{_digits(value)} {unit}", f"at most {aim:,g} {unit}", value)
        if value > aim:
            self.slow.append(name)

    def _line(self, name: str, text: str, aim: object, value: object, more: str = "") -> None:
        self.figures[name] = value
        self.aims += aim is not None
        self.lines.append(
            f"{name + ' ':<45}{text}" + (f"   (aim: {aim})" if aim is not None else "") + (f"   {more}" if more else "")
        )

    def measure(self, subject: str, quantity: str, unit: str, *values: float) -> None:
        """Add to what was measured of a subject."""
        for place, known in enumerate(self.measurements):
            if (known.subject, known.quantity, known.unit) == (subject, quantity, unit):
                self.measurements[place] = Measurement(subject, quantity, unit, (*known.values, *values))
                return
        self.measurements.append(Measurement(subject, quantity, unit, values))

    def get(self, subject: str, quantity: str) -> Measurement:
        """What was measured under these names; raises KeyError."""
        for known in self.measurements:
            if (known.subject, known.quantity) == (subject, quantity):
                return known
        raise KeyError((subject, quantity))

    def ratio(
        self,
        name: str,
        above: Measurement,
        below: Measurement,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        paired: bool = True,
    ) -> None:
        """Add how many times one is the other, with its spread, and whether that is what was aimed at. Rounds are
        compared one by one when both were measured in the same ones (`paired`), else with the other's median. Raises
        RuntimeError when the other is zero.
        """
        if not below.median:
            raise RuntimeError(f"{name}: too little was measured for a ratio")
        if paired and len(above.values) == len(below.values):
            ratios = [one / other for one, other in zip(above.values, below.values, strict=True)]
        else:
            ratios = [one / below.median for one in above.values]
        ratio = statistics.median(ratios)
        aim = None
        verdict = ""
        if at_most is not None or at_least is not None:
            aim = f"at most {at_most:.3g}" if at_most is not None else f"at least {at_least:.3g}"
            reached = ratio <= at_most if at_most is not None else ratio >= (at_least or 0)
            verdict = "reached" if reached else "MISSED"
            if not reached:
                self.slow.append(name)
        self._line(name, str(Measurement("", "", "", tuple(ratios))), aim, ratio, verdict)

    def __str__(self) -> str:
        parts = [self._table()] if self.measurements else []
        return "\n".join([*parts, *self.lines])

    def _table(self) -> str:
        """A row for each subject, a column for each quantity: medians, and how far they spread."""
        subjects = list(dict.fromkeys(known.subject for known in self.measurements))
        quantities = list(dict.fromkeys((known.quantity, known.unit) for known in self.measurements))
        cells = {(known.subject, known.quantity, known.unit): str(known) for known in self.measurements}
        rows = [[subject, *(cells.get((subject, *quantity), "") for quantity in quantities)] for subject in subjects]
        headers = ["", *(f"{quantity}\n{unit}" for quantity, unit in quantities)]
        align = ("left", *("right" for _ in quantities))
        return tabulate(rows, headers, tablefmt="simple", colalign=align, disable_numparse=True) + "\n"

    def to_json(self, **more: object) -> str:
        """Every value of every round, beside what else is told (environment, command, caveats)."""
        measured = [vars(known) | {"median": known.median} for known in self.measurements]
        found = {"measurements": measured, "figures": self.figures, "missed": self.missed, "slow": self.slow}
        return json.dumps(more | found, indent=1, ensure_ascii=False, default=str) + "\n"

    def draw(self, path: Path, quantity: str, title: str, caption: str) -> None:
        """Bars of one quantity, for each subject that has it: the median, with a line from minimum to maximum. A PNG,
        SVG or PDF, by the name of `path`.
        """
        unit = next(known.unit for known in self.measurements if known.quantity == quantity)
        shown = [known for known in self.measurements if (known.quantity, known.unit) == (quantity, unit)]
        _draw(path, title, caption, f"{quantity}, {unit}", shown)


def _draw(path: Path, title: str, caption: str, axis: str, shown: list[Measurement]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.6 + 0.42 * len(shown)), layout="constrained")
    axes = figure.subplots()
    medians = [known.median for known in shown]
    spread = [
        [known.median - min(known.values) for known in shown],
        [max(known.values) - known.median for known in shown],
    ]
    colours = ["#1f6feb" if _OURS.search(known.subject) else "#9aa4af" for known in shown]
    axes.barh([known.subject for known in shown], medians, xerr=spread, color=colours, ecolor="#333333", capsize=3)
    for place, known in enumerate(shown):
        axes.annotate(
            _digits(known.median), (max(known.values), place), (6, 0), textcoords="offset points", va="center"
        )
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel(axis)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(caption, fontsize=7, x=0.01, ha="left")
    figure.savefig(path, dpi=110)


@contextmanager
def workspace(directory: Path | None) -> Iterator[Path]:
    """A temporary directory, below `directory` when that is told: another disk, say."""
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        yield Path(temporary)


def interleaved(rounds: int, runs: Sequence[Callable[[], object]]) -> None:
    """Each once, then each once more in the opposite order, and so on: what drifts meets all alike."""
    for number in range(rounds):
        for run in runs if number % 2 == 0 else reversed(runs):
            run()
