"""Commands run in this process: several times faster than a process of their own, with the same output."""

import subprocess
from contextlib import chdir
from pathlib import Path

from click.testing import CliRunner

from kanalony.cli import main


def invoke(*arguments: str | Path, cwd: Path) -> "subprocess.CompletedProcess[bytes]":
    """Runs a kanalony command with output in bytes, as `harness.server.run` does in a process of its own."""
    with chdir(cwd):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout_bytes, result.stderr_bytes)


def invoke_text(*arguments: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Runs a kanalony command with output as text."""
    done = invoke(*arguments, cwd=cwd)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
