"""Measures which lines of the compiled core, Cython and C, the tests run; prints a table.

Copies the sources to build/coverage/native, compiles the core there for gcov, runs the tests that need no server in
that copy, and counts the executed lines of each .pyx and .h file. Cython's own line tracing would see neither the C
headers nor code without the GIL. Needs gcc with its gcov.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from install import ROOT, copy_sources

WORK = ROOT / "build/coverage/native"
CORE = "kanalony/core"
TESTS = (
    "tests/core",
    "tests/segments",
    "tests/aggregate/test_columns.py",
    "tests/aggregate/test_golden.py",
    "tests/collector/test_app.py",
    "tests/collector/test_fast_path.py",
    "tests/collector/test_privacy.py",
)


def compile_core() -> None:
    """Compiles the core in place, with line numbers of the Cython sources.

    setup.py takes C files that are newer than their source as they are.
    """
    bin_directory = Path(sys.executable).parent
    for source in sorted((WORK / CORE).glob("*.pyx")):
        target = WORK / "build/cython" / CORE / f"{source.stem}.c"
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [str(bin_directory / "cython"), "--line-directives", str(source.relative_to(WORK)), "-o", str(target)]
        subprocess.run(command, cwd=WORK, check=True)
    environment = {**os.environ, "CFLAGS": "--coverage"}
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=WORK, env=environment, check=True)


def run_tests(*arguments: str) -> int:
    """Runs the tests in the copy, and returns the exit status of pytest."""
    environment = {**os.environ, "PYTHONPATH": str(WORK)}
    command = [sys.executable, "-m", "pytest", "-q", *arguments, *TESTS]
    return subprocess.run(command, cwd=WORK, env=environment, check=False).returncode


def executed_lines() -> dict[str, dict[int, int]]:
    """Returns how often each line ran, by file and line number; a header's lines are added over all modules."""
    lines: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    lengths = {
        path.name: path.read_bytes().count(b"\n")
        for path in (WORK / CORE).iterdir()
        if path.suffix in (".pyx", ".pxd", ".h")
    }
    for data in sorted(WORK.glob("build/temp.*/**/*.gcda")):
        command = ["gcov", "--json-format", "--stdout", str(data)]
        output = subprocess.run(command, cwd=WORK, capture_output=True, text=True, check=True).stdout
        for document in output.splitlines():
            for file in json.loads(document)["files"]:
                path = Path(file["file"])
                # Cython's own code after the last line of a module has numbers beyond it.
                if path.parent.name != "core" or path.name not in lengths:
                    continue
                for line in file["lines"]:
                    if line["line_number"] <= lengths[path.name]:
                        lines[path.name][line["line_number"]] += line["count"]
    return lines


def main() -> int:
    """Prints the table. The exit status is that of the tests."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    copy_sources(WORK)
    compile_core()
    status = run_tests(*sys.argv[1:])
    total = missed = 0
    print(f"\n{'Name':<34}{'Lines':>7}{'Missed':>8}{'Covered':>9}   Missing")
    for name, lines in sorted(executed_lines().items()):
        missing = [number for number, count in sorted(lines.items()) if not count]
        total += len(lines)
        missed += len(missing)
        share = 1 - len(missing) / len(lines)
        shown = ", ".join(map(str, missing[:12])) + (", ..." if len(missing) > 12 else "")
        print(f"{CORE}/{name:<20}{len(lines):>7}{len(missing):>8}{share:>9.0%}   {shown}")
    print(f"{'TOTAL (Cython and C)':<34}{total:>7}{missed:>8}{1 - missed / max(total, 1):>9.0%}")
    return status


if __name__ == "__main__":
    sys.exit(main())
