"""What all commands have in common: errors in one line with their remedy, exit codes, examples below the help."""

import os
import sys
from collections.abc import Iterable
from typing import Any

import click

from kanalony.errors import KanalonyError


class Command(click.Command):
    """A command that ends quietly, with 0, when the reader of its output has seen enough (`kanalony cat | head`)."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            sys.stdout = None  # buffered output has nowhere to go
            ctx.exit(0)


class LakeCommand(Command):
    """A command that needs the libraries of the extra [lake], and names the extra when they are missing."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads that nothing here uses
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            click.echo(
                f"Error: {ctx.command_path} needs {error.name}, not installed here (pip install 'kanalony[lake]')",
                err=True,
            )
            ctx.exit(2)


class Group(click.Group):
    """The command with the sub-commands. Every error ends as one line on stderr and exit code 2."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Runs a command line and exits."""
        try:
            sys.exit(super().main(*arguments, **{**options, "standalone_mode": False}))
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "kanalony"
            click.echo(f"Error: {error.format_message()} (see {where} --help)", err=True)
        except click.Abort:
            sys.exit(130)  # Ctrl-C
        except (KanalonyError, OSError) as error:
            hint = getattr(error, "hint", "")
            click.echo(f"Error: {error}" + (f" ({hint})" if hint else ""), err=True)
            _drop_output()
        sys.exit(2)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the sub-commands in the order of the data flow."""
        return list(self.commands)


def _drop_output() -> None:
    """Drops buffered output if it cannot be written: Python would try again at exit, and report it in several lines."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = None


def examples(*lines: str) -> str:
    """Formats examples for the end of a help text; the backspace keeps click from filling the lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def exit_with(damaged: Iterable[object]) -> None:
    """Exits with 1 when there is damage, each place on a line of stderr, and with 0 otherwise."""
    status = 0
    for damage in damaged:
        click.echo(f"damage: {damage}", err=True)
        status = 1
    sys.exit(status)
