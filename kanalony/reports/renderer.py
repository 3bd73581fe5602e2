"""Renders results: an aligned table, a chart for the terminal, CSV, JSON, Parquet."""

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

from kanalony.errors import UsageError
from kanalony.events import TIME_DIMENSIONS
from kanalony.reports.clock import label
from kanalony.reports.result import Result

_WIDEST = 60  # characters of a text in a table or chart; the other formats have all of it
_MOST_BARS = 30
_CRLF = "\r\n"


def explain_nothing(result: Result, waiting: int | None) -> list[str]:
    """Explains why a result has no rows, line by line.

    Args:
        result: A result without rows.
        waiting: Requests that wait to be compacted; None when they could not be counted.
    """
    if result.count:
        return [f"There is no such page: the report has {result.count:,} rows."]
    if result.latest is not None:
        newest = f"{result.latest:%Y-%m-%d %H:%M:%S} UTC"
        return ["No events match this query.", f"The newest event was received at {newest}.", *_wait(waiting)]
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
    """Makes text that strangers sent safe for a terminal: without control characters, and not too long."""
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text if len(text) <= widest else text[: widest - 1] + "…"


def _texts(values: list[Any]) -> list[str]:
    """Formats the cells of a column: numbers with as many decimals as fit the largest."""
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


def _labelled(values: Any) -> list[Any]:
    """Formats dates and times, and leaves other values as they are."""
    return [label(value) if isinstance(value, date) else value for value in values]


def as_table(result: Result, waiting: int | None) -> str:
    """Renders a table with units and totals.

    Args:
        result: The result.
        waiting: Requests that wait to be compacted; None when they could not be counted.
    """
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
    """The file of a CSV writer: keeps the last row, with LF at its end.

    The writer quotes values that hold CR or LF, as RFC 4180 requires, only if its rows end in CRLF.
    """

    def __init__(self) -> None:
        self.last = ""

    def write(self, row: str) -> None:
        self.last = f"{row.removesuffix(_CRLF)}\n"


def csv_lines(result: Result) -> Iterator[str]:
    """Yields CSV: the line of names, then a line for each row. Null is an empty field."""
    lines = _Lines()
    writer = csv.writer(lines, lineterminator=_CRLF)
    for row in (result.table.schema.names, *_rows(result)):
        writer.writerow(row)
        yield lines.last


def as_csv(result: Result) -> str:
    """Renders CSV."""
    return "".join(csv_lines(result))


def _rows(result: Result) -> Iterator[tuple[Any, ...]]:
    return zip(*(_labelled(column.to_pylist()) for column in result.table.columns), strict=True)


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
    """Returns the result as JSON values: rows as objects, totals, and what else docs/reports.md describes."""
    return {"rows": list(_objects(result)), **_about(result)}


def json_parts(result: Result) -> Iterator[str]:
    """Yields `as_object` as compact JSON, a row at a time."""
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
    before = '{"rows":['
    for row in _objects(result):
        yield before + encode(row)
        before = ","
    yield f"{before if before != ',' else ''}],{encode(_about(result))[1:]}"


def as_json(result: Result) -> str:
    """Renders `as_object` as indented JSON."""
    return json.dumps(as_object(result), indent=1, ensure_ascii=False)


def as_parquet(result: Result) -> bytes:
    """Renders a Parquet file; days are dates, other times have the query's time zone."""
    file = io.BytesIO()
    pq.write_table(result.table, file)
    return file.getvalue()


def as_chart(result: Result, width: int, waiting: int | None) -> str:
    """Draws the first metric with characters: a line over time, or bars by other dimensions.

    Args:
        result: The result.
        width: Characters of a line.
        waiting: Requests that wait to be compacted; None when they could not be counted.

    Raises:
        UsageError: The result has no dimension.
    """
    if not result.dimensions:
        raise UsageError("a chart needs a dimension", "name one with --dimensions, for example hour or country")
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
        plotext.simple_bar(names[:_MOST_BARS], values[:_MOST_BARS], width=width, title=title)
    drawn = plotext.uncolorize(plotext.build())
    lines = [line.rstrip() for line in drawn.splitlines()]
    if metric.is_count:
        lines = [re.sub(r"(?<=\d)\.00$", "", line) for line in lines]
    if len(values) > _MOST_BARS and not (len(columns) == 1 and result.dimensions[0] in TIME_DIMENSIONS):
        lines.append(f"the first {_MOST_BARS} of {len(values):,}")
    return "\n".join([*lines, *_wait(waiting)])


def _seconds(time: date) -> float:
    whole = time if isinstance(time, datetime) else datetime(time.year, time.month, time.day)
    return whole.timestamp()
