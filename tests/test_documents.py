"""What the documents say is what happens: commands are run, their output compared, links and lists are complete."""

import ast
import importlib
import re
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

import kanalony
from benchmarks.__main__ import main as catalogue
from kanalony.aggregate.rollups import DIRECTORY
from kanalony.cli import main as command_line
from tests.consoles import blocks, shape, transcript
from tests.source_map import PAGE, TITLE, mapped, sources, standing, table
from tests.tools import tool

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text()
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *DOCS, ROOT / "benchmarks" / "RESULTS.md"])
GENERATED = ("commands.md", "configuration.md")
"""Pages of docs/ that other tests compare with what they are generated from."""

WITH_CONSOLES = ["README.md", "docs/tutorial.md", "docs/operations.md"]
README_LIMIT = 6 * 1024
"""Bytes. A front door: everything else has a page of its own."""


@pytest.mark.parametrize("name", WITH_CONSOLES)
def test_the_commands_of_a_page_print_what_it_shows(name: str, tmp_path: Path) -> None:
    tool("curl")
    for command, shown, printed in transcript((ROOT / name).read_text(), tmp_path):
        assert shape(printed) == shape(shown), command


def test_every_page_with_consoles_is_run() -> None:
    with_blocks = {str(path.relative_to(ROOT)) for path in PAGES if blocks(path.read_text())}
    others = {"benchmarks/RESULTS.md", *(f"docs/{name}" for name in GENERATED)}
    assert with_blocks - others == set(WITH_CONSOLES)


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= README_LIMIT


def test_figures_of_benchmarks_are_those_of_the_results() -> None:
    costs = README.split("## What it costs\n")[1].split("\n## ")[0]
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for text in (costs, page):
        quoted = re.findall(r"\*\*([\d.,]+)\*\*", text)
        assert len(quoted) >= 5
        assert [
            figure for figure in quoted if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d.,]*\d)", RESULTS)
        ] == []


def test_the_results_are_what_the_benchmarks_print() -> None:
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
        assert name in catalogue.commands
        module = importlib.import_module(f"benchmarks.{name}") if name != "crash" else None
        assert module is None or module.CAVEATS in printed


def test_every_benchmark_has_a_line_in_its_page() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert [name for name in catalogue.commands if f"| `{name}` |" not in page] == []


def test_the_map_of_source_files_is_complete() -> None:
    missing, surplus = sorted(set(sources()) - mapped(standing())), sorted(mapped(standing()) - set(sources()))
    assert (missing, surplus) == ([], []), f"missing: {missing}; surplus: {surplus}; run `make docs`"
    assert standing() == table(), "a first sentence has changed; run `make docs`"


def imported(package: str) -> set[str]:
    """Returns the parts of kanalony that a package imports, itself aside; top-level modules by their names."""
    found = set()
    for path in (ROOT / "kanalony" / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "kanalony":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= set(re.findall(r"^kanalony\.(\w+)", node.module or ""))
            elif isinstance(node, ast.Import):
                found |= {name for alias in node.names for name in re.findall(r"^kanalony\.(\w+)", alias.name)}
    return found - {package}


def test_packages_import_what_architecture_allows() -> None:
    rows = re.findall(r"^\| `kanalony/(\w+)/` \|.*\| ([\w, ]+) \|$", PAGE.read_text(), re.M)
    allowed = {package: set(names.split(", ")) - {"nothing"} for package, names in rows if package != "cli"}
    assert allowed.keys() >= {"core", "segments", "collector", "aggregate", "reports", "simulate"}
    packages = {path.name for path in (ROOT / "kanalony").iterdir() if path.is_dir()}
    for package, names in allowed.items():
        assert imported(package) & packages <= names, package
    assert imported("core") == set()


def test_functions_in_architecture_exist() -> None:
    text = PAGE.read_text().partition(TITLE)[0]
    named = set(re.findall(r"`(?:\w+\.)*(\w+)\(\)`", text)) | set(re.findall(r"`(_?[A-Z][a-z]\w*)`", text))
    assert len(named) > 30
    suffixes = (".py", ".pyx", ".h", ".c")
    code = "".join(path.read_text() for path in (ROOT / "kanalony").rglob("*") if path.suffix in suffixes)
    known = set(re.findall(r"\b(?:def|class) (\w+)", code)) | set(re.findall(r"^static .*?(\w+)\(", code, re.M))
    assert sorted(named - known) == []


def test_files_in_architecture_exist() -> None:
    text = PAGE.read_text().partition(TITLE)[0]
    named = set(re.findall(r"[\w/]+/\w+\.(?:py|pyx|h|c)\b", text))
    assert [name for name in named if not any((root / name).exists() for root in (ROOT, ROOT / "kanalony"))] == []


def test_pages_name_the_present_directory_of_rollups() -> None:
    named = {name for page in DOCS for name in re.findall(r"rollups-\d+", page.read_text())}
    assert named == {DIRECTORY}


def test_files_in_contributing_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"\b(?:tests|kanalony|harness|fuzz|docs)/[\w/.-]*\w", text))
    assert len(named) > 20
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def log_messages() -> list[tuple[str, str]]:
    """Returns (file, message) of every log line of WARNING and above, with … for what differs."""
    found = []
    for path in sorted((ROOT / "kanalony").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            level, message = node.func.attr, node.args[0]
            if level in ("warning", "error", "critical", "exception") and isinstance(message, ast.Constant):
                text = re.sub(r"%[.\d]*[a-z]", "…", str(message.value))
                if re.search(r"[a-z]", text):
                    found.append((path.name, text))
    return found


def test_operations_explain_every_log_line() -> None:
    page = " ".join((ROOT / "docs" / "operations.md").read_text().replace("`` ", "`").replace(" ``", "`").split())
    found = log_messages()
    assert len(found) > 15
    assert [(name, text) for name, text in found if text not in page] == []


def test_operations_explain_every_refusal() -> None:
    page = " ".join((ROOT / "docs" / "operations.md").read_text().split())
    code = "".join(path.read_text() for path in (ROOT / "kanalony" / "collector").glob("*.py"))
    reasons = re.findall(r'f?"([^"\n]*answered with \d{3}[^"\n]*)"', code)
    assert len(reasons) >= 6
    assert [text for text in reasons if re.sub(r"\{[^}]*\}", "…", text) not in page] == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    assert [path.name for path in DOCS if path.name != "index.md" and f"]({path.name}" not in index] == []


def settings_examples() -> list[tuple[str, str]]:
    """Returns (page, content) of every settings file that a page shows."""
    return [
        (path.name, block)
        for path in DOCS
        for block in re.findall(r"^ *```toml\n(.*?)^ *```", path.read_text(), re.S | re.M)
    ]


@pytest.mark.parametrize(("page", "content"), settings_examples())
def test_settings_in_pages_are_valid(page: str, content: str, tmp_path: Path) -> None:
    config = tmp_path / "kanalony.toml"
    config.write_text(content)
    arguments = ["report", "--metrics", "play", "--data", str(tmp_path), "--config", str(config)]
    done = CliRunner().invoke(command_line, arguments)
    assert "is not a kanalony data directory" in done.output, page


def links() -> list[tuple[str, str]]:
    """Returns (page, target) of every link that leads to a file of the repository."""
    found = []
    for path in PAGES:
        text = re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.S | re.M)
        targets = re.findall(r"\]\(([^)\s]+)\)", text)
        found += [(str(path.relative_to(ROOT)), target) for target in targets if not re.match(r"\w+:", target)]
    return sorted(set(found))


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ +(.*?) *$", text, re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize(("page", "target"), links())
def test_links_lead_somewhere(page: str, target: str) -> None:
    file, _, anchor = target.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists()
    assert not anchor or anchor in anchors(path.read_text())


def test_the_version_is_in_the_changelog() -> None:
    assert re.search(rf"^## \[{re.escape(kanalony.__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
