"""What the README says is what happens: its commands are run and their output compared, its map is complete."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.server import KANALONY, Server, run, serving
from tests.tools import tool

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text()


def console(section: str) -> list[tuple[str, str]]:
    """(command, output) of every `$` line in the console blocks of a section."""
    text = README.split(f"## {section}\n")[1].split("\n## ")[0]
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, re.S):
        for part in block.split("$ ")[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output.strip()))
    return found


def shape(output: str) -> str:
    """Output without what differs from run to run: times, ids, versions, figures."""
    for pattern, name in [
        (r"\d{4}-\d\d-\d\d[T ][\d:.,]+Z?", "TIME"),
        (r"\b\d{10}\b", "SECOND"),
        (r"\b[0-9a-f]{16}\b", "WORKER"),
        (r"curl/[\d.]+", "CURL"),
        (r"127\.0\.0\.1:\d+", "ADDRESS"),
        (r"TIMEZ?_\S+_WORKER_WORKER\.lz4|\d{8}T\d{6}\.\d{6}Z_\S+\.lz4", "SEGMENT"),
        (r"[\d,.]+ (?:m?s\b|\([\d,]+/s\))|\([\d,]+/s\)", "FIGURE"),
        (r"[-─]{3,}", "---"),
        (r" +", " "),
    ]:
        output = re.sub(pattern, name, output)
    return output.strip()


def run_line(command: str, server: Server) -> str:
    """A README command, with the port and the directory of the server under test."""
    words = shlex.split(command.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"))
    if words[0] == ".venv/bin/kanalony":
        words = [*KANALONY, *words[1:]]
    words[0] = sys.executable if words[0] == ".venv/bin/python" else words[0]
    done = subprocess.run(words, cwd=server.data.parent, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout or done.stderr


def test_the_quick_start_prints_what_it_says(tmp_path: Path) -> None:
    tool("curl")
    (start, started), *rest = console("Quick start")
    assert start == "make serve"
    with serving(tmp_path / "data") as server:
        log = server.log.read_text().replace(str(server.data), "data").splitlines()[0]
        assert shape(log) == shape(started)
        assert [command.split()[0] for command, _ in rest] == ["curl", ".venv/bin/kanalony", ".venv/bin/kanalony"]
        for command, output in rest:
            if command.endswith("verify"):
                server.wait_for(lambda: "1 events" in run("verify", "--data", server.data).stdout)  # half a second
            assert shape(run_line(command, server)) == shape(output), command


def test_a_batch_is_answered_and_printed_as_it_says(tmp_path: Path) -> None:
    tool("curl")
    with serving(tmp_path / "data") as server:
        for command, output in console("Talking to it"):
            assert shape(run_line(command, server)) == shape(output), command


def test_events_become_tables_as_it_says(tmp_path: Path) -> None:
    (simulate, printed), *rest = console("From events to tables")
    with serving(tmp_path / "data") as server:
        assert shape(run_line(f"{simulate} --url http://127.0.0.1:{server.port}", server)) == shape(printed)
        server.stop()
        for command, output in [*rest, *console("Reports")]:
            assert shape(run_line(command, server)) == shape(output), command


def test_figures_of_benchmarks_are_those_of_the_results() -> None:
    cheap = README.split("- **It is cheap.**")[1].split("\n\n[docs/operations.md]")[0]
    quoted = re.findall(r"\*\*([\d.,]+)\*\*", cheap)
    assert len(quoted) >= 5
    assert [
        figure for figure in quoted if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d.,]*\d)", RESULTS)
    ] == []


def test_the_results_are_what_the_benchmarks_print() -> None:
    catalogue = subprocess.run([sys.executable, "-m", "benchmarks"], cwd=ROOT, capture_output=True, text=True).stdout
    shown = re.findall(r"```console\n\$ python -m benchmarks ([\w-]+)[^\n]*\nmachine   (.*?)```", RESULTS, re.S)
    assert {name for name, _ in shown} >= {
        "ingest",
        "replay",
        "append",
        "segments",
        "compact",
        "report",
        "connections",
        "crash",
    }
    for name, printed in shown:
        assert f"\n  {name} " in catalogue
        module = importlib.import_module(f"benchmarks.{name}") if name != "crash" else None
        assert module is None or module.CAVEATS in printed
    for link in re.findall(r"\]\(([^)#]+)\)", RESULTS):
        assert (ROOT / "benchmarks" / link).exists()


def test_the_map_names_every_source_file() -> None:
    files = [path.relative_to(ROOT) for path in (ROOT / "kanalony").rglob("*.*")]
    kinds = (".py", ".pyx", ".pxd", ".h")
    sources = {str(path) for path in files if path.suffix in kinds and not path.name.startswith("__")}
    mapped = set(re.findall(r"^\| `(kanalony/[^`]+[^`/])` \|", README, re.M))
    assert mapped == sources


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
