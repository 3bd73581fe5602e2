"""python -m benchmarks: the catalogue, or one of it."""

import sys
from pathlib import Path

import click

from benchmarks import abuse as abuse_benchmark
from benchmarks import append as append_benchmark
from benchmarks import compact as compact_benchmark
from benchmarks import environment, faults
from benchmarks import report as report_benchmark

DIRECTORY = click.option(
    "--directory", type=click.Path(path_type=Path, file_okay=False, exists=True), help="Disk to work on."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure kanalony. Every benchmark checks what it did: a figure with an event missing is an error instead."""


@main.command()
@click.option("--events", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="How many to append.")
@DIRECTORY
def append(events: int, directory: Path | None) -> None:
    """Time per event from the HTTP server's hands to the disk's."""
    click.echo(environment.header())
    click.echo(append_benchmark.CAVEATS)
    click.echo(append_benchmark.measure(events, directory))


def _tell(outcome: faults.Outcome) -> None:
    click.echo(environment.header())
    click.echo("\n".join(outcome.lines))
    missed = [*outcome.missed, *outcome.slow]
    click.echo("aims missed: " + ", ".join(missed) if missed else "all aims reached")
    sys.exit(1 if outcome.missed else 0)


@main.command()
@click.option("--rounds", type=click.IntRange(1), default=50, show_default=True)
@DIRECTORY
def crash(rounds: int, directory: Path | None) -> None:
    """kill -9 of everything under load: what was acknowledged must be there, once."""
    _tell(faults.crash(rounds, directory))


@main.command()
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
@DIRECTORY
def restart(rounds: int, directory: Path | None) -> None:
    """SIGHUP and SIGTERM under load: nothing acknowledged lost, and no error seen during a reload."""
    _tell(faults.restart(rounds, directory))


@main.command()
def disk() -> None:
    """A 16 MB tmpfs filled, emptied and filled again under load (as root)."""
    _tell(faults.full_disk())


@main.command()
@click.option("--seconds", type=click.IntRange(5), default=300, show_default=True)
@DIRECTORY
def soak(seconds: int, directory: Path | None) -> None:
    """Half of the most that comes through, for a while: memory, file descriptors, latency."""
    _tell(faults.soak(seconds, directory))


@main.command()
@click.option("--mutated", type=click.IntRange(1), default=20_000, show_default=True, help="Mutated requests to send.")
def abuse(mutated: int) -> None:
    """Hostile clients against meinheld alone, granian, and nginx in front: what each withstands."""
    outcome = faults.Outcome()
    attacks = {**abuse_benchmark.ATTACKS, "mutated requests": abuse_benchmark.mutated(mutated)}
    for way in abuse_benchmark.WAYS:
        verdicts, acknowledged, missing = abuse_benchmark.run_attacks(way, attacks)
        outcome.lines += [f"{way:<10}{verdict.attack:<40}{verdict}" for verdict in verdicts]
        outcome.figure(f"{way}: acknowledged, honest", acknowledged)
        outcome.figure(f"{way}: acknowledged but missing", missing, 0)
    _tell(outcome)


@main.command()
@click.option("--events", type=click.IntRange(1000), default=1_000_000, show_default=True)
@click.option("--memory", default="1GiB", show_default=True, help="What `kanalony compact` may take.")
@DIRECTORY
def compact(events: int, memory: str, directory: Path | None) -> None:
    """Segments to columns, and all the way into the lake: time per event, memory."""
    click.echo(compact_benchmark.CAVEATS)
    outcome = faults.Outcome()
    compact_benchmark.measure(outcome, events, memory, directory)
    _tell(outcome)


@main.command()
@click.option("--events", type=click.IntRange(1000), default=1_000_000, show_default=True)
@DIRECTORY
def report(events: int, directory: Path | None) -> None:
    """Typical questions to rollups and events: how long each takes."""
    click.echo(report_benchmark.CAVEATS)
    outcome = faults.Outcome()
    report_benchmark.measure(outcome, events, directory)
    _tell(outcome)


@main.command()
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True)
@DIRECTORY
def compact_crash(rounds: int, directory: Path | None) -> None:
    """kill -9 of `kanalony compact` at random moments: every event is in the lake, once, and the ledger balances."""
    _tell(compact_benchmark.crash(rounds, directory))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
