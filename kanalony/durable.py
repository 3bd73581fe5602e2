"""Files and directory entries that survive a power loss: written, synced, renamed, and their directory synced.

Every file whose loss would lose an event, or count one twice, is written by these functions. Segments and journals keep
their own descriptors open and sync them themselves.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

YOUNG = ".young"
"""Suffix of files that are being written. A crash leaves them behind; no reader looks at them."""


def sync_directory(directory: Path) -> None:
    """Makes names durable that were created, renamed or removed in a directory.

    Raises:
        OSError: The directory is missing, or the disk refuses.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)  # fsync: the directory's names are durable after this line
    finally:
        os.close(descriptor)


def sync_file(file: IO[Any]) -> None:
    """Makes durable what was written to an open file.

    Raises:
        OSError: The disk refuses.
    """
    file.flush()
    os.fsync(file.fileno())  # fsync: the file's bytes are durable after this line


@contextmanager
def opened(path: Path, mode: str) -> Iterator[IO[Any]]:
    """Opens a file to write; at the end of the block it is durable, and so is its name.

    Args:
        path: The file.
        mode: As of `open`: "wb" writes over a file, "xb" creates one, "ab" appends.

    Raises:
        OSError: The file cannot be opened, or the disk refuses.
    """
    is_new = not path.exists()
    with path.open(mode) as file:
        yield file
        sync_file(file)
    if is_new:
        sync_directory(path.parent)


def publish(
    path: Path, content: bytes, *, rename: Callable[[Path, Path], object] = os.replace, mode: int = 0o666
) -> None:
    """Writes a file whole or not at all, whoever writes the same one at the same time.

    Args:
        path: The file.
        content: All of its bytes.
        rename: Gives the complete file its name: `os.replace` takes the place of an older file, `os.link` raises
            FileExistsError instead.
        mode: Permissions of the file, less the umask.

    Raises:
        OSError: The disk refuses; nothing is left behind.
    """
    young = path.with_name(f"{path.name}-{os.getpid()}-{secrets.token_hex(4)}{YOUNG}")
    try:
        with open(young, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            sync_file(file)
        rename(young, path)
    finally:
        young.unlink(missing_ok=True)
    sync_directory(path.parent)


def remove(path: Path) -> None:
    """Deletes a file; it stays deleted after a power loss.

    Raises:
        OSError: The file is missing, or the disk refuses.
    """
    path.unlink()
    sync_directory(path.parent)
