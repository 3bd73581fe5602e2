"""The data directory: its marker and layout, its spool directories, and the journals and segments in them."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from kanalony import durable
from kanalony.errors import FormatError, StorageError, UsageError
from kanalony.segments import permissions
from kanalony.segments.names import JOURNAL_NAME

log = logging.getLogger(__name__)

_T = TypeVar("_T")

MARKER = "kanalony-data"
LAYOUT = 1
_MARKER_TEXT = f"kanalony data directory, layout {LAYOUT}\n"
_OWN_NAMES = (MARKER, "lost+found", "journal", "segments", "quarantine", "address-keys", "lake")


def _is_own(name: str) -> bool:
    """Whether a directory without a marker may become a data directory although this name is in it.

    A new file system has lost+found; another collector may be creating the same data directory.
    """
    is_young_marker = name.startswith(f"{MARKER}-") and name.endswith(durable.YOUNG)
    return name in _OWN_NAMES or is_young_marker or name.startswith(f".{MARKER}.")  # the last: of earlier versions


class DataDirectory:
    """A directory with a marker file, so that nothing is ever written among other programs' files.

    Spool directories have the same layout and are `DataDirectory` objects, too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal = root / "journal"
        self.open = root / "segments" / "open"
        self.sealed = root / "segments" / "sealed"
        self.quarantine = root / "quarantine"
        self.spools = root / "spools"
        self.address_keys = root / "address-keys"
        self.lake = root / "lake"
        self.recovery_lock = root / "recovery.lock"

    @property
    def private_directories(self) -> tuple[Path, ...]:
        """Directories of files that are locked, and of keys: private to their owner, even with a group."""
        return self.journal, self.open, self.address_keys

    @classmethod
    def existing(cls, root: Path) -> "DataDirectory":
        """Returns a data directory to read.

        Raises:
            UsageError: The directory has no marker.
            FormatError: A later version made it.
            StorageError: Its marker cannot be read.
        """
        data = cls(root)
        if not data._is_marked():
            raise UsageError(
                f"{root} is not a kanalony data directory (no file {MARKER} in it)",
                "set --data to the directory that `kanalony serve` writes to",
            )
        return data

    @classmethod
    def writable(cls, root: Path) -> "DataDirectory":
        """Returns a data directory to write, which is created when missing, and sets the umask of the process.

        With that umask new files are private to the user, or readable by the group of a shared directory. Arrow and
        Delta create files, too, and follow only the umask.

        Raises:
            UsageError: The path holds something else.
            FormatError: A later version made the directory.
            StorageError: The directory cannot be written.
        """
        permissions.set_umask(root)
        data = cls._prepared(root)
        if root.stat().st_uid != os.geteuid():
            log.warning("%s belongs to another user, who cannot read all files that this user creates in it", root)
        return data

    @classmethod
    def for_collector(cls, root: Path, spools: Iterable[Path], group: str | None) -> "DataDirectory":
        """Returns a data directory to write, with spool directories and with modes for a group.

        Args:
            root: The data directory.
            spools: Spool directories, which are created when missing.
            group: The group whose members may read what is stored; None makes everything private to the user of this
                process.

        Raises:
            UsageError: As `writable` and `add_spools`; or the group is missing, or files cannot be given to it.
            FormatError: As `writable`.
            StorageError: As `writable` and `add_spools`.
        """
        data = cls.writable(root)
        data.add_spools(spools)
        gid = permissions.group_id(group)
        for place in data.places():
            permissions.set_modes(place, group, gid)
        permissions.set_umask(root)
        return data

    @classmethod
    def _prepared(cls, root: Path) -> "DataDirectory":
        data = cls(root)
        try:
            if not data._is_marked():
                if root.exists() and (not root.is_dir() or any(not _is_own(name) for name in os.listdir(root))):
                    reason = "holds files that are not kanalony's" if root.is_dir() else "is a file"
                    raise UsageError(f"{root} {reason}", "choose an empty or a new directory with --data")
                data._mark()
            for directory in (data.journal, data.open, data.sealed, data.quarantine):
                directory.parent.mkdir(exist_ok=True)
                directory.mkdir(
                    mode=permissions.PRIVATE if directory in data.private_directories else 0o777, exist_ok=True
                )
                with tempfile.TemporaryFile(dir=directory):
                    pass
            for directory in (data.open.parent, root):
                durable.sync_directory(directory)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(
                f"{error.filename or root} cannot be written: {error.strerror}",
                "choose a directory that this user may write, on a disk with free space, with --data",
            ) from error
        return data

    def _mark(self) -> None:
        """Creates the directory and its marker. Several processes may do so at the same time."""
        missing = [path for path in (self.root, *self.root.parents) if not path.exists()]
        for directory in reversed(missing):
            directory.mkdir(mode=permissions.PRIVATE, exist_ok=True)
        for directory in missing or [self.root]:
            durable.sync_directory(directory.resolve().parent)
        durable.publish(self.root / MARKER, _MARKER_TEXT.encode())

    def _is_marked(self) -> bool:
        marker = self.root / MARKER
        try:
            text = marker.read_text(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise StorageError(f"{error.filename} cannot be read: {error.strerror}", "check its permissions") from error
        if text != _MARKER_TEXT:
            raise FormatError(
                f"{marker} contains {text.strip()!r}; this version reads layout {LAYOUT}",
                "use the version of kanalony that wrote it, or a later one",
            )
        return True

    def add_spools(self, spools: Iterable[Path]) -> None:
        """Adds directories to write to when this one is full, and links them, so that readers of this one find them.

        Raises:
            UsageError: As `writable`; or a spool directory is this directory, or belongs to another one.
            FormatError: As `writable`.
            StorageError: As `writable`; or the link cannot be written.
        """
        for root in spools:
            spool = DataDirectory._prepared(root)
            target = spool.root.resolve()
            if target == self.root.resolve():
                raise UsageError(f"{root} is the data directory itself", "choose another directory with --spool")
            spool._bind_to(self)
            link = self.spools / hashlib.sha256(os.fsencode(target)).hexdigest()[:16]
            try:
                self.spools.mkdir(exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(target)
                    durable.sync_directory(self.spools)
            except OSError as error:
                raise StorageError(
                    f"{link} cannot be created: {error.strerror}", "free some space in --data"
                ) from error

    def _bind_to(self, owner: "DataDirectory") -> None:
        """Binds a spool directory to one data directory. A second one would take its workers for dead."""
        note = self.root / "spool-of"
        name = f"{owner.root.resolve()}\n"
        try:
            with durable.opened(note, "x") as file:
                file.write(name)
        except FileExistsError:
            if note.read_text() != name:
                raise UsageError(
                    f"{self.root} is the spool directory of {note.read_text().strip()}",
                    f"choose another one with --spool, or delete {note} if that data directory no longer exists",
                ) from None

    def places(self) -> list["DataDirectory"]:
        """Returns this directory, then its spool directories.

        Raises:
            StorageError: A spool directory is missing. Without it the requests it holds would look lost.
        """
        places = [self]
        for link in sorted(self.spools.iterdir()) if self.spools.is_dir() else []:
            target = link.readlink()
            if not (target / MARKER).exists():
                raise StorageError(
                    f"the spool directory {target} is missing", f"mount it, or delete {link} to stop using it"
                )
            places.append(DataDirectory(target))
        return places

    def journals(self) -> list[Path]:
        """Returns the journals of all places.

        Raises:
            StorageError: As `places`, or this user may not list a directory.
        """
        found = [path for place in self.places() for path in _listed(place.journal)]
        return sorted(path for path in found if JOURNAL_NAME.fullmatch(path.name))

    def segments(self) -> list[Path]:
        """Returns the segments of all places, open and sealed, in order of their names, so of their start.

        Raises:
            StorageError: As `journals`.
        """
        # Open ones first: a segment that is sealed in between is seen twice, never missed.
        places = self.places()
        directories = [place.open for place in places] + [place.sealed for place in places]
        listed = [path for directory in directories if directory.is_dir() for path in _listed(directory)]
        found = {path.name: path for path in listed if path.suffix == ".lz4"}
        return [found[name] for name in sorted(found)]


def in_some_place(
    places: Iterable[DataDirectory],
    step: Callable[[DataDirectory], _T],
    on_refusal: Callable[[DataDirectory, OSError], object] = lambda place, error: None,
) -> _T:
    """Runs a step in the first place whose disk accepts it: how kanalony falls back to spool directories.

    Args:
        places: A data directory and its spool directories, in the order to try them; at least one.
        step: Writes to a place, and raises OSError when the disk refuses.
        on_refusal: Called with every place that refused, and its error.

    Returns:
        What the step returned.

    Raises:
        OSError: Every place refused; the last one's error.
    """
    refusal: OSError | None = None
    for place in places:
        try:
            return step(place)
        except OSError as error:
            on_refusal(place, error)
            refusal = error
    assert refusal
    raise refusal


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except PermissionError as error:
        raise StorageError(
            f"only the user of the collector can read {directory}", "name sealed segments, or run this as that user"
        ) from error
