"""Writing one segment: frames behind their prefixes, synced, sealed by a rename."""

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
    """Records as the LZ4 frame of a segment."""
    frame: bytes = lz4.frame.compress(
        records, block_size=lz4.frame.BLOCKSIZE_MAX4MB, content_checksum=True, store_size=True
    )
    return frame


class SegmentWriter:
    """A segment being written in the directory of open ones. Every method may raise OSError; after that only `abandon`
    may be called.

    What `sync` has returned for is durable. `size` is in bytes, `opened_at` in seconds of the monotonic clock.
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
        """Begin a segment. `created_at` (µs since 1970) is now unless told; `suffix` is added to its name until it is
        sealed.
        """
        created_at = created_at or time.time_ns() // 1000
        # Nothing sealed is ever written over: what a recovery that died has sealed, this one may be sealing better.
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
            fcntl.flock(
                self._file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # whoever finds it unlocked may take its writer for dead
            self._write(build_header(worker_id, host, ack, first_sequence, created_at))
            sync_directory(data.open)
        except OSError:
            self.abandon()
            raise

    def _write(self, *parts: bytes) -> None:
        rest = memoryview(b"".join(parts))
        while rest:  # disk write: a full disk may take a part and refuse the rest at the next call
            written = os.write(self._file.fileno(), rest)
            self.size += written
            rest = rest[written:]

    def add(self, records: bytes | memoryview, first_sequence: int) -> None:
        """Append records as one frame. Raises ValueError unless they are valid and numbered from first_sequence."""
        frame = compress(records)
        prefix = build_prefix(records, self._worker_id, first_sequence, frame)
        self._write(prefix, frame)
        told = parse_prefix(prefix)
        assert told
        self._tally.add(told)

    def sync(self) -> None:
        if os.fstat(self._file.fileno()).st_nlink == 0:
            self._durable = 0
            raise FileNotFoundError(errno.ENOENT, "deleted while it was written", str(self.path))
        os.fdatasync(self._file.fileno())  # fsync: what was added so far is durable after this line
        self._durable = self.size

    def seal(self) -> None:
        """Finish the segment and move it to the sealed ones."""
        self._write(build_trailer(self._tally.trailer(self._worker_id)))
        self.sync()
        self.path.rename(self._data.sealed / self.name)
        sync_directory(self._data.sealed)  # fsync: the new name first, so that no crash leaves none
        sync_directory(self._data.open)
        self._file.close()

    def abandon(self) -> Path | None:
        """After a failure: cut off what is not known to be durable, and never write to the file again.

        The caller writes what was not synced to another segment: after a failed fsync the kernel may have dropped it.
        Returns the file when something durable is left in it, for `seal_abandoned`.
        """
        try:
            if not self._durable:
                self.path.unlink(missing_ok=True)
            os.ftruncate(self._file.fileno(), self._durable)
        except OSError:
            pass  # then readers meet a torn tail, or frames that stand in another segment too: both are provided for
        finally:
            self._file.close()
        return self.path if self._durable and self.path.exists() else None
