"""Commands that tests need beside Python, a small file system, and the number of examples."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings


def tool(name: str) -> str:
    """Returns the path of a command that `make test` does not install. Without it tests skip; in CI they fail."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs the {name} command")
    return path


def examples(full: int) -> int:
    """Returns the number of examples for a property that sets its own: `full`, or a quarter in `make test`."""
    return full if settings.get_current_profile_name() == "full" else max(full // 4, 5)


@contextlib.contextmanager
def mounted(directory: Path, size: int) -> Iterator[Path]:
    """Mounts a new file system of `size` bytes. The test is skipped without the right to mount."""
    directory.mkdir()
    command = [tool("mount"), "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run([tool("umount"), "--lazy", str(directory)], check=True)
