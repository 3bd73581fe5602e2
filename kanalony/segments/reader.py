"""Reading segments and whole data directories back: frames, requests, and what is damaged.

Reading never writes and never raises for damage: a damaged range is part of the answer, and what to do about it is the
caller's business.
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
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
from kanalony.segments.journal import Run, is_in_use, read_journal
from kanalony.segments.names import DataDirectory, SegmentName, is_sealed
from kanalony.segments.tally import Tally

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SEARCH_STEP = 1 << 20


class Request(NamedTuple):
    """One request as it was received; kanalony.bodies finds the events in it.

    `received_at` is in µs since 1970. The fields of kanalony.core.frames.FIELD_NAMES follow, in this order; an absent and
    an empty field are both None.
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
class Damage:
    """A range [start, end) of a file that is not what should stand there. An empty range is a gap: something is
    missing.
    """

    path: Path
    start: int
    end: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: offset {self.start:,}, {self.end - self.start:,} bytes: {self.reason}"


@dataclass(frozen=True)
class Frame:
    """A data frame whose prefix is valid and whose bytes match the prefix's checksum. `end` is the offset behind it."""

    offset: int
    end: int
    prefix: Prefix
    compressed: bytes

    @property
    def is_sized(self) -> bool:
        """Whether its LZ4 header announces as much as the prefix says: that is what decompressing allocates."""
        try:
            announced: int = lz4.frame.get_frame_info(self.compressed)["content_size"]
        except RuntimeError:
            return False
        return announced == self.prefix.content_length

    def records(self) -> bytes | None:
        """The records, decompressed; None when they are not what the prefix says."""
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
        """The requests, or None when the content is not exactly the records that the prefix names."""
        content = self.records()
        if content is None:
            return None
        requests = decode_records(content, self.prefix.worker_id, self.prefix.first_sequence)
        return requests if requests is not None and len(requests) == self.prefix.request_count else None


def decode_records(records: "Buffer", worker_id: int, first_sequence: int) -> list[Request] | None:
    """The requests of records one behind the other, or None unless they are valid and numbered from first_sequence."""
    decoded = read_records(records, worker_id, first_sequence)
    return None if decoded is None else [Request(worker_id, *parts) for parts in decoded]


class UnreadableSegment(StorageError):
    """The disk does not give a segment's bytes."""


@dataclass
class Segment:
    """A segment file, read front to back by `frames()`; what else was found stands in the attributes once that is
    through.

    `modified` is the time of the file's last change in ns, `torn` the size in bytes of the torn tail, `trailer` the
    valid trailer, `next_sequence` the number behind the last frame, `announced` the one behind the last request of
    frames whose prefix only is whole. A segment without a trailer is damaged only if `sealed`.
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
        """Raises FormatError when the file is no segment or of a later version, OSError when it cannot be read."""
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
        told = self.header or name
        if self.header and self.header.version > VERSION:
            raise FormatError(
                f"{self.path} is a segment of version {self.header.version}; this version reads up to {VERSION}",
                "use a later kanalony",
            )
        if told:
            self.worker_id = told.worker_id
            self.next_sequence = told.first_sequence
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
            raise UnreadableSegment(f"{self.path} cannot be read: {error.strerror}", "see to the disk") from error

    def bytes_of(self, damage: Damage) -> bytes:
        """What stands in a damaged range."""
        return self._at(damage.start, damage.end - damage.start)

    def frames(self) -> Iterator[Frame]:
        """Every good frame in the file, also those after damage."""
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
                        expected = f"where {tally.next_sequence} should be"
                        self._note(position, position, f"sequence number {frame.prefix.first_sequence} {expected}")
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
                position = self._pass_over(position, "no valid frame stands here")
        if self.sealed:
            self._note(self.size, self.size, "the file ends without a trailer")

    def _note(self, start: int, end: int, reason: str) -> None:
        self.damaged.append(Damage(self.path, start, end, reason))

    def note_bad_content(self, frame: Frame) -> None:
        """A frame is not what its prefix says: only its reader can tell, since it takes decompressing."""
        self._note(frame.offset, frame.end, "the frame's content is not what its prefix says")

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
        """Note damage, or a torn tail, from position to the next good frame or trailer, and return where that is."""
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
        """(worker, first, end) of the sequence numbers it holds: by its trailer alone when it has one, else by its good
        frames.
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
        """The valid trailer at the end of the file, whatever stands before it."""
        return self._trailer_at(self.size - TRAILER_SIZE) if self.size >= TRAILER_SIZE else None

    def requests(self) -> Iterator[Request]:
        """Every request of every good frame. A frame whose content is not what its prefix says is noted as damage."""
        for frame in self.frames():
            requests = frame.requests()
            if requests is None:
                self.note_bad_content(frame)
            else:
                yield from requests


class Coverage:
    """Sets of sequence numbers, by worker, as sorted disjoint ranges [first, end)."""

    def __init__(self) -> None:
        self._ranges: dict[int, list[tuple[int, int]]] = {}

    def missing(self, worker_id: int, first: int, end: int) -> list[tuple[int, int]]:
        """The parts of [first, end) that are not in the set."""
        ranges = self._ranges.get(worker_id, [])
        parts = []
        for begin, stop in ranges[max(0, bisect_right(ranges, (first, first)) - 1) :]:
            if begin >= end:
                break
            if first < begin:
                parts.append((first, begin))
            first = max(first, stop)
        if first < end:
            parts.append((first, end))
        return parts

    def add(self, worker_id: int, first: int, end: int) -> None:
        ranges = self._ranges.setdefault(worker_id, [])
        low = bisect_right(ranges, (first, first))
        if low and ranges[low - 1][1] >= first:
            low -= 1
        high = low
        while high < len(ranges) and ranges[high][0] <= end:
            first, end = min(first, ranges[high][0]), max(end, ranges[high][1])
            high += 1
        ranges[low:high] = [(first, end)]


def pending_runs(runs: list[Run], worker_id: int, covered: Coverage) -> list[Run]:
    """The runs of a journal without what segments already hold."""
    return [
        run.part(*part) for run in runs for part in covered.missing(worker_id, run.first_sequence, run.end_sequence)
    ]


def each_segment(data: DataDirectory, on_damage: Callable[[Damage], object]) -> Iterator[Segment]:
    """Every segment of a data directory, entered, in order of names; also those that recovery makes of others
    meanwhile, so that a frame may be met twice. The caller reads one before it asks for the next. A file that is not
    ours or of a later version is told as damage.
    """
    seen: set[Path] = set()
    while True:
        vanished = False
        for path in data.segments():
            if path in seen:
                continue
            seen.add(path)
            try:
                segment = Segment(path, is_sealed(path))
                segment.__enter__()
            except FileNotFoundError:
                vanished = True  # sealed, maybe under another name; or deleted
                continue
            except (FormatError, OSError) as error:
                on_damage(Damage(path, 0, 0, str(error)))
                continue
            try:
                yield segment
            finally:
                segment.__exit__()
        if not vanished:
            return


def read_data(data: DataDirectory, on_damage: Callable[[Damage], object]) -> Iterator[Request]:
    """Every request acknowledged before the call, once: from all segments in order of their start, then from journals.
    A file that is not ours or of a later version is told as damage. Raises StorageError when a spool directory is not
    there.
    """
    # Journals first: what leaves one after this is in a segment by then.
    journals = []
    for path in data.journals():
        try:
            in_use = is_in_use(path)
            journals.append((read_journal(path), in_use))
        except FileNotFoundError:
            continue  # its worker ended; segments have it all
        except FormatError as error:
            on_damage(Damage(path, 0, 0, str(error)))
    covered = Coverage()
    for segment in each_segment(data, on_damage):
        yield from _read_uncovered(segment, covered, on_damage)
    for contents, in_use in journals:
        for run in pending_runs(contents.runs, contents.worker_id, covered):
            yield from decode_records(run.records, contents.worker_id, run.first_sequence) or []
        for start, end, reason in contents.damaged if not in_use else []:
            on_damage(Damage(contents.path, start, end, reason))


def _read_uncovered(segment: Segment, covered: Coverage, on_damage: Callable[[Damage], object]) -> Iterator[Request]:
    """The segment's requests that are not covered yet: a crash between two steps of recovery leaves a frame in two
    files.
    """
    for frame in segment.frames():
        worker, first = frame.prefix.worker_id, frame.prefix.first_sequence
        parts = covered.missing(worker, first, first + frame.prefix.request_count)
        if not parts:
            continue
        requests = frame.requests()
        if requests is None:
            segment.note_bad_content(frame)
            continue
        covered.add(worker, first, first + frame.prefix.request_count)
        for begin, end in parts:
            yield from requests[begin - first : end - first]
    for damage in segment.damaged:
        on_damage(damage)
