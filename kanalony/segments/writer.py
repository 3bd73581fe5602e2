"""Writes one segment: frames behind their prefixes, synced, sealed by a rename."""

import errno
import fcntl
import os
import time
from pathlib import Path

import lz4.frame

from kanalony.core.frames import build_header, build_prefix, build_trailer, parse_prefix
from kanalony.durable import sync_directory
from kanalony.segments.directory import DataDirectory
from kanalony.segments.names import SegmentName
from kanalony.segments.tally import Tally


def compress(records: bytes | memoryview) -> bytes:
    """Returns records as the LZ4 frame of a segment."""
    frame: bytes = lz4.frame.compress(
        records, block_size=lz4.frame.BLOCKSIZE_MAX4MB, content_checksum=True, store_size=True
    )
    return frame


class SegmentWriter:
    """A segment that is being written, in the directory of open segments.

    Every method may raise OSError when the disk refuses. After that only `abandon` may be called.

    Attributes:
        name: The file name that the sealed segment gets.
        path: The file while it is open.
        opened_at: Seconds of the monotonic clock.
        size: Bytes written so far. Those written before the last `sync` are durable.
    """

    def __init__(
        self,
        data: DataDirectory,
        host: str,
        worker_id: int,
        ack: int,
        first_sequence: int,
        *,
        created_at: int | None = None,
        suffix: str = "",
    ) -> None:
        """Creates and locks the file, and writes the segment header.

        Args:
            data: The data directory or spool directory that gets the segment.
            host: Name of the host that received the requests.
            worker_id: The worker that received them.
            ack: What a 200 meant: an index of ACK_LEVELS.
            first_sequence: The sequence number of the first request.
            created_at: µs since 1970; by default now.
            suffix: Added to the file name until the segment is sealed.

        Raises:
            OSError: The disk refuses; no file is left.
        """
        created_at = created_at or time.time_ns() // 1000
        # A sealed segment is never overwritten: an earlier recovery that died may have left one of the same name.
        while (data.sealed / str(SegmentName(created_at, host, worker_id, first_sequence))).exists():
            created_at += 1
        self._data = data
        self._worker_id = worker_id
        self._tally = Tally(first_sequence)
        self.name = str(SegmentName(created_at, host, worker_id, first_sequence))
        self.path = data.open / (self.name + suffix)
        self.opened_at = time.monotonic()
        self.size = self._durable = 0
        self._file = self.path.open("xb", buffering=0)
        try:
            # Recovery takes the writer of an unlocked segment for dead.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(build_header(worker_id, host, ack, first_sequence, created_at))
            sync_directory(data.open)  # fsync: the name is durable after this line
        except OSError:
            self.abandon()
            raise

    def _write(self, *parts: bytes) -> None:
        rest = memoryview(b"".join(parts))
        while rest:  # disk write: a full disk may accept a part, and refuse the rest at the next call
            written = os.write(self._file.fileno(), rest)
            self.size += written
            rest = rest[written:]

    def add(self, records: bytes | memoryview, first_sequence: int) -> None:
        """Appends records as one frame.

        Raises:
            ValueError: The records are not valid, or not numbered from first_sequence.
        """
        frame = compress(records)
        prefix = build_prefix(records, self._worker_id, first_sequence, frame)
        self._write(prefix, frame)
        parsed = parse_prefix(prefix)
        assert parsed
        self._tally.add(parsed)

    def sync(self) -> None:
        """Makes durable what was added so far.

        Raises:
            FileNotFoundError: The file was deleted.
        """
        if os.fstat(self._file.fileno()).st_nlink == 0:
            self._durable = 0
            raise FileNotFoundError(errno.ENOENT, "deleted while it was written", str(self.path))
        os.fdatasync(self._file.fileno())  # fsync: the frames so far are durable after this line
        self._durable = self.size

    def seal(self) -> None:
        """Writes the trailer and moves the segment to the sealed ones."""
        self._write(build_trailer(self._tally.trailer(self._worker_id)))
        self.sync()
        self.path.rename(self._data.sealed / self.name)
        sync_directory(self._data.sealed)  # fsync: the new name first, so that a power loss never leaves none
        sync_directory(self._data.open)
        self._file.close()

    def abandon(self) -> Path | None:
        """Closes the file after a failure, and cuts off what is not known to be durable.

        The caller writes what was not synced to another segment: after a failed fsync the kernel may have dropped it.

        Returns:
            The file, for `seal_abandoned`; None when nothing durable is left in it.
        """
        try:
            if not self._durable:
                self.path.unlink(missing_ok=True)
            os.ftruncate(self._file.fileno(), self._durable)
        except OSError:
            pass  # readers expect a torn tail, and frames that another segment holds, too
        finally:
            self._file.close()
        return self.path if self._durable and self.path.exists() else None
