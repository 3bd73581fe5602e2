"""Commands that tests need beside Python, and a small file system."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings


def tool(name: str) -> str:
    """The path of a command that `make test` does not install; without it the test is skipped, but not in CI."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs the {name} command")
    return path


def examples(full: int) -> int:
    """Returns how many examples a property with a number of its own gets: `full`, or a quarter in `make test`."""
    return full if settings.get_current_profile_name() == "full" else max(full // 4, 5)


@contextlib.contextmanager
def mounted(directory: Path, size: int) -> Iterator[Path]:
    """A new file system of so many bytes; the test is skipped where that takes more rights than there are."""
    directory.mkdir()
    command = [tool("mount"), "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run([tool("umount"), "--lazy", str(directory)], check=True)
