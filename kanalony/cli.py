"""The command line: one command, sub-commands in the order of the flow.

Exit codes: 0 done, 1 done and something is wrong with the data, 2 wrong use or an unusable machine, told in one line.
"""

import json
import logging
import os
import shutil
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import click

from kanalony import __version__
from kanalony.errors import KanalonyError, WrongUse
from kanalony.segments.names import DataDirectory, to_iso, worker_name
from kanalony.settings import Settings, SettingsReader, load_settings, seconds, to_text

_F = TypeVar("_F", bound=Callable[..., Any])

DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Data directory.  [default: that of `kanalony serve`: data, or what its settings say]",
)
CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Settings file.  [default: kanalony.toml, when there is one]",
)
PATHS = click.argument("paths", nargs=-1, type=click.Path(path_type=Path))


class _Command(click.Command):
    """Tells our errors, and the machine's, in one line with their remedy."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader has seen enough, as in `kanalony cat | head`. What is still buffered has nowhere to go.
            sys.stdout = None
            ctx.exit(0)
        except (KanalonyError, OSError) as error:
            hint = getattr(error, "hint", "")
            click.echo(f"Error: {error}" + (f" ({hint})" if hint else ""), err=True)
            ctx.exit(2)


class _LakeCommand(_Command):
    """A command that needs the libraries of the extra [lake]: says how to install them when they are missing."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            click.echo(
                f"Error: {ctx.command_path} needs {error.name}, not installed here (pip install 'kanalony[lake]')",
                err=True,
            )
            ctx.exit(2)


class _Group(click.Group):
    command_class = _Command

    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            sys.exit(super().main(*arguments, **{**options, "standalone_mode": False}))
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "kanalony"
            click.echo(f"Error: {error.format_message()} (see {where} --help)", err=True)
            sys.exit(2)
        except click.Abort:
            sys.exit(130)  # Ctrl-C

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the flow


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Collect events from video players and read them back.

    \b
    kanalony serve                                    start collecting
    curl "http://127.0.0.1:8000/collect?eventType=3"  send an event
    kanalony cat                                      see it
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


def _existing(data: Path | None, settings: Settings | None = None) -> DataDirectory:
    """The data directory to read: the one named, or that of `kanalony serve` started here."""
    return DataDirectory.existing(data or (settings or load_settings()).data)


def _example(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _setting(name: str, *, multiple: bool = False) -> Callable[[_F], _F]:
    """A flag for a setting: its meaning and default stand in Settings alone. What is wrong with a value is told there
    too.
    """
    field = Settings.model_fields[name]
    text = " ".join((field.description or "").split())
    flag = f"--{name.replace('_', '-')}"
    if field.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", default=None, help=f"{text}  [default: no]")
    default = to_text(field.get_default(call_default_factory=True, validated_data={}))
    default += ", may be given more than once" if multiple else ""
    return click.option(flag, metavar="VALUE", multiple=multiple, help=f"{text}  [default: {default}]")


@main.command(epilog=_example("kanalony serve", "kanalony serve --host 0.0.0.0 --workers 4 --data /var/lib/kanalony"))
@_setting("host")
@_setting("port")
@_setting("data")
@_setting("group")
@_setting("workers")
@_setting("server")
@_setting("ack")
@_setting("trusted_proxy", multiple=True)
@_setting("spool", multiple=True)
@_setting("path", multiple=True)
@_setting("max_body")
@_setting("allow_origin", multiple=True)
@_setting("shed_views")
@_setting("anonymize_ip")
@_setting("redact", multiple=True)
@_setting("heartbeat")
@_setting("journal_blocks")
@CONFIG
def serve(config: Path | None, **flags: Any) -> None:
    """Collect events over HTTP until stopped by SIGTERM or Ctrl-C.

    Every option, and more, can stand in kanalony.toml (port = 8000) or in the environment (KANALONY_PORT=8000); flags
    win.
    """
    from kanalony.collector.server import serve

    serve(SettingsReader(config, **flags))


@main.command(
    epilog=_example(
        "kanalony simulate", "kanalony simulate --events 1000000 --viewers 5000 --rate 2000 --acked acked.txt"
    )
)
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The collector.")
@click.option("--viewers", type=click.IntRange(1), default=100, show_default=True, help="People watching at a time.")
@click.option("--events", type=click.IntRange(1), default=10_000, show_default=True, help="Events to send.")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Events per second.  [default: as fast as answers come]",
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed sends the same events.")
@click.option(
    "--acked",
    type=click.File("w", lazy=False),
    help="Write the key of every event whose 200 arrived: sessionId eventIndex.",
)
def simulate(url: str, viewers: int, events: int, rate: float | None, seed: int, acked: IO[str] | None) -> None:
    """Send what a number of viewers would.

    Sessions with impressions, plays, a view every ten seconds, quartiles, pauses, seeks and errors; a few popular and
    many rare videos. Like players it never retries; exits with 1 when an event was lost.
    """
    from kanalony.simulate.client import run

    with click.progressbar(length=events, label="events", file=sys.stderr) as bar:
        result = run(
            url,
            viewers=viewers,
            events=events,
            rate=rate,
            seed=seed,
            acked=acked,
            progress=bar.update,
        )
    click.echo(str(result))
    sys.exit(1 if result.lost else 0)


@main.command(epilog=_example("kanalony cat", "kanalony cat data/segments/sealed/*.lz4 | jq -r .params.eventType"))
@PATHS
@DATA
def cat(paths: tuple[Path, ...], data: Path | None) -> None:
    """Print events as NDJSON, one object a line.

    Without PATHS: every event in the data directory that was acknowledged before the call, once, also while it is being
    written. With PATHS: the events of these segments and journals. Exits with 1 when a file is damaged; what is good in
    it is printed all the same.
    """
    from kanalony.segments.check import requests_of
    from kanalony.segments.reader import Damage, read_data

    damaged: list[Damage] = []
    source = requests_of(paths, damaged.append) if paths else read_data(_existing(data), damaged.append)
    write = sys.stdout.write
    for request in source:
        for event in _event_objects(request):
            write(json.dumps(event))
            write("\n")
    sys.stdout.flush()
    _end(damaged)


def _event_objects(request: Any) -> Iterator[dict[str, Any]]:
    """The events of a request, for JSON. A batch's body stands with its first event only: it would come as many times
    as it has events.
    """
    from kanalony.bodies import read_events

    fields = _field_objects(request, request.body or b"")
    for index, parameters in enumerate(read_events(request).parameters):
        if index == 1:
            fields = _field_objects(request, None)
        yield {
            "received_at": to_iso(request.received_at),
            **fields,
            "worker": worker_name(request.worker_id),
            "sequence": request.sequence,
            "index": index,
            "params": _gather(parameters),
        }


# The order in `cat`. Other fields follow in the order of FIELD_NAMES.
_FIRST_FIELDS = ("method", "path", "query", "body", "content_type", "content_encoding", "remote_addr", "address_token")


def _field_objects(request: Any, body: bytes | None) -> dict[str, Any]:
    """Returns the fields of a request, with this body, by name for JSON."""
    from kanalony.core.frames import FIELD_NAMES

    objects: dict[str, Any] = {}
    for name in dict.fromkeys((*_FIRST_FIELDS, *FIELD_NAMES)):
        value = getattr(request, name)
        if name == "remote_addr":
            objects[name] = request.address
        elif name == "address_token":
            objects |= {name: value.hex()} if value else {}
        elif name == "query":
            objects |= _text(name, value or b"")
        else:
            objects |= _text(name, body if name == "body" else value)
    return objects


def _gather(parameters: Any) -> dict[str, Any]:
    """Parameters by name, in order; a repeated name has a list."""
    gathered: dict[str, list[str]] = {}
    for name, value in parameters:
        gathered.setdefault(name.decode(errors="replace"), []).append(value.decode(errors="replace"))
    return {name: values if len(values) > 1 else values[0] for name, values in gathered.items()}


def _text(name: str, value: bytes | None) -> dict[str, str | None]:
    """A part of an event for JSON, so that its bytes can be had back: as text when it is UTF-8, else in base64 under
    another name.
    """
    try:
        return {name: None if value is None else value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(value or b"").decode()}


def _end(damaged: list[Any]) -> None:
    for damage in damaged:
        click.echo(f"damage: {damage}", err=True)
    sys.exit(1 if damaged else 0)


@main.command(epilog=_example("kanalony verify", "kanalony verify data/segments/sealed/*.lz4 && echo sound"))
@PATHS
@DATA
def verify(paths: tuple[Path, ...], data: Path | None) -> None:
    """Check every byte of segments and journals.

    Lengths, checksums, order and sums. Without PATHS: everything in the data directory. Exits with 0 when all is sound,
    with 1 when there is damage, each place named.
    """
    from kanalony.segments.check import check_data, check_paths

    result = check_paths(paths) if paths else check_data(_existing(data))
    click.echo(str(result))
    _end(result.damaged)


@main.command(
    cls=_LakeCommand,
    epilog=_example("kanalony compact", "kanalony compact --every 60s --keep-segments 12h --geoip GeoLite2-City.mmdb"),
)
@DATA
@click.option("--every", metavar="TIME", help="Go on, and look for new segments that often, as 60s.  [default: once]")
@_setting("memory")
@_setting("keep_segments")
@_setting("keep_ten_seconds")
@_setting("keep_minutes")
@_setting("keep_hours")
@_setting("geoip")
@_setting("ks_secrets")
@CONFIG
def compact(data: Path | None, every: str | None, config: Path | None, **flags: Any) -> None:
    """Take sealed segments into the lake, exactly once.

    The lake is a Delta table of Parquet files in DATA/lake/events. May be stopped or killed at any time: the next run
    goes on where this one was. Exits with 1 when a segment was damaged; what is good in it is in the lake, what is not
    is in DATA/quarantine.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads that nobody needs
    from kanalony.aggregate.run import compact

    settings = load_settings(config, **flags)
    directory = DataDirectory.writable(_existing(data, settings).root)
    damaged = compact(directory, settings, _interval(every), sys.stderr)
    _end(damaged)


def _interval(every: str | None) -> float | None:
    try:
        interval = None if every is None else seconds(every)
    except ValueError as error:
        raise WrongUse(f"--every is {every!r}: {error}", "see kanalony compact --help") from error
    assert interval is None or isinstance(interval, float)
    if interval is not None and not 0 < interval < 1e7:
        raise WrongUse(f"--every is {every!r}: must be more than nothing, and not for ever", "name a time like 60s")
    return interval


@main.command(cls=_LakeCommand, epilog=_example("kanalony ledger", "kanalony ledger --format json | jq .balanced"))
@DATA
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def ledger(data: Path | None, form: str) -> None:
    """Show what became of every request.

    accepted = read + repeated + quarantined, events = rows + duplicates, for each segment that was compacted and in
    sum; the rows are counted in the lake's files. Exits with 1 when that does not balance, or when requests that a
    collector accepted are nowhere.
    """
    from kanalony.aggregate.ledger import read_ledger
    from kanalony.aggregate.run import ledger_json, ledger_table

    found = read_ledger(_existing(data))
    click.echo(ledger_json(found) if form == "json" else ledger_table(found))
    sys.exit(0 if found.balanced else 1)


@main.command(
    cls=_LakeCommand,
    epilog=_example(
        "kanalony report --metrics play,playRatio --dimensions entry --from -7d --limit 10",
        "kanalony report --metrics view,peakView --dimensions hour --from today --timezone Europe/Paris --chart",
        "kanalony report --metrics minutesWatched --from 2026-06 --to 2026-06 --filter partner=585231 --format csv",
    ),
)
@click.option(
    "--metrics", required=True, metavar="NAMES", help="What to show, parted by commas; a number is a type of event."
)
@click.option("--dimensions", default="", metavar="NAMES", help="What to group by, parted by commas.")
@click.option(
    "--from", "start", metavar="TIME", help="-24h, today, 2026-06, 2026-06-01, 2026-06-01T13:00.  [default: all]"
)
@click.option("--to", "end", metavar="TIME", help="The same; a day or month is included, to its end.  [default: all]")
@click.option("--filter", "filters", multiple=True, metavar="NAME=VALUE", help="Only those; again for other values.")
@click.option("--order", default="", metavar="NAMES", help="What to sort by, parted by commas; -play: the most first.")
@click.option("--limit", type=click.IntRange(1), help="Rows to show.  [default: all]")
@click.option("--page", type=click.IntRange(1), default=1, show_default=True, help="Which of pages of --limit rows.")
@click.option("--timezone", default="UTC", show_default=True, help="Whose hours and days, as Europe/Paris.")
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json", "parquet"]), default="table", show_default=True
)
@click.option("--chart", is_flag=True, help="Draw the first metric.")
@DATA
@CONFIG
def report(form: str, chart: bool, data: Path | None, config: Path | None, **asked: Any) -> None:
    """Answer from the events in the lake.

    Any metrics by any dimensions: their names stand in docs/reports.md, and in what is said about a wrong one. A
    report without rows says why, and exits with 0.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads that nobody needs
    from kanalony.aggregate.waiting import Waiting
    from kanalony.reports.query import Reports
    from kanalony.reports.request import read_command
    from kanalony.reports.table import as_chart, as_csv, as_json, as_parquet, as_table, explain_nothing
    from kanalony.reports.vocabulary import Vocabulary

    settings = load_settings(config)
    directory = _existing(data, settings)
    query = read_command(**asked)
    if chart and form != "table":
        raise WrongUse(f"--chart draws, and --format {form} does not", "leave one out")
    if form == "parquet" and sys.stdout.isatty():
        raise WrongUse("Parquet is not for terminals", "write it to a file: > report.parquet")
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
        sys.stdout.write(text)  # click would take out what looks like colours
        sys.stdout.flush()


@main.command(
    cls=_LakeCommand,
    epilog=_example("kanalony dashboard", "kanalony dashboard --host 0.0.0.0 --api-key 585231=SECRET_KEY"),
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="Port; 0 takes a free one."
)
@_setting("api_key", multiple=True)
@DATA
@CONFIG
def dashboard(host: str, port: int, data: Path | None, config: Path | None, **flags: Any) -> None:
    """Serve a page of reports, and the query action.

    The page is at /, the action at /api_v3/index.php?service=analytics&action=query. Both show what is in the lake:
    keep `kanalony compact --every 60s` running beside it.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from kanalony.reports.api import serve
    from kanalony.reports.vocabulary import Vocabulary

    settings = load_settings(config, **flags)
    directory = _existing(data, settings)
    serve(directory, Vocabulary(settings.custom_events, settings.custom_dimensions), host, port, settings.api_key)


@main.command(epilog=_example("kanalony recover", "kanalony recover --data /mnt/old-machine/kanalony"))
@DATA
def recover(data: Path | None) -> None:
    """Seal what crashed workers left behind.

    Adopts their journals and open segments. A collector does this by itself whenever a worker starts; this is for data
    directories that no collector will use again. Exits with 1 when something was damaged; it is copied to quarantine.
    """
    from kanalony.segments.journal import is_in_use
    from kanalony.segments.recovery import adopt_journals

    directory = DataDirectory.writable(_existing(data).root)
    damaged = []
    count = 0
    for adopted in adopt_journals(directory):
        click.echo(str(adopted))
        damaged += adopted.damaged
        count += 1
    in_use = sum(is_in_use(path) for path in directory.journals())
    click.echo(f"{count} dead workers adopted, {in_use} journals in use by running workers")
    sys.exit(1 if damaged else 0)
