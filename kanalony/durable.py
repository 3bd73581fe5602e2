"""Files and directory entries that survive a power loss: written, synced, renamed, and their directory synced.

These functions write every file whose loss would lose an event or count one twice. Segments and journals keep their own
descriptors open and sync them themselves.
"""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

YOUNG = ".young"
"""Suffix of files that are being written. A crash leaves them behind; readers ignore them."""


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable: those created, renamed or removed before the call.

    Raises:
        OSError: The directory is missing, or the disk refuses.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)  # fsync: the directory's names are durable after this line
    finally:
        os.close(descriptor)


def sync_file(file: IO[Any]) -> None:
    """Makes the bytes written to an open file durable.

    Raises:
        OSError: The disk refuses.
    """
    file.flush()
    os.fsync(file.fileno())  # fsync: the file's bytes are durable after this line


@contextmanager
def opened(path: Path, mode: str) -> Iterator[IO[Any]]:
    """Opens a file to write; at the end of the block the file and its name are durable.

    Args:
        path: The file.
        mode: As of `open`: "wb" writes over a file, "xb" creates one, "ab" appends.

    Raises:
        OSError: The file cannot be opened, or the disk refuses.
    """
    with path.open(mode) as file:
        yield file
        sync_file(file)
    sync_directory(path.parent)  # also of an old file: the process that created it may have died before this line


def publish(
    path: Path,
    content: bytes | Iterable[bytes],
    *,
    rename: Callable[[Path, Path], object] = os.replace,
    mode: int = 0o666,
) -> None:
    """Writes a whole file or nothing, also when several processes write the same file at the same time.

    Args:
        path: The file.
        content: All of its bytes, or parts of them in order.
        rename: Gives the complete file its name: `os.replace` takes the place of an older file, `os.link` raises
            FileExistsError instead.
        mode: Permissions of the file, less the umask.

    Raises:
        OSError: The disk refuses; nothing is left behind.
    """
    young = path.with_name(f"{path.name}-{os.getpid()}-{secrets.token_hex(4)}{YOUNG}")
    try:
        with open(young, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            sync_file(file)
        rename(young, path)
    finally:
        young.unlink(missing_ok=True)
    sync_directory(path.parent)


def remove_unpublished(path: Path) -> None:
    """Deletes what writers that died in `publish` left of a file. No other process may be publishing it.

    Raises:
        OSError: The disk refuses.
    """
    for young in path.parent.glob(f"{path.name}-*{YOUNG}"):
        young.unlink()


def remove(path: Path) -> None:
    """Deletes a file; it stays deleted after a power loss.

    Raises:
        OSError: The file is missing, or the disk refuses.
    """
    path.unlink()
    sync_directory(path.parent)
