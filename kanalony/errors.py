"""Errors by whose fault they are. Each carries its remedy; the command line prints both in one line and exits with
2.
"""

import errno
import os


class KanalonyError(Exception):
    """Base of all. `hint` says what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class WrongUse(KanalonyError, ValueError):
    """The caller's: a bad option, a path that is not what it should be."""


class FormatError(KanalonyError, ValueError):
    """A file's: of a later version, or not one of ours at all. Damage within a file is reported, not raised."""


class StorageError(KanalonyError, OSError):
    """The machine's: a directory that cannot be written, a disk that is full."""


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_disk_full(error: Exception) -> bool:
    """Whether the disk, or what a user may have of it, is full; also when a library tells it in words."""
    return getattr(error, "errno", None) in _DISK_FULL or any(os.strerror(code) in str(error) for code in _DISK_FULL)
