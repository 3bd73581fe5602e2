"""The commands `kanalony compact` and `kanalony ledger`: segments to the lake, and the account of it."""

import sys
from pathlib import Path
from typing import Any

import click

from kanalony.cli.command import LakeCommand, examples, exit_with
from kanalony.cli.options import CONFIG, DATA, existing_data, setting
from kanalony.errors import UsageError
from kanalony.segments.directory import DataDirectory
from kanalony.settings.compaction import CompactSettings
from kanalony.settings.loading import load_settings
from kanalony.settings.shared import seconds


@click.command(
    cls=LakeCommand,
    epilog=examples("kanalony compact", "kanalony compact --every 60s --keep-segments 12h --geoip GeoLite2-City.mmdb"),
)
@DATA
@click.option(
    "--every", metavar="TIME", help="Time between runs, such as 60s; repeats until stopped.  [default: one run]"
)
@setting(CompactSettings, "memory")
@setting(CompactSettings, "keep_segments")
@setting(CompactSettings, "keep_ten_seconds")
@setting(CompactSettings, "keep_minutes")
@setting(CompactSettings, "keep_hours")
@setting(CompactSettings, "geoip")
@setting(CompactSettings, "ks_secrets")
@CONFIG
def compact(data: Path | None, every: str | None, config: Path | None, **flags: Any) -> None:
    """Move the events of sealed segments to the lake, exactly once.

    The lake is a Delta table of Parquet files in DATA/lake/events. The command may be stopped or killed at any time:
    the next run continues where this one ended. Exits with 1 when a segment was damaged: sound requests are in the
    lake, damaged bytes in DATA/quarantine.
    """
    from kanalony.aggregate.loop import compact
    from kanalony.cli.progress import show_requests

    settings = load_settings(CompactSettings, config, **flags)
    directory = DataDirectory.writable(existing_data(data, settings).root)
    exit_with(compact(directory, settings, _interval(every), show_requests))


def _interval(every: str | None) -> float | None:
    """Reads the value of --every, in seconds."""
    try:
        interval = None if every is None else seconds(every)
    except ValueError as error:
        raise UsageError(f"--every is {every!r}: {error}", "see kanalony compact --help") from error
    assert interval is None or isinstance(interval, float)
    if interval is not None and not 0 < interval < 1e7:
        raise UsageError(f"--every is {every!r}: must be more than 0 s and less than 115 days", "name a time like 60s")
    return interval


@click.command(cls=LakeCommand, epilog=examples("kanalony ledger", "kanalony ledger --format json | jq .balanced"))
@DATA
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Output format."
)
def ledger(data: Path | None, form: str) -> None:
    """Account for every request.

    For each compacted segment and in total: accepted = read + repeated + quarantined, and events = rows + duplicates.
    The rows are counted in the files of the lake. Exits with 1 when the ledger does not balance, or when requests are
    missing that a collector accepted.
    """
    from kanalony.aggregate.ledger import read_ledger
    from kanalony.cli.ledger_text import as_json, as_table

    found = read_ledger(existing_data(data))
    click.echo(as_json(found) if form == "json" else as_table(found))
    sys.exit(0 if found.balanced else 1)
