from collections.abc import Iterable
from typing import NamedTuple

from typing_extensions import Buffer

VERSION: int
"""The version of the format that this code writes, and the highest that it reads."""

HEADER_SIZE_MAX: int
"""Bytes of the longest segment header."""

PREFIX_SIZE_MAX: int
"""Bytes of the longest frame prefix."""

TRAILER_SIZE: int
"""Bytes of a trailer."""

PREFIX_START: bytes
"""The first bytes of every frame prefix."""

OTHER_TYPE: int
"""The event type of queries without one, and of types above 254."""

FIELD_NAMES: tuple[str, ...]
"""The fields of a request, in order of their tags, which count from 1."""

MAX_EXPANDED: int
"""The most bytes that a request may come to: its body decompressed, and what its events have in common times their
number.
"""

class Header(NamedTuple):
    """The header of a segment. `size` is in bytes, times are µs since 1970."""

    size: int
    version: int
    ack: int
    host: str
    worker_id: int
    first_sequence: int
    created_at: int

class Prefix(NamedTuple):
    """The prefix of a data frame.

    `size` and lengths are in bytes, times are µs since 1970; `types` counts requests by the event type in their query.
    """

    size: int
    frame_length: int
    frame_crc: int
    content_length: int
    request_count: int
    worker_id: int
    first_sequence: int
    first_received: int
    last_received: int
    types: dict[int, int]

class Trailer(NamedTuple):
    """The trailer of a sealed segment: sums over its frames. Times are µs since 1970."""

    frame_count: int
    worker_id: int
    first_sequence: int
    request_count: int
    content_length: int
    first_received: int
    last_received: int

def crc32c(data: Buffer, previous: int = 0, *, by_table: bool = False) -> int:
    """Returns the CRC-32C of the data.

    Args:
        data: the bytes.
        previous: the CRC of the bytes before these.
        by_table: use the portable implementation, for tests.
    """

def build_header(worker_id: int, host: str, ack: int, first_sequence: int, created_at: int) -> bytes:
    """Builds a segment header.

    Args:
        worker_id: the worker that received the requests.
        host: the name of its host, ASCII.
        ack: an index of kanalony.core.journal.ACK_LEVELS.
        first_sequence: the sequence number of the first request.
        created_at: µs since 1970.

    Raises:
        ValueError: the host name is too long.
    """

def parse_header(buffer: Buffer) -> Header | None:
    """Returns the header at the start of the buffer, of any version, or None."""

def build_prefix(content: Buffer, worker_id: int, first_sequence: int, frame: Buffer) -> bytes:
    """Builds the prefix of a data frame.

    Args:
        content: the records.
        worker_id: the worker that received the requests.
        first_sequence: the sequence number of the first record.
        frame: `content`, compressed.

    Raises:
        ValueError: `content` is empty, or is not exactly valid records of this worker, numbered from first_sequence.
    """

def parse_prefix(buffer: Buffer) -> Prefix | None:
    """Returns the prefix at the start of the buffer, or None."""

def build_trailer(trailer: Trailer) -> bytes:
    """Builds the trailer of a segment."""

def parse_trailer(buffer: Buffer) -> Trailer | None:
    """Returns the trailer at the start of the buffer, or None."""

def read_records(
    content: Buffer, worker_id: int, first_sequence: int
) -> list[tuple[int, int, *tuple[bytes | None, ...]]] | None:
    """Decodes records.

    Returns:
        (sequence, received_at in µs since 1970, value of every field in order of FIELD_NAMES) of every record; None
        unless `content` is exactly valid records of this worker, numbered from first_sequence.
    """

def event_limit(values: Iterable[bytes | None]) -> int:
    """Returns the most events that a request with these values may hold.

    Each event repeats every field but the body, so without a limit a small request could become any amount of data:
    MAX_EXPANDED is for that sum.

    Args:
        values: of the fields in order of FIELD_NAMES.
    """
