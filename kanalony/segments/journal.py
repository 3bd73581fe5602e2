"""The journal file: created, locked and mapped by a worker; read whole by readers and by recovery.

The layout is docs/segment-format.md, section 4.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kanalony.core.frames import VERSION, crc32c
from kanalony.core.journal import ACK_LEVELS, HEADER_SIZE, LENGTH_OFFSET, WATERMARK_OFFSETS, Blocks, scan_block
from kanalony.errors import FormatError, StorageError
from kanalony.segments.names import JOURNAL_NAME, DataDirectory, sync_directory, worker_name

# Persisted numbers, as docs/segment-format.md has them.
MAGIC = b"KNJOURNL"
_HEADER = struct.Struct(
    "<8sHBBIIIQQ64s"
)  # magic, version, ack, n, block size, block count, zero, worker id, created_at, host
_CRC = struct.Struct("<I")
_WATERMARK = struct.Struct("<QI")
_LENGTH = struct.Struct("<I")


class Journal:
    """A journal this process writes. `blocks` appends to it."""

    def __init__(
        self,
        data: DataDirectory,
        host: str,
        *,
        ack: str,
        block_size: int,
        block_count: int,
        on_full: Callable[[], object],
    ) -> None:
        """Create, lock and map a journal with a worker id of its own. Raises StorageError when the disk has no room for
        it.
        """
        self.data = data
        self.host = host
        self.ack = ACK_LEVELS.index(ack)
        self.worker_id = int.from_bytes(os.urandom(8), "little")
        self.path = data.journal / f"{worker_name(self.worker_id)}.journal"
        size = HEADER_SIZE + block_size * block_count
        # Locked under another name first: nobody can adopt it between its creation and the lock.
        young = self.path.with_suffix(".new")
        try:
            self._file = young.open("xb+")
        except OSError as error:
            raise StorageError(f"{young} cannot be made: {os.strerror(error.errno or 0)}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)  # its holder looks for files that dead workers left unfinished,
            if self.is_deleted():  # and takes this one for one of these
                raise FileNotFoundError(errno.ENOENT, "deleted while it was made", str(young))
            os.posix_fallocate(self._file.fileno(), 0, size)
            header = _HEADER.pack(
                MAGIC,
                VERSION,
                self.ack,
                len(host),
                block_size,
                block_count,
                0,
                self.worker_id,
                time.time_ns() // 1000,
                host.encode(),
            )
            os.pwrite(self._file.fileno(), header + _CRC.pack(crc32c(header)), 0)
            os.fsync(self._file.fileno())
            young.rename(self.path)
            sync_directory(data.journal)
        except OSError as error:
            self._file.close()
            young.unlink(missing_ok=True)
            raise StorageError(
                f"no journal of {size / 2**20:.0f} MiB can be made in {data.journal}: {os.strerror(error.errno or 0)}",
                "free some disk space, or make the journal smaller (--journal-blocks)",
            ) from error
        self._mapping = mmap.mmap(self._file.fileno(), size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self.blocks = Blocks(self._mapping, block_size, block_count, self.worker_id, ack == "synced", on_full)

    def sync(self) -> None:
        """fsync: the watermark is durable after this."""
        os.fsync(self._file.fileno())

    def is_deleted(self) -> bool:
        """Whether somebody has deleted the file: what is appended is gone when this process ends."""
        return os.fstat(self._file.fileno()).st_nlink == 0

    def forget(self) -> None:
        """Let go of it without a trace, as a child process must: its parent goes on writing, and holds the lock."""
        self._file.close()
        self.blocks.release()
        with contextlib.suppress(BufferError):  # the parent's sealer was looking at a block just then
            self._mapping.close()

    def remove(self) -> None:
        """Delete the journal: all its events are durable in segments."""
        self.path.unlink()
        sync_directory(self.data.journal)


@dataclass(frozen=True)
class Run:
    """Pending records one behind the other in a block, with consecutive sequence numbers. `records` is their bytes."""

    records: bytes
    first_sequence: int
    request_count: int

    @property
    def end_sequence(self) -> int:
        return self.first_sequence + self.request_count

    def part(self, first_sequence: int, end_sequence: int) -> "Run":
        """The records numbered [first_sequence, end_sequence), which must be within the run."""
        start = 0
        for _ in range(first_sequence - self.first_sequence):
            start += _LENGTH.unpack_from(self.records, start + LENGTH_OFFSET)[0]
        end = start
        for _ in range(end_sequence - first_sequence):
            end += _LENGTH.unpack_from(self.records, end + LENGTH_OFFSET)[0]
        return Run(self.records[start:end], first_sequence, end_sequence - first_sequence)


@dataclass(frozen=True)
class JournalContents:
    """What a reader finds in a journal: pending runs in order of sequence, and damaged ranges [start, end) with a
    reason.
    """

    path: Path
    worker_id: int
    host: str
    ack: int
    watermark: int
    runs: list[Run]
    damaged: list[tuple[int, int, str]]


def is_in_use(path: Path) -> bool:
    """Whether a running worker holds a journal. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def read_journal(path: Path) -> JournalContents:
    """Everything pending in a journal, also while it is being written: every event acknowledged before the call is in
    the answer or in a segment listed after it.

    Raises FormatError when the file is not a journal or of a later version, OSError when it cannot be read.
    """
    return parse_journal(path, path.read_bytes())


def parse_journal(path: Path, content: bytes) -> JournalContents:
    """Everything pending in the content of a journal. Raises FormatError as `read_journal` does."""
    header = content[: _HEADER.size]
    damaged: list[tuple[int, int, str]] = []
    name = JOURNAL_NAME.fullmatch(path.name)
    host = ""
    ack = 0
    if (
        len(content) >= HEADER_SIZE
        and crc32c(header) == _CRC.unpack_from(content, _HEADER.size)[0]
        and header.startswith(MAGIC)
    ):
        _, version, ack, n, block_size, block_count, _, worker_id, _, host_bytes = _HEADER.unpack(header)
        if version > VERSION:
            raise FormatError(
                f"{path} is a journal of version {version}; this version reads up to {VERSION}", "use a later kanalony"
            )
        if name and name[1] != worker_name(worker_id):
            raise FormatError(
                f"{path} is a copy of the journal of worker {worker_name(worker_id)}", "move it elsewhere"
            )
        size = HEADER_SIZE + block_size * block_count
        if len(content) != size:
            damaged.append(
                (min(len(content), size), max(len(content), size), "the file is not as long as its header says")
            )
        host = host_bytes[:n].decode("ascii", "replace")
    elif name:
        # The blocks' boundaries are lost with the header, but records are found by their own marks.
        worker_id, block_size = int(name[1], 16), len(content)
        damaged.append((0, min(len(content), HEADER_SIZE), "the header is not valid"))
    else:
        raise FormatError(f"{path} is not a journal", "name a file that kanalony wrote, under its own name")
    watermark = 0
    for offset in WATERMARK_OFFSETS:
        slot = content[offset : offset + _WATERMARK.size]
        if not any(slot):
            continue
        if len(slot) == _WATERMARK.size and _WATERMARK.unpack(slot)[1] == crc32c(slot[:8]):
            watermark = max(watermark, _WATERMARK.unpack(slot)[0])
        else:
            damaged.append((offset, offset + _WATERMARK.size, "a watermark's checksum does not match"))
    runs = []
    for start in range(HEADER_SIZE, len(content), max(block_size, 1)):
        found, bad = scan_block(content, start, min(start + block_size, len(content)), worker_id, watermark)
        runs += [Run(content[begin:end], first, count) for begin, end, first, count in found]
        damaged += [(begin, end, "no valid record stands here") for begin, end in bad]
    runs.sort(key=lambda run: run.first_sequence)
    return JournalContents(path, worker_id, host, ack, watermark, runs, damaged)
