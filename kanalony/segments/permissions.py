"""Who may read a data directory: its user only, or also the members of a group.

The mode of the root decides. Directories and files below it follow from that mode and the umask, except directories
whose files are locked, and keys: these are private to their owner even with a group. Read permission is enough to lock
a file, and a lock on a journal or an open segment keeps its worker from starting, or recovery from adopting it.
"""

import grp
import logging
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kanalony.errors import UsageError

if TYPE_CHECKING:
    from kanalony.segments.directory import DataDirectory

log = logging.getLogger(__name__)

PRIVATE = 0o700
SHARED = 0o2750
"""Mode of directories that a group may read. Setgid: what is created in it gets its group."""


def set_umask(root: Path) -> None:
    """Sets the umask of the process to that of a data directory, or to that of a private one when it is missing."""
    mode = PRIVATE
    with suppress(OSError):  # the caller's next access of the directory reports it
        mode = SHARED if _mode(root) == SHARED else PRIVATE
    os.umask(~mode & 0o777)


def group_id(group: str | None) -> int | None:
    """Returns the number of a group; None for None.

    Raises:
        UsageError: The machine has no such group.
    """
    try:
        return None if group is None else grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"there is no group {group!r}", "choose a group of this machine with --group") from None


def set_modes(place: "DataDirectory", group: str | None, gid: int | None) -> None:
    """Sets the modes of a directory and everything in it, unless the directory has them already.

    Args:
        place: A data directory or a spool directory.
        group: The group whose members may read it; None makes it private.
        gid: The number of that group.

    Raises:
        UsageError: Files cannot be given to the group.
    """
    root = place.root
    mode = PRIVATE if gid is None else SHARED
    before = _mode(root)
    if before == mode and gid in (None, root.stat().st_gid):
        return
    try:
        root.chmod(PRIVATE)  # closed until everything in it has its mode
        for where, directories, files in os.walk(root):
            for name in [*directories, *files]:
                # Files of another user, say root after `kanalony recover`, are behind the closed root.
                with suppress(FileNotFoundError, *([PermissionError] if gid is None else [])):
                    _set_mode(place, Path(where) / name, mode, gid)
        _set_mode(place, root.resolve(), mode, gid)
    except PermissionError as error:
        if gid is not None:
            reason = f"{error.filename} cannot be given to the group {group}: {error.strerror}"
            raise UsageError(reason, "run it as the owner of --data and as a member of --group") from error
        log.warning("%s has the mode %o, and this user may not make it private", root, before)
        return
    level = logging.WARNING if before & ~mode & 0o077 else logging.INFO
    log.log(level, "changed the mode of %s from %o to %o, and of everything in it", root, before, mode)
    for parent in root.resolve().parents if gid is not None else ():
        state = parent.stat()
        if not state.st_mode & (stat.S_IXOTH | (stat.S_IXGRP if state.st_gid == gid else 0)):
            log.warning("members of %s cannot reach %s; allow it with chmod o+x %s", group, root, parent)


def _set_mode(place: "DataDirectory", path: Path, mode: int, gid: int | None) -> None:
    """Sets the mode and group of one file or directory.

    Raises:
        FileNotFoundError: Another process has renamed or deleted it.
    """
    kind = path.lstat().st_mode
    if gid is not None and not stat.S_ISLNK(kind):
        os.chown(path, -1, gid)
    if stat.S_ISDIR(kind):
        path.chmod(mode & ~0o077 if path in place.private_directories else mode)
    elif stat.S_ISREG(kind):
        # An open segment keeps its mode when it is sealed; until then its directory is closed.
        is_private = path.suffix == ".lock" or path.parent in (place.journal, place.address_keys)
        path.chmod(0o666 & (PRIVATE if is_private else mode))


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
