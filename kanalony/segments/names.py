"""Where things are in a data directory, and what segments are called: docs/segment-format.md, section 3."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kanalony.errors import FormatError, StorageError, WrongUse

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MARKER = "kanalony-data"
LAYOUT = 1
_YOUNG_MARKER = f".{MARKER}."
_MARKER_TEXT = "kanalony data directory, layout {}\n"
_SEGMENT_NAME = re.compile(r"(\d{8}T\d{6}\.\d{6})Z_([A-Za-z0-9.-]{0,63})_([0-9a-f]{16})_([0-9a-f]{16})\.lz4")
JOURNAL_NAME = re.compile(r"([0-9a-f]{16})\.journal")


def _is_ours(name: str) -> bool:
    """Whether a directory with this name in it may become a data directory: that of a new file system, or one that
    another collector is just making."""
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
        """A data directory to write, made when missing.

        Raises WrongUse when the path holds something else, FormatError when a later version made it, StorageError when
        it cannot be written.
        """
        data = cls(root)
        try:
            if not data._marked():
                if root.exists() and (not root.is_dir() or any(not _is_ours(name) for name in os.listdir(root))):
                    what = "holds files that are not kanalony's" if root.is_dir() else "is a file"
                    raise WrongUse(f"{root} {what}", "name an empty or a new directory with --data")
                data._mark()
            for directory in (data.journal, data.open, data.sealed, data.quarantine):
                directory.mkdir(parents=True, exist_ok=True)
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
        self.root.mkdir(parents=True, exist_ok=True)
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
        sync_directory(self.root.resolve().parent)

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
        another."""
        for root in spools:
            spool = DataDirectory.writable(root)
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
        would be taken for lost."""
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
        found = [path for place in self.places() for path in place.journal.iterdir()]
        return sorted(path for path in found if JOURNAL_NAME.fullmatch(path.name))

    def segments(self) -> list[Path]:
        """All segments of all places, open and sealed, in order of their names, so of their start."""
        # Open ones first: a segment sealed in between is seen twice, never missed.
        places = self.places()
        directories = [place.open for place in places] + [place.sealed for place in places]
        found = {path.name: path for directory in directories for path in directory.glob("*.lz4")}
        return [found[name] for name in sorted(found)]


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
