"""The collector loads no libraries of the lake, the lake none of the collector, and each command runs with what its
extra installs.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.server import KANALONY, run, serving, started

ROOT = Path(__file__).parent.parent
OFFLINE_ONLY = (
    *("pyarrow", "duckdb", "deltalake", "numpy", "polars", "ua_parser", "cryptography", "tabulate", "datasketches"),
    *("plotext", "starlette", "uvicorn"),
)
SERVING_ONLY = ("falcon", "meinheld", "gunicorn")


@pytest.mark.parametrize(
    ("modules", "banned"),
    [
        ("kanalony.collector.app, kanalony.collector.server", OFFLINE_ONLY),
        ("kanalony.cli, kanalony.segments.check, kanalony.segments.recovery", (*SERVING_ONLY, *OFFLINE_ONLY)),
        ("kanalony.aggregate.loop, kanalony.cli.ledger_text, kanalony.cli.progress", SERVING_ONLY),
        ("kanalony.reports.api.server, kanalony.reports.renderer", SERVING_ONLY),
    ],
)
def test_a_half_does_not_load_the_other_halfs_libraries(modules: str, banned: tuple[str, ...]) -> None:
    code = f"import sys, {modules}; print([name for name in {banned!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def installed_by(*extras: str) -> set[str]:
    """Returns the canonical names of the distributions that `pip install kanalony[extras]` installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = project["dependencies"] + [name for extra in extras for name in project["optional-dependencies"][extra]]
    waiting = [Requirement(name) for name in names]
    found = {"kanalony"}
    while waiting:
        wanted = waiting.pop()
        found.add(canonicalize_name(wanted.name))
        for further in map(Requirement, importlib.metadata.requires(wanted.name) or ()):
            applies = not further.marker or any(further.marker.evaluate({"extra": e}) for e in ("", *wanted.extras))
            if applies and canonicalize_name(further.name) not in found:
                waiting.append(further)
    return found


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Returns a function that hides all libraries from a test's processes but those that some extras install."""

    def apply(*extras: str) -> None:
        installed = installed_by(*extras)
        missing = [
            module
            for module, owners in importlib.metadata.packages_distributions().items()
            if installed.isdisjoint(map(canonicalize_name, owners)) and module.isidentifier()
        ]
        assert {"pytest", "hypothesis"} <= set(missing)
        code = f"import sys\nfor name in {missing!r}:\n    sys.modules.setdefault(name, None)\n"
        (tmp_path / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return apply


def output(folder: Path, *words: str, status: int = 0) -> str:
    """Runs a command in a directory, asserts its exit status, and returns what it prints."""
    done = run(*words, cwd=folder, timeout=120)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def collect(folder: Path, events: int) -> None:
    with serving(folder / "data") as server:
        assert "(server: granian, " in server.log.read_text()
        url = f"http://127.0.0.1:{server.port}"
        output(folder, "simulate", "--url", url, "--events", str(events), "--viewers", "5")
        assert server.stop() == 0


def test_the_collector_needs_only_the_base_requirements(tmp_path: Path, only: Callable[..., None]) -> None:
    only()
    collect(tmp_path, 200)
    assert len(output(tmp_path, "cat").splitlines()) == 200
    assert re.search(r" 200 events;.* sound$", output(tmp_path, "verify"), re.M)
    assert output(tmp_path, "recover").startswith("0 dead workers")


def test_the_lake_needs_only_its_extra(tmp_path: Path, only: Callable[..., None]) -> None:
    only("lake")
    collect(tmp_path, 200)
    output(tmp_path, "compact")
    output(tmp_path, "ledger")
    answer = json.loads(output(tmp_path, "report", "--metrics", "events", "--format", "json"))
    assert answer["totals"]["events"] == 200
    with started([*KANALONY, "dashboard", "--port", "0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        line = next(line for line in process.stderr if "dashboard on" in line)
        with urllib.request.urlopen(line.split()[-1], timeout=60) as page:
            assert b"<html" in page.read()


@pytest.mark.parametrize("words", ["compact", "ledger", "report --metrics play", "dashboard --port 0"])
def test_a_command_names_its_extra_where_that_is_not_installed(
    tmp_path: Path, only: Callable[..., None], words: str
) -> None:
    only()
    text = output(tmp_path, *words.split(), status=2)
    assert text.count("\n") == 1
    assert "pip install 'kanalony[lake]'" in text


def test_meinheld_where_it_is_not_installed_is_an_error_with_the_remedy(
    tmp_path: Path, only: Callable[..., None]
) -> None:
    only()
    text = output(tmp_path, "serve", "--server", "meinheld", "--port", "0", status=2)
    assert text.count("\n") == 1
    assert "meinheld" in text
    assert "--server granian" in text
