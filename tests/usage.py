"""Usage errors of the command line."""

import io
import subprocess
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from kanalony.cli import main


def call(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Runs a command in this process, for commands that end before they do anything. Returns what a process would."""
    streams = [io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2)]
    with chdir(cwd), redirect_stdout(streams[0]), redirect_stderr(streams[1]), pytest.raises(SystemExit) as caught:
        main(arguments, prog_name="kanalony")
    stdout, stderr = (stream.buffer.getvalue().decode() for stream in streams)
    return subprocess.CompletedProcess(arguments, int(caught.value.code or 0), stdout, stderr)


def assert_usage_error(done: "subprocess.CompletedProcess[str]", *texts: str) -> None:
    """Asserts exit code 2, and one line on stderr that holds the texts."""
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    for text in texts:
        assert text in done.stderr
