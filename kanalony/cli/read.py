"""The commands `kanalony cat`, `verify` and `recover`, which read what the collector has stored."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kanalony.cli.command import Command, examples, exit_with
from kanalony.cli.options import DATA, PATHS, existing_data
from kanalony.segments.directory import MARKER, DataDirectory

if TYPE_CHECKING:
    from kanalony.segments.check import Check
    from kanalony.segments.damage import Damage
    from kanalony.segments.reader import Request


def _sources(paths: tuple[Path, ...], data: Path | None) -> Iterator[DataDirectory | list[Path]]:
    """Yields what to read: data directories, also those among the paths, and lists of other paths, in their order."""
    if not paths:
        yield existing_data(data)
    for is_data, group in groupby(paths, lambda path: (path / MARKER).exists()):
        if is_data:
            yield from map(DataDirectory.existing, group)
        else:
            yield list(group)


@click.command(
    cls=Command, epilog=examples("kanalony cat", "kanalony cat data/segments/sealed/*.lz4 | jq -r .params.eventType")
)
@PATHS
@DATA
def cat(paths: tuple[Path, ...], data: Path | None) -> None:
    """Print events as NDJSON, one object a line.

    Without PATHS: every event in the data directory that was acknowledged before the call, once, also while the
    collector writes. With PATHS: the events of these segments, journals and directories; a data directory is read as
    with --data. Exits with 1 when a file is damaged, after printing all events that are not.
    """
    from kanalony.cli.ndjson import event_objects

    damaged: list[Damage] = []
    write = sys.stdout.write
    for source in _sources(paths, data):
        for request in _requests(source, damaged.append):
            for event in event_objects(request):
                write(json.dumps(event))
                write("\n")
    sys.stdout.flush()
    exit_with(damaged)


def _requests(source: DataDirectory | list[Path], on_damage: "Callable[[Damage], object]") -> "Iterable[Request]":
    from kanalony.segments.requests import read_data, read_files

    return read_data(source, on_damage) if isinstance(source, DataDirectory) else read_files(source, on_damage)


@click.command(
    cls=Command, epilog=examples("kanalony verify", "kanalony verify data/segments/sealed/*.lz4 && echo sound")
)
@PATHS
@DATA
def verify(paths: tuple[Path, ...], data: Path | None) -> None:
    """Check every byte of segments and journals.

    Lengths, checksums, order and sums must be right. Without PATHS: everything in the data directory. With PATHS: these
    segments, journals and directories; a data directory is read as with --data. Exits with 0 when all is sound, and
    with 1 when there is damage, after naming each place.
    """
    from kanalony.segments.check import check_data, check_paths

    checks = [
        check_data(source) if isinstance(source, DataDirectory) else check_paths(source)
        for source in _sources(paths, data)
    ]
    result = _sum(checks)
    click.echo(str(result))
    exit_with(result.damaged)


def _sum(checks: "list[Check]") -> "Check":
    result = checks[0]
    for check in checks[1:]:
        for field in fields(check):
            setattr(result, field.name, getattr(result, field.name) + getattr(check, field.name))
    return result


@click.command(cls=Command, epilog=examples("kanalony recover", "kanalony recover --data /mnt/old-machine/kanalony"))
@DATA
def recover(data: Path | None) -> None:
    """Seal what crashed workers left behind.

    Adopts their journals and open segments. A collector does so by itself whenever a worker starts; this command is for
    data directories that no collector will use again. Exits with 1 when something was damaged; damaged bytes are copied
    to quarantine.
    """
    from kanalony.segments.journal import is_in_use
    from kanalony.segments.recovery import adopt_journals

    directory = DataDirectory.writable(existing_data(data).root)
    damaged = []
    count = 0
    for adopted in adopt_journals(directory):
        click.echo(str(adopted))
        damaged += adopted.damaged
        count += 1
    in_use = sum(is_in_use(path) for path in directory.journals())
    click.echo(f"{count} dead workers adopted, {in_use} journals in use by running workers")
    sys.exit(1 if damaged else 0)
