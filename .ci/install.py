"""Builds the sdist, and from it a wheel for every supported Python found; tries each in a clean environment.

Looks for Pythons on PATH and below pyenv's versions. Each gets its own environment with the wheel, and no environment
variables except PATH, HOME and pip's settings. There `kanalony serve` collects 1,000 simulated events in an empty
directory, and `kanalony verify` must find them sound: with granian, and with meinheld where that runs. On the newest
Python the commands of the extra [lake] follow, and the tests of the compiled core. Works in a temporary directory and
removes it. Needs only git, Python and a C compiler.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 11), (3, 14))
MEINHELD_UP_TO = (3, 12)
MAX_COLLECTOR_SIZE = 80 * 10**6  # bytes of site-packages
EVENTS = 1000
PIP_SECONDS = 600
COMMAND_SECONDS = 60

# pip reads its settings from variables, and needs the proxies.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name in ("PATH", "HOME", "TMPDIR") or name.startswith("PIP_") or name.lower().endswith("_proxy")
}

# Prints version and executable of a released Python that can make environments and compile extensions.
PROBE = """
import ensurepip, os, sys, sysconfig, venv
usable = sys.version_info.releaselevel == "final" and not sysconfig.get_config_var("Py_GIL_DISABLED")
if usable and os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    print(*sys.version_info[:3], sys.executable)
"""


class Interpreter(NamedTuple):
    version: tuple[int, int, int]
    executable: str

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


@dataclass
class Trial:
    """Results on one Python.

    Attributes:
        python: The interpreter.
        size: Bytes of site-packages with the collector alone.
        passed: Names of the steps that passed.
    """

    python: Interpreter
    size: int
    passed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"Python {self.python}: collector's site-packages {self.size / 1e6:.1f} MB; {', '.join(self.passed)}"


class Failed(Exception):
    pass


def interpreters() -> list[Interpreter]:
    """Returns the newest of each supported minor version, oldest first."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    candidates = {path for folder in folders for path in folder.glob("python3.*") if re.search(r"3\.\d+$", path.name)}
    candidates |= set((pyenv / "versions").glob("*/bin/python3"))
    found: dict[tuple[int, int], Interpreter] = {}
    for path in sorted(candidates):
        command = [str(path), "-c", PROBE]
        probe = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
        if probe.returncode or not probe.stdout.strip():
            continue
        major, minor, micro, executable = probe.stdout.strip().split(" ", 3)
        python = Interpreter((int(major), int(minor), int(micro)), executable)
        if SUPPORTED[0] <= python.version[:2] <= SUPPORTED[1]:
            best = found.setdefault(python.version[:2], python)
            found[python.version[:2]] = max(best, python)
    return sorted(found.values())


def run(*command: str | Path, seconds: int = COMMAND_SECONDS, cwd: Path, status: int = 0, **variables: str) -> str:
    """Runs a command, and returns its output.

    Args:
        command: The command and its arguments.
        seconds: Time limit.
        cwd: Its working directory.
        status: Expected exit status.
        variables: Further environment variables.

    Raises:
        Failed: The exit status differs.
        subprocess.TimeoutExpired: The command took longer.
    """
    words = list(map(str, command))
    done = subprocess.run(
        words,
        cwd=cwd,
        env={**ENVIRONMENT, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode != status:
        raise Failed(f"{' '.join(words)}: exit {done.returncode}, not {status}\n{done.stdout[-8000:]}")
    return done.stdout


def copy_sources(target: Path) -> None:
    """Copies the files that a commit of this directory would hold, without any build products."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # false when its deletion is not yet committed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


def build(python: Interpreter, work: Path) -> tuple[Path, Path]:
    """Runs `python -m build`, and returns the sdist and the wheel that was built from it."""
    sources, dist = work / "sources", work / "dist"
    copy_sources(sources)
    run(python.executable, "-m", "venv", work / "build", seconds=PIP_SECONDS, cwd=work)
    run(work / "build/bin/pip", "install", "build", seconds=PIP_SECONDS, cwd=work)
    run(work / "build/bin/python", "-m", "build", "--outdir", dist, sources, seconds=PIP_SECONDS, cwd=work)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        str(path.relative_to(sources))
        for path in (sources / "kanalony").rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    if needed - held:
        raise Failed(f"not in the sdist: {', '.join(sorted(needed - held))}")
    return sdist, wheel


def size(folder: Path) -> int:
    """Returns bytes on disk."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


@contextlib.contextmanager
def started(*command: str | Path, cwd: Path, ready: str) -> Iterator[str]:
    """Runs a process that logs its address. At the end it is stopped with SIGTERM, then killed with its descendants.

    Args:
        command: The command and its arguments.
        cwd: Its working directory; the log is written there.
        ready: Pattern of the line in the log. Its only group is the address, which the `with` returns.
    """
    log = cwd / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)), cwd=cwd, env=ENVIRONMENT, stdout=output, stderr=output, start_new_session=True
        )
    try:
        end = time.monotonic() + COMMAND_SECONDS
        while not (match := re.search(ready, log.read_text())):
            if process.poll() is not None or time.monotonic() > end:
                raise Failed(f"{' '.join(map(str, command))} is not ready:\n{log.read_text()}")
            time.sleep(0.05)
        yield match[1]
        process.terminate()
        if process.wait(COMMAND_SECONDS):
            raise Failed(f"{' '.join(map(str, command))}: exit {process.returncode}\n{log.read_text()}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(COMMAND_SECONDS)


def collect(kanalony: Path, folder: Path, server: str) -> None:
    """Serves in an empty directory, where `server` must be the default, and runs every command of the collector."""
    folder.mkdir()
    ready = rf"collecting on (http://127\.0\.0\.1:\d+) into data \(server: {server},"
    with started(kanalony, "serve", "--port", "0", cwd=folder, ready=ready) as address:
        run(kanalony, "simulate", "--url", address, "--events", str(EVENTS), "--viewers", "20", cwd=folder)
    report = run(kanalony, "verify", cwd=folder)
    if f" {EVENTS:,} events;" not in report or not re.search(r"; sound$", report, re.M):
        raise Failed(f"{server}: {EVENTS:,} events were sent, and verify says:\n{report}")
    events = run(kanalony, "cat", cwd=folder).splitlines()
    if len(events) != EVENTS:
        raise Failed(f"{server}: {EVENTS:,} events were sent, and cat prints {len(events):,}")
    run(kanalony, "recover", cwd=folder)


def analyse(kanalony: Path, folder: Path) -> None:
    """Runs every command of the extra [lake] on the events collected in a directory."""
    run(kanalony, "compact", cwd=folder)
    run(kanalony, "ledger", cwd=folder)
    answer = json.loads(run(kanalony, "report", "--metrics", "events", "--format", "json", cwd=folder))
    if answer["totals"]["events"] != EVENTS:
        raise Failed(f"{EVENTS:,} events were compacted, and the report is {answer}")
    with started(kanalony, "dashboard", "--port", "0", cwd=folder, ready=r"(http://127\.0\.0\.1:\d+)") as address:
        page = urllib.request.urlopen(address, timeout=COMMAND_SECONDS).read().decode()
        for name in re.findall(r'(?:src|href)="([\w./-]+\.(?:js|css))"', page):
            urllib.request.urlopen(f"{address}/{name.lstrip('./')}", timeout=COMMAND_SECONDS).close()


def try_python(python: Interpreter, sdist: Path, wheel: Path | None, work: Path, *, newest: bool) -> Trial:
    """Installs and uses the wheel; builds it from the sdist when there is none for this Python."""
    folder = work / str(python)
    folder.mkdir()
    environment = folder / "environment"
    run(python.executable, "-m", "venv", environment, seconds=PIP_SECONDS, cwd=folder)
    pip, kanalony = environment / "bin/pip", environment / "bin/kanalony"
    if wheel is None:
        run(pip, "wheel", "--no-deps", "--wheel-dir", folder, sdist, seconds=PIP_SECONDS, cwd=folder)
        (wheel,) = folder.glob("*.whl")
    run(pip, "install", wheel, seconds=PIP_SECONDS, cwd=folder)
    (packages,) = environment.glob("lib/python3.*/site-packages")
    trial = Trial(python, size(packages))
    print(f"Python {python}: installed, site-packages {trial.size / 1e6:.1f} MB", flush=True)
    if trial.size > MAX_COLLECTOR_SIZE:
        raise Failed(f"Python {python}: site-packages are above {MAX_COLLECTOR_SIZE / 1e6:.0f} MB")
    collect(kanalony, folder / "granian", "granian")
    trial.passed.append("granian")
    for command in (("compact",), ("ledger",), ("report", "--metrics", "events"), ("dashboard",)):
        if "pip install 'kanalony[lake]'" not in run(kanalony, *command, cwd=folder / "granian", status=2):
            raise Failed(f"kanalony {command[0]} does not name its extra")
    if "--server granian" not in run(kanalony, "serve", "--server", "meinheld", cwd=folder / "granian", status=2):
        raise Failed("kanalony serve --server meinheld does not name the server to take")
    if python.version[:2] <= MEINHELD_UP_TO:
        # Without the variable meinheld asks for a version of greenlet that compiles on none of these Pythons. pip must
        # not take a wheel from its cache that was built without it.
        extra = f"{wheel}[meinheld]"
        run(pip, "install", "--no-cache-dir", extra, seconds=PIP_SECONDS, cwd=folder, MEINHELD_NOGREEN="1")
        collect(kanalony, folder / "meinheld", "meinheld")
        trial.passed.append("meinheld")
    if newest:
        run(pip, "install", f"{wheel}[lake]", seconds=PIP_SECONDS, cwd=folder)
        analyse(kanalony, folder / "granian")
        trial.passed.append("lake")
        test_core(environment, work / "sources", folder / "tests")
        trial.passed.append("tests of the compiled core")
    return trial


def test_core(environment: Path, sources: Path, folder: Path) -> None:
    """Runs the tests of the compiled modules against the wheel: the copied tests have no package beside them."""
    shutil.copytree(sources, folder, ignore=shutil.ignore_patterns("kanalony"))
    run(environment / "bin/pip", "install", "pytest", "hypothesis", "polars", seconds=PIP_SECONDS, cwd=folder)
    formats = (f"tests/segments/test_{name}.py" for name in ("format", "journal", "segments"))
    tests = ("tests/core", *formats, "tests/aggregate/test_columns.py")
    run(environment / "bin/python", "-m", "pytest", "-q", "-x", *tests, seconds=PIP_SECONDS, cwd=folder)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops servers and removes files
    pythons = interpreters()
    print("Pythons:", ", ".join(map(str, pythons)) or "none", flush=True)
    if not pythons:
        return 1
    newest = pythons[-1]
    with tempfile.TemporaryDirectory(prefix="kanalony-install-") as temporary:
        work = Path(temporary)
        try:
            sdist, wheel = build(newest, work)
            print(f"Built {sdist.name}, and {wheel.name} from it", flush=True)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                trials = [
                    pool.submit(
                        try_python, python, sdist, wheel if python == newest else None, work, newest=python == newest
                    )
                    for python in reversed(pythons)  # the newest takes longest
                ]
                print(*(trial.result() for trial in reversed(trials)), sep="\n")
        except (Failed, subprocess.TimeoutExpired) as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
