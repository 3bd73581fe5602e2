"""The contents of the sdist, the version, the default server. `.ci/install.py` builds packages and installs them."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import kanalony
from harness.server import run
from kanalony.errors import UsageError
from kanalony.settings.serving import ServeSettings, check_meinheld

ROOT = Path(__file__).parent.parent

# Lists the files of the sdist without a build. setuptools adds the sources of extensions, but not the headers.
LIST_SDIST = """
import sys
import Cython.Build
Cython.Build.cythonize = lambda *_, **__: []
sys.argv = ["setup.py", "--quiet", "egg_info", "--egg-base", sys.argv[1]]
exec(compile(open("setup.py").read(), "setup.py", "exec"))
"""


def test_the_sdist_holds_every_source_stub_and_page(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LIST_SDIST, tmp_path], cwd=ROOT, check=True, capture_output=True, timeout=60)
    held = set((tmp_path / "kanalony.egg-info" / "SOURCES.txt").read_text().splitlines())
    files = (ROOT / "kanalony").rglob("*.*")
    sources = {str(path.relative_to(ROOT)) for path in files if path.suffix not in (".so", ".pyc")}
    assert {
        "kanalony/core/journal.pyx",
        "kanalony/core/headers.pxd",
        "kanalony/core/record.h",
        "kanalony/core/journal.pyi",
    } <= sources
    assert {"kanalony/py.typed", "kanalony/reports/dashboard/index.html"} <= sources
    assert sources - held == set()
    assert {name for name in held if name.endswith((".so", ".c", ".pyc"))} == set()


def test_the_command_and_the_package_have_the_same_version() -> None:
    assert run("--version").stdout == f"kanalony, version {kanalony.__version__}\n"


def test_from_python_3_13_on_granian_serves_even_where_meinheld_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kanalony.settings.serving.sys", SimpleNamespace(version_info=(3, 13, 0, "final", 0)))
    monkeypatch.setattr("kanalony.settings.serving.find_spec", lambda _: object())
    assert ServeSettings().server == "granian"
    with pytest.raises(UsageError, match=r"Python 3\.12") as caught:
        check_meinheld()
    assert "--server granian" in caught.value.hint
