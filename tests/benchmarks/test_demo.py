"""`make demo` starts everything, shows events that keep coming, and leaves nothing behind."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUERY = "/api_v3/index.php?service=analytics&action=query&metrics=events,play&dimensions=country"


def processes(part: str) -> list[str]:
    """Returns the command lines that contain a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in found if part in line]


def test_the_demo_shows_events_that_keep_coming_and_ends_without_a_trace(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "demo", "--hours", "0.5", "--viewers", "40", "--port", "0"]
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            address = next(line.split()[1] for line in process.stdout if line.startswith("dashboard"))

            def events() -> int:
                with urllib.request.urlopen(address + QUERY, timeout=60) as answer:
                    report = json.load(answer)
                assert {"Germany", "Japan"} <= {row["country"] for row in report["rows"]}
                return int(report["totals"]["events"])

            first = events()
            assert first > 1000
            end = time.monotonic() + 120
            while events() == first:
                assert time.monotonic() < end, "no events came"
                time.sleep(0.5)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    assert processes(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []
