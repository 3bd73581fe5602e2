"""A report as people and programs want it: an aligned table, CSV, JSON, Parquet, a chart for the terminal."""

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

import plotext
import pyarrow.parquet as pq
from tabulate import tabulate

from kanalony.errors import WrongUse
from kanalony.events import TIME_DIMENSIONS
from kanalony.reports.clock import label
from kanalony.reports.result import Result

_WIDEST = 60  # characters of a text in a table; the other formats have all of it
_BARS = 30
_CRLF = "\r\n"


def explain_nothing(result: Result, waiting: int | None) -> list[str]:
    """Why there are no rows, line by line. So many requests wait to be compacted; None: nobody knows how many."""
    if result.count:
        return [f"There is no such page: there are {result.count:,} rows."]
    if result.latest is not None:
        newest = f"{result.latest:%Y-%m-%d %H:%M:%S} UTC"
        return ["There are no events that answer this.", f"The newest event was received at {newest}.", *_wait(waiting)]
    if waiting != 0:
        return ["No events have been compacted yet.", *_wait(waiting)]
    return ["No events have arrived yet.", "Point players at the collector, or try `kanalony simulate`."]


def _wait(waiting: int | None) -> list[str]:
    if not waiting:
        return []
    requests = "1 request waits" if waiting == 1 else f"{waiting:,} requests wait"
    return [
        f"{requests} to be compacted: keep `kanalony compact --every 60s` running, and allow two minutes. "
        "After a crash, start the collector or run `kanalony recover`."
    ]


def _plain(text: str, widest: int) -> str:
    """Text of an event for a terminal: without signs that steer one, and not too long."""
    text = "".join(sign if sign.isprintable() else "\ufffd" for sign in text)
    return text if len(text) <= widest else text[: widest - 1] + "…"


def _texts(values: list[Any]) -> list[str]:
    """The cells of a column: numbers with as many digits behind the point as suit the largest of them."""
    largest = max((abs(value) for value in values if isinstance(value, float)), default=0.0)
    digits = 1 if largest >= 100 else 2 if largest >= 1 else 4
    return [_text(value, digits) for value in values]


def _text(value: Any, digits: int = 0) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return _plain(value, _WIDEST)
    if isinstance(value, date):
        return label(value)
    return f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"


def _spread(values: Any) -> list[Any]:
    """Dates and times as text, everything else as it is."""
    return [label(value) if isinstance(value, date) else value for value in values]


def as_table(result: Result, waiting: int | None) -> str:
    """For people: aligned, with units and totals. So many requests wait to be compacted."""
    if not result.table.num_rows:
        return "\n".join(explain_nothing(result, waiting))
    titles = list(result.dimensions)
    titles += [f"{metric.name} ({metric.unit})" if metric.unit else metric.name for metric in result.metrics]
    columns = [column.to_pylist() for column in result.table.columns]
    has_total = bool(result.dimensions) and result.count > 1
    if has_total:
        totals = ["total", *[""] * (len(result.dimensions) - 1), *result.totals.values()]
        columns = [[*column, total] for column, total in zip(columns, totals, strict=True)]
    rows = [list(row) for row in zip(*map(_texts, columns), strict=True)]
    if has_total:
        rows.insert(-1, [""] * len(titles))
    alignment = ["left"] * len(result.dimensions) + ["right"] * len(result.metrics)
    lines = [tabulate(rows, titles, "simple", colalign=alignment, disable_numparse=True)]
    if result.table.num_rows < result.count:
        lines.append(f"{result.table.num_rows:,} of {result.count:,} rows; the total is of all")
    lines += [f"{name} is an estimate: within 3.2 % in 95 of 100 cases" for name in result.estimated]
    return "\n".join([*lines, *_wait(waiting)])


class _Lines:
    """Where a CSV writer puts rows. It must believe that they end in CRLF to quote a value with either character, as
    RFC 4180 has it; here they end in LF.
    """

    def __init__(self) -> None:
        self.last = ""

    def write(self, row: str) -> None:
        self.last = f"{row.removesuffix(_CRLF)}\n"


def csv_lines(result: Result) -> Iterator[str]:
    """A line of names and one for each row; nothing where there is nothing to divide by."""
    lines = _Lines()
    writer = csv.writer(lines, lineterminator=_CRLF)
    for row in (result.table.schema.names, *_rows(result)):
        writer.writerow(row)
        yield lines.last


def as_csv(result: Result) -> str:
    """All of `csv_lines`."""
    return "".join(csv_lines(result))


def _rows(result: Result) -> Iterator[tuple[Any, ...]]:
    return zip(*(_spread(column.to_pylist()) for column in result.table.columns), strict=True)


def _objects(result: Result) -> Iterator[dict[str, Any]]:
    names = result.table.schema.names
    return (dict(zip(names, row, strict=True)) for row in _rows(result))


def _about(result: Result) -> dict[str, Any]:
    return {
        "totals": result.totals,
        "count": result.count,
        "units": {metric.name: metric.unit for metric in result.metrics if metric.unit},
        "estimated": result.estimated,
        "tables": result.tables,
        "latest": result.latest and result.latest.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }


def as_object(result: Result) -> dict[str, Any]:
    """For JSON: rows as objects, totals, and how many rows there are on all pages."""
    return {"rows": list(_objects(result)), **_about(result)}


def json_parts(result: Result) -> Iterator[str]:
    """`as_object` as JSON without spaces, a row at a time."""
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
    before = '{"rows":['
    for row in _objects(result):
        yield before + encode(row)
        before = ","
    yield f"{before if before != ',' else ''}],{encode(_about(result))[1:]}"


def as_json(result: Result) -> str:
    """`as_object` as text."""
    return json.dumps(as_object(result), indent=1, ensure_ascii=False)


def as_parquet(result: Result) -> bytes:
    """A Parquet file; days are dates, other times have the time zone that was asked for."""
    file = io.BytesIO()
    pq.write_table(result.table, file)
    return file.getvalue()


def as_chart(result: Result, width: int, waiting: int | None) -> str:
    """The first metric over time, or by the other dimensions, drawn with characters. So many requests wait to be
    compacted. Raises WrongUse when there is nothing to draw it over.
    """
    if not result.dimensions:
        raise WrongUse("a chart needs a dimension", "name one with --dimensions, as hour or country")
    if not result.table.num_rows:
        return "\n".join(explain_nothing(result, waiting))
    metric = result.metrics[0]
    values = [value or 0 for value in result.table[metric.name].to_pylist()]
    title = f"{metric.name} ({metric.unit})" if metric.unit else metric.name
    columns = [result.table[name].to_pylist() for name in result.dimensions]
    plotext.clear_figure()
    plotext.theme("clear")
    if len(result.dimensions) == 1 and result.dimensions[0] in TIME_DIMENSIONS:
        places = sorted(range(len(values)), key=lambda place: _seconds(columns[0][place]))
        values = [values[place] for place in places]
        columns[0] = [columns[0][place] for place in places]
        times = [_seconds(time) for time in columns[0]]
        marks = sorted({0, len(times) // 2, len(times) - 1})
        plotext.plot_size(width, 16)
        plotext.plot(times, values, marker="braille")
        plotext.ylim(0, max(values) or 1)
        plotext.xticks([times[mark] for mark in marks], [label(columns[0][mark]) for mark in marks])
        plotext.title(title)
    else:
        names = [" · ".join(map(_text, row)) for row in zip(*columns, strict=True)]
        plotext.simple_bar(names[:_BARS], values[:_BARS], width=width, title=title)
    drawn = plotext.uncolorize(plotext.build())
    lines = [line.rstrip() for line in drawn.splitlines()]
    if metric.is_count:
        lines = [re.sub(r"(?<=\d)\.00$", "", line) for line in lines]
    if len(values) > _BARS and not (len(columns) == 1 and result.dimensions[0] in TIME_DIMENSIONS):
        lines.append(f"the first {_BARS} of {len(values):,}")
    return "\n".join([*lines, *_wait(waiting)])


def _seconds(time: date) -> float:
    whole = time if isinstance(time, datetime) else datetime(time.year, time.month, time.day)
    return whole.timestamp()
