"""The commands `kanalony report` and `kanalony dashboard`."""

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from kanalony.cli.command import LakeCommand, examples
from kanalony.cli.options import CONFIG, DATA, existing_data, setting
from kanalony.errors import KanalonyError, UsageError
from kanalony.settings.loading import load_settings
from kanalony.settings.reports import DashboardSettings, ReportSettings


@click.command(
    cls=LakeCommand,
    epilog=examples(
        "kanalony report --metrics play,playRatio --dimensions entry --from -7d --limit 10",
        "kanalony report --metrics view,peakView --dimensions hour --from today --timezone Europe/Paris --chart",
        "kanalony report --metrics minutesWatched --from 2026-06 --to 2026-06 --filter partner=585231 --format csv",
    ),
)
@click.option(
    "--metrics",
    required=True,
    metavar="NAMES",
    help="Metrics to show: NAMES separated by commas. A number counts the events of that type.",
)
@click.option("--dimensions", default="", metavar="NAMES", help="Dimensions to group by: NAMES separated by commas.")
@click.option(
    "--from",
    "start",
    metavar="TIME",
    help="Start: -24h, today, 2026-06, 2026-06-01 or 2026-06-01T13:00, for example.  [default: first event]",
)
@click.option(
    "--to", "end", metavar="TIME", help="End, in the same forms; a day or month is included.  [default: last event]"
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="NAME=VALUE",
    help="Count only events with this value of a dimension. Several values of one dimension are alternatives."
    "  [default: none, may be given more than once]",
)
@click.option(
    "--order",
    default="",
    metavar="NAMES",
    help="Metrics and dimensions to sort by: NAMES separated by commas; -NAME descends.",
)
@click.option("--limit", type=click.IntRange(1), help="Number of rows to show.  [default: all]")
@click.option(
    "--page", type=click.IntRange(1), default=1, show_default=True, help="Page to show, of --limit rows each."
)
@click.option(
    "--timezone",
    metavar="ZONE",
    default="UTC",
    show_default=True,
    help="Time zone for hours and days, such as Europe/Paris.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    default="table",
    show_default=True,
    help="Output format.",
)
@click.option("--chart", is_flag=True, help="Draw the first metric.")
@DATA
@CONFIG
def report(form: str, chart: bool, data: Path | None, config: Path | None, **asked: Any) -> None:
    """Compute metrics by dimensions from the events in the lake.

    docs/reports.md lists metrics and dimensions, and so does the error for an unknown one. A report without rows
    explains why, and exits with 0.
    """
    from kanalony.aggregate.waiting import Waiting
    from kanalony.reports.execution import Reports
    from kanalony.reports.parsing import read_command
    from kanalony.reports.renderer import as_chart, as_csv, as_json, as_parquet, as_table, explain_nothing
    from kanalony.reports.vocabulary import Vocabulary

    settings = load_settings(ReportSettings, config)
    directory = existing_data(data, settings)
    query = read_command(**asked)
    if chart and form != "table":
        raise UsageError(f"--chart draws, and --format {form} does not", "leave one out")
    if form == "parquet" and sys.stdout.isatty():
        raise UsageError("Parquet is not for terminals", "write it to a file: > report.parquet")
    reports = Reports(directory, Vocabulary(settings.custom_events, settings.custom_dimensions))
    result = reports.run(query)
    waiting: int | None = 0
    if result.is_behind:
        try:
            waiting = Waiting(directory).count()
        except (KanalonyError, OSError) as error:
            click.echo(f"cannot count the requests that wait to be compacted: {error}", err=True)
            waiting = None
    if form != "table" and not result.table.num_rows:
        click.echo(" ".join(explain_nothing(result, waiting)), err=True)
    if chart:
        click.echo(as_chart(result, min(shutil.get_terminal_size()[0], 120), waiting))
    elif form == "table":
        click.echo(as_table(result, waiting))
    elif form == "parquet":
        sys.stdout.buffer.write(as_parquet(result))
        sys.stdout.buffer.flush()
    else:
        text = as_csv(result) if form == "csv" else f"{as_json(result)}\n"
        sys.stdout.write(text)  # click.echo would remove what looks like colors
        sys.stdout.flush()


@click.command(
    cls=LakeCommand,
    epilog=examples("kanalony dashboard", "kanalony dashboard --host 0.0.0.0 --api-key 585231=SECRET_KEY"),
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8001,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@setting(DashboardSettings, "api_key", multiple=True)
@DATA
@CONFIG
def dashboard(host: str, port: int, data: Path | None, config: Path | None, **flags: Any) -> None:
    """Serve a page of reports, and the query action.

    The page is at /, the action at /api_v3/index.php?service=analytics&action=query. Both show the events in the lake:
    keep `kanalony compact --every 60s` running beside the dashboard.
    """
    from kanalony.reports.api.server import serve
    from kanalony.reports.vocabulary import Vocabulary

    settings = load_settings(DashboardSettings, config, **flags)
    directory = existing_data(data, settings)
    serve(directory, Vocabulary(settings.custom_events, settings.custom_dimensions), host, port, settings.api_key)
