"""Runs the console blocks of a page as its reader would, and compares what they print.

`python -m tests.consoles PAGE...` writes new output into pages, where commands print something else than is shown.
"""

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from harness.server import KANALONY, Server, serving, started

WAIT = 60.0
"""Seconds until a long-running command has logged its first line, or a command prints what the page shows."""

_SEALED = 2.0  # seconds after which what was sent is in a segment, whatever a command prints then

_NAMES = [
    (r"\d{4}-\d\d-\d\d[T ][\d:.,]+Z?", "TIME"),
    (r"\b\d{10}\b", "SECOND"),
    (r"\b[0-9a-f]{16}\b", "WORKER"),
    (r"curl/[\d.]+", "CURL"),
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
    (r"\d{8}T\d{6}\.\d{6}Z_\S+\.lz4", "SEGMENT"),
    (r"[\d,.]+ (?:m?s\b|\([\d,]+/s\))|\([\d,]+/s\)", "FIGURE"),
    (r"\b[\d,]+ frames", "FRAMES"),  # of events within half a second
    (r"[-─]{3,}", "---"),
    (r" +", " "),
]


_BLOCK = re.compile(r"^ *```console\n(.*?)^ *```", re.S | re.M)


def blocks(text: str) -> list[tuple[str, str]]:
    """Returns (command, output) of every `$` line in the console blocks of a page, in order."""
    return [entry for block in _BLOCK.findall(text) for entry in _entries(block)]


def _entries(block: str) -> list[tuple[str, str]]:
    entries = [part.partition("\n") for part in re.split(r"^ *\$ ", block, flags=re.M)[1:]]
    return [(command, output.strip("\n")) for command, _, output in entries]


def shape(output: str) -> str:
    """Returns output without what differs from run to run: times, ids, versions, figures."""
    for pattern, name in _NAMES:
        output = re.sub(pattern, name, output)
    return "\n".join(line.strip() for line in output.strip().splitlines())


class Terminal:
    """Runs commands in a directory of their own, against a collector and a dashboard that they start.

    `make serve` and `kanalony serve` start a collector in place of the one before, `kanalony dashboard` a dashboard;
    what they print is their first log line. The ports 8000 and 8001 stand for theirs. `kanalony compact` stops the
    collector first, as the pages say: then its segments are sealed.
    """

    def __init__(self, directory: Path, wait: float = WAIT) -> None:
        """Starts nothing yet.

        Args:
            directory: Where commands run, and the data directory is.
            wait: Seconds in which a command may come to print what the page shows.
        """
        self._directory = directory
        self._wait = wait
        self._server: Server | None = None
        self._collector = contextlib.ExitStack()
        self._dashboard = contextlib.ExitStack()
        self._dashboard_port = 8001

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._collector.close()
        self._dashboard.close()

    def run(self, command: str, expected: str) -> str:
        """Runs a command of a page.

        Args:
            command: The line behind `$ `.
            expected: What the page shows. A command that only reads is run again until it prints this, since what was
                sent is in a segment half a second later.

        Returns:
            What it printed to stdout, or else to stderr.
        """
        words = command.split()
        if words[:2] == ["make", "serve"] or words[1:2] == ["serve"]:
            return self._serve(words[2:])
        if words[1:2] == ["dashboard"]:
            return self._open_dashboard(words[2:])
        if words[1:2] == ["compact"] and self._server:
            self._server.stop()
        end = time.monotonic() + self._wait
        while True:
            output = self._shell(command)
            if shape(output) == shape(expected) or words[1:2] not in (["verify"], ["cat"]) or time.monotonic() > end:
                return output
            time.sleep(0.1)

    def _serve(self, options: list[str]) -> str:
        self._collector.close()
        data = self._directory / "data"
        log = data.with_suffix(".log")
        start = log.stat().st_size if log.exists() else 0
        self._server = self._collector.enter_context(serving(data, *options))
        self._collector.callback(self._server.stop)
        line = log.read_text()[start:].splitlines()[0]
        return line.replace(str(data), "data").replace(f":{self._server.port} ", ":8000 ")

    def _open_dashboard(self, options: list[str]) -> str:
        self._dashboard.close()
        log = self._directory / "dashboard.log"
        file = self._dashboard.enter_context(log.open("wb"))
        command = [*KANALONY, "dashboard", "--port", "0", *options]
        self._dashboard.enter_context(started(command, cwd=self._directory, stdout=file, stderr=file))
        end = time.monotonic() + WAIT
        while not (ready := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())):
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        self._dashboard_port = int(ready[1])
        return log.read_text().splitlines()[0].replace(ready[1], "8001")

    def _shell(self, command: str) -> str:
        """Runs a line in bash; its exit status may be any, as `ledger` and `verify` have several."""
        if self._server:
            command = command.replace("127.0.0.1:8000", f"127.0.0.1:{self._server.port}")
            if "simulate" in command:
                command += f" --url http://127.0.0.1:{self._server.port}"
        command = command.replace("127.0.0.1:8001", f"127.0.0.1:{self._dashboard_port}")
        programs = {".venv/bin/kanalony": " ".join(KANALONY), ".venv/bin/python": sys.executable}
        command = re.sub(r"\.venv/bin/\w+", lambda match: programs[match[0]], command)
        done = subprocess.run(
            ["bash", "-c", command], cwd=self._directory, capture_output=True, text=True, timeout=120, check=False
        )
        return done.stdout or done.stderr


def transcript(text: str, directory: Path) -> Iterator[tuple[str, str, str]]:
    """Runs all console blocks of a page in order: the command, what the page shows, what was printed."""
    with Terminal(directory) as terminal:
        for command, shown in blocks(text):
            yield command, shown, terminal.run(command, shown)


def _rewritten(text: str, directory: Path) -> str:
    """Returns a page with the output of its commands, where that has another shape than what it shows."""
    # No longer: a segment that is sealed for its age would change what the commands behind print.
    with Terminal(directory, _SEALED) as terminal:

        def block(match: re.Match[str]) -> str:
            lines = []
            for command, shown in _entries(match[1]):
                printed = terminal.run(command, shown)
                lines += [f"$ {command}", shown if shape(printed) == shape(shown) else printed.strip("\n")]
            return match[0].replace(match[1], "\n".join(filter(None, lines)) + "\n")

        return _BLOCK.sub(block, text)


def main() -> None:
    """Rewrites the pages that are named on the command line."""
    for page in map(Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as directory:
            page.write_text(_rewritten(page.read_text(), Path(directory)))


if __name__ == "__main__":
    main()
