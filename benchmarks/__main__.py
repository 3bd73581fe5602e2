"""python -m benchmarks: the catalogue, or one of it."""

from pathlib import Path

import click

from benchmarks import append as append_benchmark
from benchmarks import environment


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure kanalony. Every benchmark checks what it did: a figure with an event missing is an error instead."""


@main.command()
@click.option("--events", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="How many to append.")
@click.option("--directory", type=click.Path(path_type=Path, file_okay=False, exists=True), help="Disk to measure on.")
def append(events: int, directory: Path | None) -> None:
    """Time per event from the HTTP server's hands to the disk's."""
    click.echo(environment.header())
    click.echo(append_benchmark.CAVEATS)
    click.echo(append_benchmark.measure(events, directory))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
