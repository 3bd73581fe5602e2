from collections.abc import Callable
from mmap import mmap
from typing import Self

from typing_extensions import Buffer, disjoint_base

HEADER_SIZE: int
"""Bytes before the first block of a journal."""

WATERMARK_OFFSETS: tuple[int, int]
"""Where in the header the two watermarks are."""

BLOCK_UNIT: int
"""The size of a block in bytes is a multiple of this."""

MAX_BLOCKS: int
"""The most blocks of a journal."""

LENGTH_OFFSET: int
"""Where in a record its length is: u32, in bytes."""

RECEIVED_AT_OFFSET: int
"""Where in a record its time of receipt is: u64, µs since 1970."""

ACK_LEVELS: tuple[str, ...]
"""What a 200 means; files have the index."""

_Value = str | bytes | None

@disjoint_base
class Blocks:
    """The blocks of one journal that this process writes.

    One thread appends; another takes full blocks and frees them.
    """

    def __new__(
        cls,
        mapping: mmap,
        block_size: int,
        block_count: int,
        worker_id: int,
        synced: bool,
        on_full: Callable[[], object],
    ) -> Self:
        """Starts with every block free.

        Args:
            mapping: the whole journal, writable.
            block_size: bytes, a multiple of BLOCK_UNIT.
            block_count: 1 to MAX_BLOCKS.
            worker_id: part of every record's checksum.
            synced: every append is on the disk when it returns.
            on_full: called whenever a block joins the queue of full ones.

        Raises:
            ValueError: the sizes do not fit each other.
        """

    def append(
        self,
        method: _Value,
        path: _Value,
        remote_addr: bytes | None,
        forwarded_for: _Value,
        user_agent: _Value,
        referer: _Value,
        query: _Value,
        body: bytes | None = None,
        content_type: _Value = None,
        content_encoding: _Value = None,
        *others: _Value,
    ) -> int:
        """Stores one request. The values are those of its fields in order of kanalony.core.frames.FIELD_NAMES.

        A str is a WSGI string: latin-1, one character a byte. None and empty are the same.

        Args:
            method: `GET` or another.
            path: the path, as the server passes it on.
            remote_addr: the client's address: 4 or 16 bytes, network order.
            forwarded_for: the X-Forwarded-For header.
            user_agent: the User-Agent header.
            referer: the Referer header.
            query: the query string, undecoded.
            body: the body, undecoded.
            content_type: the Content-Type header.
            content_encoding: the Content-Encoding header.
            others: the fields behind these.

        Returns:
            The time of receipt in µs since 1970; 0, with nothing stored, when no block is free or after `refuse`.

        Raises:
            ValueError: a str is not latin-1.
            TypeError: a value is of another type, or there are more values than fields.
            OverflowError: the request does not fit in a block.
            OSError: a synced append could not be written to the disk. The request may be stored, but must not be
                acknowledged.
        """

    def hand_over(self, age: int) -> None:
        """Queues the active block, unless it is empty or was opened less than `age` µs ago."""

    def refuse(self) -> None:
        """Makes every further `append` return 0."""

    def release(self) -> None:
        """Lets go of the mapping, so that a child process can close it while its parent goes on with it."""

    def full_block(self, position: int) -> tuple[memoryview, int] | None:
        """Returns (records, first sequence number) of a block in the queue of full ones; None beyond its end.

        Release the view before freeing the block.

        Args:
            position: 0 is the oldest block.
        """

    def free(self, count: int) -> None:
        """Raises the watermark to the last request of the `count` oldest full blocks, and frees these blocks.

        Their requests must be durable in segments.

        Raises:
            IndexError: fewer blocks are full.
        """

    @property
    def accepted(self) -> int:
        """Requests stored so far: also the sequence number of the last one."""

    @property
    def full_blocks(self) -> int:
        """Blocks in the queue of full ones."""

    @property
    def free_blocks(self) -> int:
        """Blocks that can be opened."""

def build_record(worker_id: int, sequence: int, received_at: int, *values: _Value) -> bytes:
    """Builds a record with any time of receipt, for segments of simulated traffic.

    Args:
        worker_id: part of the checksum.
        sequence: the sequence number.
        received_at: µs since 1970.
        values: as those of `Blocks.append`, with its errors.
    """

def scan_block(
    buffer: Buffer, start: int, end: int, worker_id: int, watermark: int
) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int]]]:
    """Finds the pending records of a journal block.

    Args:
        buffer: the journal.
        start: offset of the block.
        end: offset of its end.
        worker_id: part of the checksums.
        watermark: only records with a higher sequence number are pending.

    Returns:
        Runs of records with consecutive sequence numbers, as (start, end, first sequence number, number of requests),
        and damaged ranges as (start, end).

    Raises:
        ValueError: the block is not within the buffer.
    """
