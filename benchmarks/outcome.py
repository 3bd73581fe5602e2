"""Results of a benchmark, as text, as JSON and as a chart."""

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
    """One quantity of one subject, measured once or several times.

    Attributes:
        subject: For example `nginx, buffered`.
        quantity: For example `CPU`.
        unit: For example `µs/event`.
        values: One value for each round.
    """

    subject: str
    quantity: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        """The median, and the range when it was measured more than once."""
        if len(self.values) == 1:
            return _digits(self.median)
        return f"{_digits(self.median)} ({_digits(min(self.values))} to {_digits(max(self.values))})"


def _digits(value: float) -> str:
    """Formats a number with three significant digits, and all digits before the point."""
    if not value:
        return "0"
    digits = max(0, 2 - _magnitude(value))
    return f"{value:,.{digits}f}"


def _magnitude(value: float) -> int:
    return int(f"{value:e}".split("e")[1])


@dataclass
class Outcome:
    """Results of a benchmark.

    Attributes:
        lines: The text, a line for each figure.
        figures: Figures by name.
        measurements: Measured quantities of subjects.
        missed: Figures that differ from their target: the benchmark fails.
        slow: Figures that miss a target of speed or size: these depend on the machine, and the benchmark passes.
        aims: Number of figures with a target.
    """

    lines: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    aims: int = 0

    def figure(self, name: str, value: object, aim: object = None) -> None:
        """Adds a figure. It fails the benchmark when it differs from `aim`."""
        self._line(name, value if isinstance(value, str) else f"{value:,}", aim, value)
        if aim is not None and value != aim:
            self.missed.append(name)

    def rate(self, name: str, value: float, aim: float) -> None:
        """Adds events per second; `aim` is the least that is fast enough."""
        self._line(name, f"{value:,.0f} events/s", f"{aim:,.0f}", value)
        if value < aim:
            self.slow.append(name)

    def below(self, name: str, value: float, aim: float, unit: str) -> None:
        """Adds a figure that should be at most `aim`."""
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
        """Adds values to a quantity of a subject."""
        for place, known in enumerate(self.measurements):
            if (known.subject, known.quantity, known.unit) == (subject, quantity, unit):
                self.measurements[place] = Measurement(subject, quantity, unit, (*known.values, *values))
                return
        self.measurements.append(Measurement(subject, quantity, unit, values))

    def get(self, subject: str, quantity: str) -> Measurement:
        """Returns a measurement.

        Raises:
            KeyError: Nothing was measured under these names.
        """
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
        """Adds the ratio of two measurements, with its range, and whether the median meets the target.

        Args:
            name: Name of the figure.
            above: The numerator.
            below: The denominator.
            at_most: Target: the largest ratio that is good.
            at_least: Target: the smallest ratio that is good.
            paired: Whether both were measured in the same rounds, so that rounds are compared one by one. Otherwise
                every value is compared with the median of the denominator.

        Raises:
            RuntimeError: The denominator is zero.
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
        """Returns a table of medians and ranges: a row for each subject, a column for each quantity."""
        subjects = list(dict.fromkeys(known.subject for known in self.measurements))
        quantities = list(dict.fromkeys((known.quantity, known.unit) for known in self.measurements))
        cells = {(known.subject, known.quantity, known.unit): str(known) for known in self.measurements}
        rows = [[subject, *(cells.get((subject, *quantity), "") for quantity in quantities)] for subject in subjects]
        headers = ["", *(f"{quantity}\n{unit}" for quantity, unit in quantities)]
        align = ("left", *("right" for _ in quantities))
        return tabulate(rows, headers, tablefmt="simple", colalign=align, disable_numparse=True) + "\n"

    def to_json(self, **more: object) -> str:
        """Returns every value of every round as JSON, with the members of `more` (environment, command, caveats)."""
        measured = [vars(known) | {"median": known.median} for known in self.measurements]
        found = {"measurements": measured, "figures": self.figures, "missed": self.missed, "slow": self.slow}
        return json.dumps(more | found, indent=1, ensure_ascii=False, default=str) + "\n"

    def draw(self, path: Path, quantity: str, title: str, caption: str) -> None:
        """Draws one quantity: a bar for the median of each subject, with a line from minimum to maximum.

        Args:
            path: The file to write. Its suffix chooses PNG, SVG or PDF.
            quantity: The quantity to draw.
            title: Title of the chart.
            caption: Small text below it.
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
    """Makes a temporary directory, below `directory` when given: on another disk, for example."""
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        yield Path(temporary)


def interleaved(rounds: int, runs: Sequence[Callable[[], object]]) -> None:
    """Runs each function once a round, in alternating order, so that a drift of the machine affects all alike."""
    for number in range(rounds):
        for run in runs if number % 2 == 0 else reversed(runs):
            run()
