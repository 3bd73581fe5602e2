"""The command line: one command, sub-commands in the order of the data flow.

Exit codes: 0 done; 1 done, and something is wrong with the data; 2 usage error or unusable machine, reported in one
line. Sub-commands import what they run when they run: `kanalony --help` loads neither servers nor analytics libraries.
"""

import logging

import click

from kanalony import __version__
from kanalony.cli import lake, read, reports, serve, simulate
from kanalony.cli.command import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Collect events from video players and read them back.

    \b
    kanalony serve                                    start collecting
    curl "http://127.0.0.1:8000/collect?eventType=3"  send an event
    kanalony cat                                      see it
    """  # noqa: D301 (click needs the character \b, which keeps it from filling the lines)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


for _command in (
    serve.serve,
    simulate.simulate,
    read.cat,
    read.verify,
    lake.compact,
    lake.ledger,
    reports.report,
    reports.dashboard,
    read.recover,
):
    main.add_command(_command)
