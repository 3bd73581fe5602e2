from typing import NamedTuple

from typing_extensions import Buffer

VERSION: int
HEADER_SIZE_MAX: int
PREFIX_SIZE_MAX: int
TRAILER_SIZE: int
OTHER_TYPE: int
PREFIX_START: bytes

class Header(NamedTuple):
    """What a segment begins with. `size` is in bytes, times are µs since 1970."""

    size: int
    version: int
    ack: int
    host: str
    worker_id: int
    first_sequence: int
    created_at: int

class Prefix(NamedTuple):
    """What stands before a data frame. `size` and lengths are in bytes, times are µs since 1970; `types` counts
    requests by the event type in their query.
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
    """Sums over a sealed segment."""

    frame_count: int
    worker_id: int
    first_sequence: int
    request_count: int
    content_length: int
    first_received: int
    last_received: int

def crc32c(data: Buffer, previous: int = 0, *, by_table: bool = False) -> int:
    """CRC-32C of the data, continued from `previous`. `by_table` takes the portable implementation, for tests."""

def build_header(worker_id: int, host: str, ack: int, first_sequence: int, created_at: int) -> bytes: ...
def parse_header(buffer: Buffer) -> Header | None:
    """The header at the start of the buffer, of whatever version, or None."""

def build_prefix(content: Buffer, worker_id: int, first_sequence: int, frame: Buffer) -> bytes:
    """The prefix of `frame`, which is `content` compressed. Raises ValueError unless content is at least one record and
    nothing but valid records of this worker, numbered from first_sequence.
    """

def parse_prefix(buffer: Buffer) -> Prefix | None:
    """The prefix at the start of the buffer, or None."""

def build_trailer(trailer: Trailer) -> bytes: ...
def parse_trailer(buffer: Buffer) -> Trailer | None:
    """The trailer at the start of the buffer, or None."""

_Part = bytes | None

def read_records(
    content: Buffer, worker_id: int, first_sequence: int
) -> list[tuple[int, int, _Part, _Part, _Part, _Part, _Part, _Part, _Part, _Part, _Part, _Part, _Part]] | None:
    """(sequence, received_at, and every field in order of its tag) of every record, or None unless content is nothing
    but valid records of this worker, numbered from first_sequence.
    """
