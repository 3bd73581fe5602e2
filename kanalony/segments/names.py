"""Where things are in a data directory, and what segments are called: docs/segment-format.md, section 3."""

import grp
import hashlib
import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

from kanalony.errors import FormatError, StorageError, WrongUse

log = logging.getLogger("kanalony")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MARKER = "kanalony-data"
LAYOUT = 1
_YOUNG_MARKER = f".{MARKER}."
_MARKER_TEXT = "kanalony data directory, layout {}\n"
_SEGMENT_NAME = re.compile(r"(\d{8}T\d{6}\.\d{6})Z_([A-Za-z0-9.-]{0,63})_([0-9a-f]{16})_([0-9a-f]{16})\.lz4")
_PRIVATE = 0o700  # modes of directories, which files and the umask follow from
_SHARED = 0o2750  # what is made in it gets its group
JOURNAL_NAME = re.compile(r"([0-9a-f]{16})\.journal")


def _is_ours(name: str) -> bool:
    """Whether a directory with this name in it may become a data directory: that of a new file system, or one that
    another collector is just making.
    """
    return name in (
        MARKER,
        "lost+found",
        "journal",
        "segments",
        "quarantine",
        "address-keys",
        "lake",
    ) or name.startswith(_YOUNG_MARKER)


def worker_name(worker_id: int) -> str:
    """A worker id as it stands in names and output: 16 hex digits."""
    return f"{worker_id:016x}"


def to_datetime(microseconds: int) -> datetime:
    """A time of a file, µs since 1970, as an aware datetime in UTC."""
    return EPOCH + timedelta(microseconds=microseconds)


def to_iso(microseconds: int) -> str:
    """A time of a file as ISO 8601, UTC, always with six decimals."""
    return to_datetime(microseconds).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class SegmentName:
    """The parts of a segment's file name. Times are µs since 1970."""

    created_at: int
    host: str
    worker_id: int
    first_sequence: int

    def __str__(self) -> str:
        start = to_datetime(self.created_at).strftime("%Y%m%dT%H%M%S.%f")
        return f"{start}Z_{self.host}_{worker_name(self.worker_id)}_{self.first_sequence:016x}.lz4"

    @classmethod
    def parse(cls, name: str) -> "SegmentName | None":
        """The parts, or None when it is not a segment's name."""
        match = _SEGMENT_NAME.fullmatch(name)
        if match is None:
            return None
        try:
            start = datetime.strptime(match[1], "%Y%m%dT%H%M%S.%f").replace(tzinfo=UTC)
        except ValueError:
            return None  # digits, but no date
        return cls((start - EPOCH) // timedelta(microseconds=1), match[2], int(match[3], 16), int(match[4], 16))


class DataDirectory:
    """A directory that is kanalony's: marked as such, so that nothing is ever written among somebody else's files."""

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

    @classmethod
    def existing(cls, root: Path) -> "DataDirectory":
        """A data directory to read. Raises WrongUse when there is none, FormatError when a later version made it."""
        data = cls(root)
        if not data._marked():
            raise WrongUse(
                f"{root} is not a kanalony data directory (no file {MARKER} in it)",
                "name the directory that `kanalony serve` writes with --data",
            )
        return data

    @classmethod
    def writable(cls, root: Path) -> "DataDirectory":
        """A data directory to write, created when missing. Sets the umask of the process: files are private to its
        user, or readable by the group of a directory that is shared. Arrow and Delta, which create files too, know
        nothing else.

        Raises WrongUse when the path holds something else, FormatError when a later version made it, StorageError when
        it cannot be written.
        """
        cls(root)._set_umask()
        data = cls._prepared(root)
        if root.stat().st_uid != os.geteuid():
            log.warning("%s belongs to another user, who cannot read all of what this one makes in it", root)
        return data

    @classmethod
    def for_collector(cls, root: Path, spools: Iterable[Path], group: str | None) -> "DataDirectory":
        """The same, with spool directories, and with the modes that `group` asks for: None makes everything private to
        the user of this process. Raises as `writable` and `add_spools` do, and WrongUse when there is no such group or
        files cannot be given to it.
        """
        data = cls.writable(root)
        data.add_spools(spools)
        group_id = _group_id(group)
        for place in data.places():
            place._share(group, group_id)
        data._set_umask()
        return data

    @classmethod
    def _prepared(cls, root: Path) -> "DataDirectory":
        data = cls(root)
        try:
            if not data._marked():
                if root.exists() and (not root.is_dir() or any(not _is_ours(name) for name in os.listdir(root))):
                    what = "holds files that are not kanalony's" if root.is_dir() else "is a file"
                    raise WrongUse(f"{root} {what}", "name an empty or a new directory with --data")
                data._mark()
            for directory in (data.journal, data.open, data.sealed, data.quarantine):
                directory.parent.mkdir(exist_ok=True)
                # Read permission is enough to lock a file, and a lock on a journal or an open segment keeps its worker
                # from starting, or recovery from adopting it.
                directory.mkdir(mode=_PRIVATE if directory in data._locked_in() else 0o777, exist_ok=True)
                with tempfile.TemporaryFile(dir=directory):
                    pass
            for directory in (data.open.parent, root):
                sync_directory(directory)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(
                f"{error.filename or root} cannot be written: {error.strerror}",
                "name a directory this user may write, on a disk with space left, with --data",
            ) from error
        return data

    def _mark(self) -> None:
        """Make the directory, and its marker whole or not at all, whoever else does the same."""
        missing = [path for path in (self.root, *self.root.parents) if not path.exists()]
        for directory in reversed(missing):
            directory.mkdir(mode=_PRIVATE, exist_ok=True)
        for directory in missing or [self.root]:
            sync_directory(directory.resolve().parent)
        young = self.root / f"{_YOUNG_MARKER}{os.getpid()}"
        try:
            with young.open("w") as file:
                file.write(_MARKER_TEXT.format(LAYOUT))
                file.flush()
                os.fsync(file.fileno())
            young.rename(self.root / MARKER)
        except OSError:
            young.unlink(missing_ok=True)
            raise
        sync_directory(self.root)

    def _locked_in(self) -> tuple[Path, ...]:
        """Directories of files that are locked, and of keys: private to their owner, even with a group."""
        return self.journal, self.open, self.address_keys

    def _set_umask(self) -> None:
        mode = _PRIVATE
        with suppress(OSError):  # it is not there yet, or cannot be used, as is said elsewhere
            mode = _SHARED if _mode(self.root) == _SHARED else _PRIVATE
        os.umask(~mode & 0o777)

    def _share(self, group: str | None, group_id: int | None) -> None:
        """Set the modes of the directory and everything in it, unless it has them already."""
        mode = _PRIVATE if group_id is None else _SHARED
        before = _mode(self.root)
        if before == mode and group_id in (None, self.root.stat().st_gid):
            return
        try:
            self.root.chmod(_PRIVATE)  # shut until everything in it is right
            for where, directories, files in os.walk(self.root):
                for name in [*directories, *files]:
                    # What another user has made here, say root by `kanalony recover`, is behind a shut door.
                    with suppress(FileNotFoundError, *([PermissionError] if group_id is None else [])):
                        self._set_mode(Path(where) / name, mode, group_id)
            self._set_mode(self.root.resolve(), mode, group_id)
        except PermissionError as error:
            if group_id is not None:
                reason = f"{error.filename} cannot be given to the group {group}: {error.strerror}"
                raise WrongUse(reason, "run it as the owner of --data and as a member of --group") from error
            log.warning("%s has the mode %o, and this user may not make it private", self.root, before)
            return
        level = logging.WARNING if before & ~mode & 0o077 else logging.INFO
        log.log(level, "changed the mode of %s from %o to %o, and of what is in it", self.root, before, mode)
        for parent in self.root.resolve().parents if group_id is not None else ():
            state = parent.stat()
            if not state.st_mode & (stat.S_IXOTH | (stat.S_IXGRP if state.st_gid == group_id else 0)):
                log.warning("members of %s cannot reach %s; allow it with chmod o+x %s", group, self.root, parent)

    def _set_mode(self, path: Path, mode: int, group_id: int | None) -> None:
        """Set the mode and group of one file or directory. Raises FileNotFoundError when another process has renamed
        or deleted it.
        """
        kind = path.lstat().st_mode
        if group_id is not None and not stat.S_ISLNK(kind):
            os.chown(path, -1, group_id)
        if stat.S_ISDIR(kind):
            path.chmod(mode & ~0o077 if path in self._locked_in() else mode)
        elif stat.S_ISREG(kind):
            # An open segment keeps its mode when it is sealed; until then nobody gets into its directory.
            is_locked = path.suffix == ".lock" or path.parent in (self.journal, self.address_keys)
            path.chmod(0o666 & (_PRIVATE if is_locked else mode))

    def _marked(self) -> bool:
        try:
            text = (self.root / MARKER).read_text(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise StorageError(f"{error.filename} cannot be read: {error.strerror}", "check its permissions") from error
        if text != _MARKER_TEXT.format(LAYOUT):
            raise FormatError(
                f"{self.root / MARKER} says {text.strip()!r}; this version reads layout {LAYOUT}",
                "use the version of kanalony that wrote it, or a later one",
            )
        return True

    def add_spools(self, spools: Iterable[Path]) -> None:
        """Make these directories further places for what this one has no room for, and note them, so that readers of
        this one find them. Raises as `writable` does, and WrongUse for a directory that is this one or belongs to
        another.
        """
        for root in spools:
            spool = DataDirectory._prepared(root)
            if spool.root.resolve() == self.root.resolve():
                raise WrongUse(f"{root} is the data directory itself", "name another directory with --spool")
            spool._belong_to(self)
            link = self.spools / hashlib.sha256(os.fsencode(spool.root.resolve())).hexdigest()[:16]
            try:
                self.spools.mkdir(exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(spool.root.resolve())
                    sync_directory(self.spools)
            except OSError as error:
                raise StorageError(f"{link} cannot be made: {error.strerror}", "free some space in --data") from error

    def _belong_to(self, owner: "DataDirectory") -> None:
        """Bind a spool directory to one data directory: a second one would take its workers for dead."""
        note = self.root / "spool-of"
        name = f"{owner.root.resolve()}\n"
        try:
            with note.open("x") as file:
                file.write(name)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            if note.read_text() != name:
                raise WrongUse(
                    f"{self.root} is the spool directory of {note.read_text().strip()}",
                    f"name another one with --spool, or delete {note} if that is gone",
                ) from None

    def places(self) -> list["DataDirectory"]:
        """This directory and its spool directories. Raises StorageError when one of them is not there: what it holds
        would be taken for lost.
        """
        places = [self]
        for link in sorted(self.spools.iterdir()) if self.spools.is_dir() else []:
            target = link.readlink()
            if not (target / MARKER).exists():
                raise StorageError(
                    f"the spool directory {target} is not there", f"mount it, or delete {link} to forget it"
                )
            places.append(DataDirectory(target))
        return places

    def journals(self) -> list[Path]:
        """All journals, of all places."""
        found = [path for place in self.places() for path in _listed(place.journal)]
        return sorted(path for path in found if JOURNAL_NAME.fullmatch(path.name))

    def segments(self) -> list[Path]:
        """All segments of all places, open and sealed, in order of their names, so of their start."""
        # Open ones first: a segment sealed in between is seen twice, never missed.
        places = self.places()
        directories = [place.open for place in places] + [place.sealed for place in places]
        listed = [path for directory in directories if directory.is_dir() for path in _listed(directory)]
        found = {path.name: path for path in listed if path.suffix == ".lz4"}
        return [found[name] for name in sorted(found)]


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _group_id(group: str | None) -> int | None:
    try:
        return None if group is None else grp.getgrnam(group).gr_gid
    except KeyError:
        raise WrongUse(f"there is no group {group!r}", "name a group of this machine with --group") from None


def _listed(directory: Path) -> list[Path]:
    """What is in a directory. Raises StorageError when this user may not know."""
    try:
        return list(directory.iterdir())
    except PermissionError as error:
        raise StorageError(
            f"{directory} can be read by the user of the collector only", "name sealed segments, or do it as that user"
        ) from error


def open_lock(path: Path) -> IO[str]:
    """Open a lock file, created when missing. Only its owner can open it: read permission is enough to lock a file."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")


def segments_of(directories: Iterable[Path], worker_id: int) -> list[Path]:
    """One worker's segments in some directories, by first sequence number."""
    mine = [path for directory in directories for path in directory.glob(f"*_{worker_name(worker_id)}_*.lz4")]
    return sorted(mine, key=lambda path: path.name.rsplit("_", 1)[1])


def is_sealed(path: Path) -> bool:
    """Whether a segment must be complete: everywhere but among the open ones."""
    return path.absolute().parent.name != "open"


def sync_directory(directory: Path) -> None:
    """fsync: names created, renamed or removed in the directory are durable after this."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
