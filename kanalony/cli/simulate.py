"""The command `kanalony simulate`."""

import sys
from typing import IO

import click

from kanalony.cli.command import Command, examples


@click.command(
    cls=Command,
    epilog=examples(
        "kanalony simulate", "kanalony simulate --events 1000000 --viewers 5000 --rate 2000 --acked acked.txt"
    ),
)
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Address of the collector.")
@click.option(
    "--viewers", type=click.IntRange(1), default=100, show_default=True, help="Number of viewers at the same time."
)
@click.option("--events", type=click.IntRange(1), default=10_000, show_default=True, help="Number of events to send.")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Events per second.  [default: as fast as responses come]",
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed sends the same events.")
@click.option(
    "--acked",
    type=click.File("w", lazy=False),
    help="File for the keys of acknowledged events: sessionId eventIndex, one a line.",
)
def simulate(url: str, viewers: int, events: int, rate: float | None, seed: int, acked: IO[str] | None) -> None:
    """Send the events of simulated viewers.

    Sessions have impressions, plays, a view every ten seconds, quartiles, pauses, seeks and errors; a few videos are
    popular and many are rare. Like a player, the simulation never retries. Exits with 1 when an event was lost.
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
