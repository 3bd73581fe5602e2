"""Errors by whose fault they are: the caller's, a file's or the machine's. Each carries its remedy.

The command line prints both in one line and exits with 2.
"""

import errno
import os


class KanalonyError(Exception):
    """Base class. `hint` is the remedy, for the line that the command line prints."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(KanalonyError, ValueError):
    """The caller's error: a bad option, or a path that is missing or holds something else."""


class FormatError(KanalonyError, ValueError):
    """A file's error: of a later version, or not of the expected kind. Damage in a file is reported, not raised."""


class StorageError(KanalonyError, OSError):
    """The machine's error: a directory that cannot be written, or a full disk."""


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_disk_full(error: Exception) -> bool:
    """Whether the disk or the user's quota is full. Libraries may report it only in the text of their own errors."""
    return getattr(error, "errno", None) in _DISK_FULL or any(os.strerror(code) in str(error) for code in _DISK_FULL)
