"""`python -m benchmarks`: the catalogue of benchmarks, and the command that runs each."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from typing import Any

import click

from benchmarks import abuse as abuse_benchmark
from benchmarks import append as append_benchmark
from benchmarks import compact as compact_benchmark
from benchmarks import connections as connections_benchmark
from benchmarks import environment, faults
from benchmarks import ingest as ingest_benchmark
from benchmarks import redact as redact_benchmark
from benchmarks import replay as replay_benchmark
from benchmarks import report as report_benchmark
from benchmarks import segments as segments_benchmark
from benchmarks.attacks import ATTACKS
from benchmarks.outcome import Outcome

CHARTS = (".png", ".svg", ".pdf")
DIRECTORY = click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False, exists=True, writable=True),
    help="Directory, and so disk, to work on.",
)


def _writable(_: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Rejects a file that cannot be written, before anything is measured."""
    if path and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise click.BadParameter(f"{path.parent} is no writable directory")
    if path and parameter.name == "chart_file" and path.suffix not in CHARTS:
        raise click.BadParameter(f"name a file that ends in {', '.join(CHARTS)}")
    return path


_FILE: dict[str, Any] = {"type": click.Path(path_type=Path, dir_okay=False), "callback": _writable}


def rounds(default: int) -> Callable[..., Any]:
    """Returns the option `--rounds`."""
    return click.option("--rounds", type=click.IntRange(1), default=default, show_default=True)


def sizes(*default: int) -> Callable[..., Any]:
    """Returns the option `--events`, which may be repeated."""
    return click.option(
        "--events",
        type=click.IntRange(1000),
        multiple=True,
        default=default,
        show_default=True,
        help="May be repeated.",
    )


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 130}, invoke_without_command=True
)
@click.pass_context
def main(context: click.Context) -> None:
    """Measure kanalony. Every benchmark checks its own work: when an event is missing, it prints an error, no figure.

    Exit status: 0, or 1 when something was lost or could not be measured. An aim of speed or size that is missed is
    printed and does not change the exit status.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def benchmark(caveats: str = "", *, chart: str = "") -> Callable[[Callable[..., Outcome]], click.Command]:
    """Makes a command of a function that measures.

    The command prints the machine, the caveats and the results, and writes them as JSON or a chart on request.

    Args:
        caveats: Reasons to distrust the figures, printed above them.
        chart: The quantity that `--chart` draws. Empty: the command has no such option.
    """

    def decorate(function: Callable[..., Outcome]) -> click.Command:
        def command(json_file: Path | None, chart_file: Path | None = None, **options: Any) -> None:
            surroundings = environment.header()
            click.echo(surroundings)
            if caveats:
                click.echo(caveats)
            try:
                outcome = function(**options)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                raise click.ClickException(str(error)) from error
            click.echo(f"\n{outcome}")
            missed = [*outcome.missed, *outcome.slow]
            if outcome.aims:
                click.echo("aims missed: " + ", ".join(missed) if missed else "all aims reached")
            ran = _command()
            if json_file:
                header = {"command": ran, "environment": surroundings, "caveats": caveats}
                json_file.write_text(outcome.to_json(**header), encoding="utf-8")
            if chart_file:
                title = (function.__doc__ or "").split(":")[0].rstrip(".")
                outcome.draw(chart_file, chart, title, ran + "\n" + surroundings)
            sys.exit(1 if outcome.missed else 0)

        update_wrapper(command, function)
        if chart:
            option = click.option(
                "--chart", "chart_file", help="Draw the medians to this PNG, SVG or PDF file.", **_FILE
            )
            command = option(command)
        option = click.option("--json", "json_file", help="Write every value of every round to this file.", **_FILE)
        name = function.__name__.rstrip("_").replace("_", "-")
        return main.command(name)(option(command))

    return decorate


def _command() -> str:
    """Returns the command that repeats this run, without the files that results were written to."""
    words = sys.argv[1:]
    for option in ("--json", "--chart"):
        if option in words:
            place = words.index(option)
            del words[place : place + 2]
    return shlex.join(["python", "-m", "benchmarks", *words])


@benchmark(ingest_benchmark.CAVEATS, chart="CPU")
@rounds(7)
@click.option(
    "--seconds", type=click.IntRange(1, 20), default=3, show_default=True, help="Seconds of load in each round."
)
@DIRECTORY
def ingest(rounds: int, seconds: int, directory: Path | None) -> Outcome:
    """Cost of one GET: kanalony beside bare meinheld, nginx, Node, FastAPI, Flask."""
    return ingest_benchmark.measure(rounds, seconds, directory)


@benchmark(append_benchmark.CAVEATS, chart="append")
@click.option("--events", type=click.IntRange(1000), default=1_000_000, show_default=True)
@click.option(
    "--instructions/--no-instructions", default=True, help="Count instructions with callgrind.  [default: yes]"
)
@DIRECTORY
def append(events: int, instructions: bool, directory: Path | None) -> Outcome:
    """Cost of storing one event, by query length: from the HTTP server to the disk."""
    return append_benchmark.measure(events, directory, instructions=instructions)


@benchmark(replay_benchmark.CAVEATS, chart="CPU")
@rounds(5)
@click.option(
    "--events", type=click.IntRange(10_000), default=400_000, show_default=True, help="Most events for each size."
)
@DIRECTORY
def replay(rounds: int, events: int, directory: Path | None) -> Outcome:
    """Cost of an event in a POST of 1, 10, 100 and 1000: beside nginx."""
    return replay_benchmark.measure(rounds, events, directory)


@benchmark(segments_benchmark.CAVEATS, chart="size")
@rounds(3)
@click.option("--events", type=click.IntRange(1000), default=400_000, show_default=True)
@DIRECTORY
def segments(rounds: int, events: int, directory: Path | None) -> Outcome:
    """Size and time of segment files and the lake: beside NDJSON with gzip and zstd, and Parquet."""
    return segments_benchmark.measure(events, rounds, directory)


@benchmark(compact_benchmark.CAVEATS, chart="to the lake")
@sizes(1_000_000, 4_000_000, 16_000_000)
@rounds(3)
@click.option("--memory", default="1GiB", show_default=True, help="Memory limit of `kanalony compact`.")
@DIRECTORY
def compact(events: tuple[int, ...], rounds: int, memory: str, directory: Path | None) -> Outcome:
    """Cost of segments to lake, by stage: beside DuckDB and a plain loop on nginx's log."""
    return compact_benchmark.measure(events, rounds, memory, directory)


@benchmark(report_benchmark.CAVEATS)
@sizes(1_000_000, 10_000_000, 50_000_000)
@DIRECTORY
def report(events: tuple[int, ...], directory: Path | None) -> Outcome:
    """Time of typical reports: from rollups, from events, and from DuckDB on nginx's log."""
    return report_benchmark.measure(events, directory)


@benchmark(connections_benchmark.CAVEATS, chart="CPU")
@click.option("--connections", type=click.IntRange(1), default=10_000, show_default=True)
@rounds(3)
@click.option(
    "--seconds", type=click.IntRange(1, 20), default=3, show_default=True, help="Seconds of load in each round."
)
@DIRECTORY
def connections(connections: int, rounds: int, seconds: int, directory: Path | None) -> Outcome:
    """Cost of idle connections: memory, CPU, and the latency of active ones."""
    return connections_benchmark.measure(connections, rounds, seconds, directory)


@benchmark()
@rounds(50)
@DIRECTORY
def crash(rounds: int, directory: Path | None) -> Outcome:
    """Kill -9 of every process under load: each acknowledged event must be stored once."""
    return faults.crash(rounds, directory)


@benchmark()
@rounds(20)
@DIRECTORY
def restart(rounds: int, directory: Path | None) -> Outcome:
    """SIGHUP and SIGTERM under load: no acknowledged event lost, no error during a reload."""
    return faults.restart(rounds, directory)


@benchmark()
def disk() -> Outcome:
    """A 16 MB tmpfs filled, emptied and filled again under load (needs root)."""
    return faults.full_disk()


@benchmark()
@click.option("--seconds", type=click.IntRange(5), default=300, show_default=True)
@DIRECTORY
def soak(seconds: int, directory: Path | None) -> Outcome:
    """Half of the maximum load over time: memory, file descriptors, latency."""
    return faults.soak(seconds, directory)


@benchmark()
@click.option(
    "--attack",
    type=click.Choice(list(ATTACKS)),
    multiple=True,
    help="Run this attack only; may be repeated.",
)
def abuse(attack: tuple[str, ...]) -> Outcome:
    """Hostile clients among honest ones: meinheld, granian, and nginx in front (ten minutes)."""
    return abuse_benchmark.measure(attack or tuple(ATTACKS))


@benchmark(redact_benchmark.CAVEATS)
@rounds(5)
def redact(rounds: int) -> Outcome:
    """Cost of one body with --redact: hostile bodies beside honest ones."""
    return redact_benchmark.measure(rounds)


@benchmark()
@rounds(30)
@DIRECTORY
def compact_crash(rounds: int, directory: Path | None) -> Outcome:
    """Kill -9 of `kanalony compact` at random moments: every event in the lake once, the ledger balanced."""
    return compact_benchmark.crash(rounds, directory)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
