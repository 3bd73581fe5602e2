"""The journal file: a worker creates, locks and maps it; readers and recovery read it whole.

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

from kanalony import durable
from kanalony.core.frames import VERSION, crc32c
from kanalony.core.journal import ACK_LEVELS, HEADER_SIZE, LENGTH_OFFSET, WATERMARK_OFFSETS, Blocks, scan_block
from kanalony.errors import FormatError, StorageError
from kanalony.segments.damage import Damage
from kanalony.segments.directory import DataDirectory
from kanalony.segments.names import JOURNAL_NAME, YOUNG_JOURNAL, worker_name

# Persisted numbers, as docs/segment-format.md has them.
MAGIC = b"KNJOURNL"
# magic, version, ack, n, block size, block count, zero, worker id, created_at, host
_HEADER = struct.Struct("<8sHBBIIIQQ64s")
_CRC = struct.Struct("<I")
_WATERMARK = struct.Struct("<QI")
_LENGTH = struct.Struct("<I")


class Journal:
    """A journal that this process writes. `blocks` appends to it."""

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
        """Creates, locks and maps a journal with a new worker id.

        Args:
            data: The data directory or spool directory that gets the journal.
            host: Name of this host for the headers of journal and segments.
            ack: What a 200 means: one of ACK_LEVELS.
            block_size: Bytes of a block, a multiple of 4,096.
            block_count: Number of blocks.
            on_full: Called whenever a block joins the queue of full ones.

        Raises:
            StorageError: The disk has no room for the journal.
        """
        self.data = data
        self.host = host
        self.ack = ACK_LEVELS.index(ack)
        self.worker_id = int.from_bytes(os.urandom(8), "little")
        self.path = data.journal / f"{worker_name(self.worker_id)}.journal"
        size = HEADER_SIZE + block_size * block_count
        # Locked under another name first: no other process can adopt it between its creation and the lock.
        young = self.path.with_suffix(YOUNG_JOURNAL)
        try:
            self._file = young.open("xb+")
        except OSError as error:
            raise StorageError(f"cannot create {young}: {os.strerror(error.errno or 0)}") from error
        try:
            # Another process may hold the lock while it clears unfinished files of dead workers, and delete this one.
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if self.is_deleted():
                raise FileNotFoundError(errno.ENOENT, "deleted during its creation", str(young))
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
            os.fsync(self._file.fileno())  # fsync: header and size are durable before the name
            young.rename(self.path)
            durable.sync_directory(data.journal)
            self._mapping = mmap.mmap(self._file.fileno(), size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError as error:
            self._file.close()
            young.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            raise StorageError(
                f"cannot create a journal of {size / 2**20:.0f} MiB in {data.journal}: {os.strerror(error.errno or 0)}",
                "free some disk space, or make the journal smaller (--journal-blocks)",
            ) from error
        self.blocks = Blocks(self._mapping, block_size, block_count, self.worker_id, ack == "synced", on_full)

    def sync(self) -> None:
        """Makes the watermark durable.

        Raises:
            OSError: The disk refuses.
        """
        os.fsync(self._file.fileno())  # fsync: the watermark is durable after this line

    def is_deleted(self) -> bool:
        """Whether the file was deleted: then all that is appended is lost when this process ends."""
        return os.fstat(self._file.fileno()).st_nlink == 0

    def forget(self) -> None:
        """Closes the journal in a child process and leaves the file alone: the parent holds the lock and goes on."""
        self._file.close()
        self.blocks.release()
        with contextlib.suppress(BufferError):  # the parent's sealer had a view of a block at the fork
            self._mapping.close()

    def remove(self) -> None:
        """Deletes the journal, when all its requests are durable in segments.

        Raises:
            OSError: The disk refuses.
        """
        durable.remove(self.path)


@dataclass(frozen=True)
class RecordRange:
    """Records with consecutive sequence numbers. `content` is their bytes, one record after another."""

    content: bytes
    first_sequence: int
    request_count: int

    @property
    def end_sequence(self) -> int:
        """The sequence number after the last record's."""
        return self.first_sequence + self.request_count

    def part(self, first_sequence: int, end_sequence: int) -> "RecordRange":
        """Returns the records numbered [first_sequence, end_sequence), all of which must be in this range."""
        start = 0
        for _ in range(first_sequence - self.first_sequence):
            start += _LENGTH.unpack_from(self.content, start + LENGTH_OFFSET)[0]
        end = start
        for _ in range(end_sequence - first_sequence):
            end += _LENGTH.unpack_from(self.content, end + LENGTH_OFFSET)[0]
        return RecordRange(self.content[start:end], first_sequence, end_sequence - first_sequence)


@dataclass(frozen=True)
class JournalContents:
    """A journal as a reader finds it.

    Attributes:
        path: The file.
        worker_id: From the header, or from the file name when the header is damaged.
        host: From the header; empty when that is damaged.
        ack: From the header: an index of ACK_LEVELS; 0 when the header is damaged.
        watermark: The highest sequence number known to be durable in segments; 0 for none.
        pending: The records above the watermark, in order. Segments may hold some of them already.
        damaged: Ranges of the file that do not hold what they should.
    """

    path: Path
    worker_id: int
    host: str
    ack: int
    watermark: int
    pending: list[RecordRange]
    damaged: list[Damage]


def is_in_use(path: Path) -> bool:
    """Whether a running worker holds a journal.

    Raises:
        OSError: The journal cannot be read.
    """
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def read_journal(path: Path) -> JournalContents:
    """Reads a journal, also while a worker writes it.

    Every request acknowledged before the call is in the result, or in a segment listed after the call.

    Raises:
        FormatError: The file is not a journal, a copy of another one, or of a later version.
        OSError: The file cannot be read.
    """
    return parse_journal(path, path.read_bytes())


def parse_journal(path: Path, content: bytes) -> JournalContents:
    """Parses the content of a journal.

    Args:
        path: The file, for messages; its name has the worker id when the header is damaged.
        content: All of its bytes.

    Raises:
        FormatError: As `read_journal`.
    """
    header = content[: _HEADER.size]
    damaged: list[Damage] = []

    def damage(start: int, end: int, reason: str) -> None:
        damaged.append(Damage(path, start, end, reason))

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
            damage(min(len(content), size), max(len(content), size), "the file size does not match its header")
        host = host_bytes[:n].decode("ascii", "replace")
    elif name:
        # The block boundaries are lost with the header, but marks and checksums find the records.
        worker_id, block_size = int(name[1], 16), len(content)
        damage(0, min(len(content), HEADER_SIZE), "the header is not valid")
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
            damage(offset, offset + _WATERMARK.size, "a watermark's checksum does not match")
    pending = []
    for start in range(HEADER_SIZE, len(content), max(block_size, 1)):
        found, bad = scan_block(content, start, min(start + block_size, len(content)), worker_id, watermark)
        pending += [RecordRange(content[begin:end], first, count) for begin, end, first, count in found]
        for begin, end in bad:
            damage(begin, end, "no valid record")
    pending.sort(key=lambda records: records.first_sequence)
    return JournalContents(path, worker_id, host, ack, watermark, pending, damaged)
