"""The table of source files at the end of docs/architecture.md, made from the files' own first sentences.

`make docs` writes it (`python -m tests.source_map`); a test compares it with the files.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
TITLE = "## Map of the source files\n"
_HEAD = "| file | holds |\n|---|---|\n"

_FOLDERS = (
    *("", "settings", "cli", "collector", "core", "segments", "aggregate", "reports", "reports/api"),
    *("reports/dashboard", "simulate"),
)
_COMMENTS = {
    ".pyx": r'\A(?:#[^\n]*\n)*"""(.*?)"""',
    ".pxd": r"\A((?:#[^\n]*\n)+)",
    ".h": r"\A/\*(.*?)\*/",
    ".c": r"\A/\*(.*?)\*/",
    ".js": r"\A(?:/\*(.*?)\*/|((?://[^\n]*\n)+))",
}


def sources() -> list[str]:
    """Returns the source files of kanalony/, folder by folder in the order of the map."""
    found = [path for path in (ROOT / "kanalony").rglob("*") if path.suffix in (".py", *_COMMENTS) and _is_ours(path)]
    folders = [ROOT / "kanalony" / folder for folder in _FOLDERS]
    found.sort(key=lambda path: (folders.index(path.parent) if path.parent in folders else len(folders), path))
    return [str(path.relative_to(ROOT)) for path in found]


def _is_ours(path: Path) -> bool:
    if path.name.endswith(".min.js") or ".cpython-" in path.name:
        return False
    if not path.name.startswith("__"):
        return True
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(path.read_text()).body)


def summary(name: str) -> str:
    """Returns the first sentence of a file's docstring or leading comment; empty when there is none."""
    text = (ROOT / name).read_text()
    if name.endswith(".py"):
        comment = ast.get_docstring(ast.parse(text)) or ""
    else:
        match = re.search(_COMMENTS[Path(name).suffix], text, re.S)
        comment = next((group for group in match.groups() if group), "") if match else ""
    paragraph = re.split(r"\n[ *#/]*\n", comment.strip(), maxsplit=1)[0]
    words = " ".join(line.strip(" *#/") for line in paragraph.splitlines()).strip()
    return re.split(r"(?<!e\.g)(?<!i\.e)\.\s", words, maxsplit=1)[0].rstrip(".").replace("|", "\\|")


def table() -> str:
    """Returns the map as it should stand in the page."""
    return "".join(f"| `{name}` | {summary(name)} |\n" for name in sources())


def standing() -> str:
    """Returns the rows of the map that stand in the page."""
    return PAGE.read_text().partition(_HEAD)[2]


def mapped(rows: str) -> set[str]:
    """Returns the files that rows name."""
    return {row.split("`")[1] for row in rows.splitlines()}


def main() -> None:
    """Writes the map into the page."""
    text = PAGE.read_text()
    PAGE.write_text(text.partition(_HEAD)[0] + _HEAD + table())


if __name__ == "__main__":
    main()
