"""Lock files and locked files: `flock`, which ends with the process that holds it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOCK_MODE = 0o600
"""Mode of lock files. Read permission is enough to lock a file, so only its owner has it."""


def open_lock(path: Path) -> IO[str]:
    """Opens a lock file, which is created when missing, without locking it.

    Raises:
        OSError: The file cannot be opened or created.
    """
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, LOCK_MODE), "r+")


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Locks an existing file for the length of a block.

    Args:
        path: The file.
        wait: Wait until another process unlocks the file.

    Yields:
        Whether the file is locked: not when another process holds it and `wait` is false, nor when it was deleted.
    """
    try:
        file = path.open("rb+")
    except FileNotFoundError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # The last holder may have deleted the file between `open` and `flock`.
            is_same = os.fstat(file.fileno()).st_ino == path.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            is_same = False
        yield is_same
