"""Reads a segment back: frames, requests, and what is damaged.

Reading never writes and never raises for damage: damaged ranges are part of the result, and what to do about them is up
to the caller.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Self

import lz4.frame

from kanalony.core.frames import (
    HEADER_SIZE_MAX,
    PREFIX_SIZE_MAX,
    PREFIX_START,
    TRAILER_SIZE,
    VERSION,
    Header,
    Prefix,
    Trailer,
    crc32c,
    parse_header,
    parse_prefix,
    parse_trailer,
    read_records,
)
from kanalony.errors import FormatError, StorageError
from kanalony.segments.damage import Damage
from kanalony.segments.names import SegmentName
from kanalony.segments.tally import Tally

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SEARCH_STEP = 1 << 20


class Request(NamedTuple):
    """One request as it was received; kanalony.bodies finds the events in it.

    `received_at` is in µs since 1970. The fields of kanalony.core.frames.FIELD_NAMES follow, in this order; an absent
    and an empty field are both None.
    """

    worker_id: int
    sequence: int
    received_at: int
    method: bytes | None = None
    path: bytes | None = None
    remote_addr: bytes | None = None
    forwarded_for: bytes | None = None
    user_agent: bytes | None = None
    referer: bytes | None = None
    query: bytes | None = None
    body: bytes | None = None
    content_type: bytes | None = None
    content_encoding: bytes | None = None
    address_token: bytes | None = None

    @property
    def fields(self) -> tuple[bytes | None, ...]:
        """The values in order of FIELD_NAMES."""
        return self[3:]

    @property
    def address(self) -> str | None:
        """remote_addr as text."""
        return str(ip_address(self.remote_addr)) if self.remote_addr else None


@dataclass(frozen=True)
class Frame:
    """A data frame whose prefix is valid and whose bytes match the prefix's checksum.

    Attributes:
        offset: Where the prefix begins in the file.
        end: The offset after the frame.
        prefix: The parsed prefix.
        compressed: The LZ4 frame.
    """

    offset: int
    end: int
    prefix: Prefix
    compressed: bytes

    @property
    def is_sized(self) -> bool:
        """Whether the LZ4 header has the content length of the prefix: decompression allocates what the header says."""
        try:
            announced: int = lz4.frame.get_frame_info(self.compressed)["content_size"]
        except RuntimeError:
            return False
        return announced == self.prefix.content_length

    def records(self) -> bytes | None:
        """Returns the decompressed records, or None when they do not match the prefix."""
        if not self.is_sized:
            return None
        try:
            content: bytes
            content, read = lz4.frame.decompress(self.compressed, return_bytes_read=True)
        except (RuntimeError, MemoryError):
            return None
        is_all = read == len(self.compressed) and len(content) == self.prefix.content_length
        return content if is_all else None

    def requests(self) -> list[Request] | None:
        """Returns the requests, or None when the content is not exactly the records that the prefix names."""
        content = self.records()
        if content is None:
            return None
        requests = decode_records(content, self.prefix.worker_id, self.prefix.first_sequence)
        return requests if requests is not None and len(requests) == self.prefix.request_count else None


def decode_records(records: "Buffer", worker_id: int, first_sequence: int) -> list[Request] | None:
    """Decodes records, one after another in one buffer.

    Returns:
        The requests; None unless all records are valid and numbered from first_sequence.
    """
    decoded = read_records(records, worker_id, first_sequence)
    return None if decoded is None else [Request(worker_id, *parts) for parts in decoded]


class UnreadableSegment(StorageError):
    """The disk fails to read a segment's bytes."""


@dataclass
class Segment:
    """A segment file, opened by `with` and read front to back by `frames()`.

    Attributes:
        path: The file.
        sealed: Whether the segment must be complete: only then is a missing trailer damage.
        worker_id: From the header, the file name or the first good frame.
        header: The valid header.
        size: Bytes of the file.
        modified: Time of the file's last change, ns since 1970.
        trailer: The valid trailer, once `frames()` has ended.
        torn: Bytes of the torn tail, once `frames()` has ended.
        next_sequence: The sequence number after the last frame so far.
        announced: The sequence number after the last request of frames of which only the prefix is whole.
        damaged: What was found damaged so far.
    """

    path: Path
    sealed: bool
    worker_id: int | None = None
    header: Header | None = None
    trailer: Trailer | None = None
    size: int = 0
    modified: int = 0
    torn: int = 0
    next_sequence: int = 0
    announced: int = 0
    damaged: list[Damage] = field(default_factory=list)
    _file: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Opens the file and reads the header.

        Raises:
            FormatError: The file is not a segment, or of a later version.
            OSError: The file cannot be read.
        """
        self._file = self.path.open("rb", buffering=0)
        try:
            self._identify()
        except BaseException:
            self._file.close()
            raise
        return self

    def _identify(self) -> None:
        assert self._file
        state = os.fstat(self._file.fileno())
        self.size, self.modified = state.st_size, state.st_mtime_ns
        self.header = parse_header(self._at(0, HEADER_SIZE_MAX))
        name = SegmentName.parse(self.path.name)
        known = self.header or name
        if self.header and self.header.version > VERSION:
            raise FormatError(
                f"{self.path} is a segment of version {self.header.version}; this version reads up to {VERSION}",
                "use a later kanalony",
            )
        if known:
            self.worker_id = known.worker_id
            self.next_sequence = known.first_sequence
        elif self.size and not self._at(0, 4).startswith(PREFIX_START):
            raise FormatError(f"{self.path} is not a segment", "name a .lz4 file that kanalony wrote")

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def _at(self, offset: int, size: int) -> bytes:
        assert self._file
        try:
            return os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise UnreadableSegment(f"{self.path} cannot be read: {error.strerror}", "check the disk") from error

    def bytes_of(self, damage: Damage) -> bytes:
        """Returns the bytes of a damaged range.

        Raises:
            UnreadableSegment: The disk fails to read them.
        """
        return self._at(damage.start, damage.end - damage.start)

    def frames(self) -> Iterator[Frame]:
        """Yields every good frame in the file, also those after damage.

        Raises:
            UnreadableSegment: The disk fails to read the file.
        """
        position = 0
        tally = None
        if self.header:
            position = self.header.size
            tally = Tally(self.header.first_sequence)
        else:
            position = self._pass_over(0, "no valid segment header")
        while position < self.size:
            frame = self._frame_at(position)
            if frame:
                if tally is None or frame.prefix.first_sequence != tally.next_sequence:
                    if tally:
                        found, expected = frame.prefix.first_sequence, tally.next_sequence
                        self._note(position, position, f"sequence number {found} instead of {expected}")
                    tally = Tally(frame.prefix.first_sequence)
                tally.add(frame.prefix)
                self.next_sequence = tally.next_sequence
                yield frame
                position = frame.end
            elif trailer := self._trailer_at(position):
                self.trailer = trailer
                if not self.damaged and tally and trailer != tally.trailer(trailer.worker_id):
                    self._note(position, self.size, "the trailer's sums do not match the frames")
                return
            else:
                position = self._pass_over(position, "no valid frame")
        if self.sealed:
            self._note(self.size, self.size, "the file ends without a trailer")

    def _note(self, start: int, end: int, reason: str) -> None:
        self.damaged.append(Damage(self.path, start, end, reason))

    def note_bad_content(self, frame: Frame) -> None:
        """Notes damage: a frame's content does not match its prefix, as its reader found by decompressing it."""
        self._note(frame.offset, frame.end, "the frame's content does not match its prefix")

    def _trailer_at(self, position: int) -> Trailer | None:
        if position + TRAILER_SIZE != self.size:
            return None
        trailer = parse_trailer(self._at(position, TRAILER_SIZE))
        return trailer if trailer and trailer.worker_id == self.worker_id else None

    def _frame_at(self, position: int) -> Frame | None:
        prefix = parse_prefix(self._at(position, PREFIX_SIZE_MAX))
        if prefix is None or (self.worker_id is not None and prefix.worker_id != self.worker_id):
            return None
        compressed = self._at(position + prefix.size, prefix.frame_length)
        if len(compressed) != prefix.frame_length or crc32c(compressed) != prefix.frame_crc:
            return None
        self.worker_id = prefix.worker_id
        return Frame(position, position + prefix.size + prefix.frame_length, prefix, compressed)

    def _pass_over(self, position: int, reason: str) -> int:
        """Notes damage, or a torn tail, from position to the next good frame or trailer, and returns its offset."""
        prefix = parse_prefix(self._at(position, PREFIX_SIZE_MAX))
        if prefix and prefix.worker_id == self.worker_id:
            self.announced = max(self.announced, prefix.first_sequence + prefix.request_count)
        found = self._search(position + 1)
        if found == self.size and not self.sealed:
            self.torn = self.size - position
        else:
            self._note(position, found, reason)
        return found

    def _search(self, position: int) -> int:
        while position < self.size:
            at = self._at(position, _SEARCH_STEP + len(PREFIX_START) - 1).find(PREFIX_START)
            if at < 0:
                position += _SEARCH_STEP
                continue
            position += at
            if self._frame_at(position) or self._trailer_at(position):
                return position
            position += 1
        return self.size

    def claims(self) -> Iterator[tuple[int, int, int]]:
        """Yields (worker id, first, end) of the sequence numbers that the segment claims to hold.

        They come from the trailer; without one, from the good frames and the prefix of a torn frame.
        """
        trailer = self.read_trailer()
        if trailer:
            yield trailer.worker_id, trailer.first_sequence, trailer.first_sequence + trailer.request_count
            return
        for frame in self.frames():
            first = frame.prefix.first_sequence
            yield frame.prefix.worker_id, first, first + frame.prefix.request_count
        if self.worker_id is not None and self.announced > self.next_sequence:
            yield self.worker_id, self.next_sequence, self.announced

    def read_trailer(self) -> Trailer | None:
        """Returns the valid trailer at the end of the file, without a look at the rest, or None."""
        return self._trailer_at(self.size - TRAILER_SIZE) if self.size >= TRAILER_SIZE else None

    def requests(self) -> Iterator[Request]:
        """Yields every request of every good frame. A frame whose content does not match its prefix becomes damage."""
        for frame in self.frames():
            requests = frame.requests()
            if requests is None:
                self.note_bad_content(frame)
            else:
                yield from requests
