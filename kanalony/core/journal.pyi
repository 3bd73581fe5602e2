from collections.abc import Callable
from mmap import mmap

from typing_extensions import Buffer

HEADER_SIZE: int
"""Bytes before the first block of a journal."""

class Blocks:
    """The blocks of one journal that this process writes. One thread appends; another takes full blocks and frees
    them.
    """

    def __init__(
        self,
        mapping: mmap,
        block_size: int,
        block_count: int,
        worker_id: int,
        synced: bool,
        on_full: Callable[[], object],
    ) -> None:
        """`mapping` is the whole journal, writable. With `synced` every append is on the disk when it returns.
        `on_full` is called whenever a block joins the queue of full ones.

        Raises ValueError when sizes do not fit each other.
        """

    def append(
        self,
        method: str | bytes | None,
        path: str | bytes | None,
        remote_addr: bytes | None,
        forwarded_for: str | bytes | None,
        user_agent: str | bytes | None,
        referer: str | bytes | None,
        query: str | bytes | None,
        body: bytes | None = None,
        content_type: str | bytes | None = None,
        content_encoding: str | bytes | None = None,
        address_token: bytes | None = None,
    ) -> int:
        """Store one request; its time of receipt in µs since 1970, or 0 when no block is free or `refuse` was called
        (nothing is stored then).

        A str is a WSGI string: latin-1, one character a byte. None and empty are the same.

        Raises ValueError when a str is not latin-1, OverflowError when the request does not fit in a block, OSError
        when a synced append could not be written to the disk; the request may have been stored all the same then, but
        must not be acknowledged.
        """

    def hand_over(self, age: int) -> None:
        """Queue the block being filled, unless it is empty or was begun less than `age` µs ago."""

    def refuse(self) -> None:
        """Take no more requests."""

    def release(self) -> None:
        """Let go of the mapping, so that it can be closed: for a child process, whose parent goes on with it."""

    def full_block(self, position: int) -> tuple[memoryview, int] | None:
        """(records, first sequence number) of a block in the queue of full ones, 0 being the oldest; None beyond its
        end. Release the view before freeing the block.
        """

    def free(self, count: int) -> None:
        """The requests of the `count` oldest full blocks are durable in segments: raise the watermark to the last of
        them and let the blocks be used again. Raises IndexError when there are not so many.
        """

    @property
    def accepted(self) -> int:
        """Requests stored so far: also the sequence number of the last one."""

    @property
    def full_blocks(self) -> int: ...
    @property
    def free_blocks(self) -> int: ...

def build_record(
    worker_id: int,
    sequence: int,
    received_at: int,
    method: str | bytes | None,
    path: str | bytes | None,
    remote_addr: bytes | None,
    user_agent: str | bytes | None,
    referer: str | bytes | None,
    query: str | bytes | None,
) -> bytes:
    """A record with a time of receipt of one's own, in µs since 1970: for segments of simulated traffic. Parts are as
    those of `Blocks.append`, with its errors.
    """

def scan_block(
    buffer: Buffer, start: int, end: int, worker_id: int, watermark: int
) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int]]]:
    """Runs of pending records in the block [start, end), as (start, end, first sequence number, number of events), and
    damaged ranges (start, end). A run has consecutive numbers, all above the watermark. Raises ValueError when the
    block is not in the buffer.
    """
