"""A small language for tests of files: write journals and segments, then cut, flip and read them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kanalony.core.frames import FIELD_NAMES
from kanalony.segments.damage import Damage
from kanalony.segments.directory import DataDirectory
from kanalony.segments.journal import Journal, parse_journal
from kanalony.segments.reader import Request, Segment, decode_records
from kanalony.segments.writer import SegmentWriter

Fields = tuple[bytes | None, ...]

QUERY = (
    "kalsig=1ebb5aea0c5f253fd8c578febe6a752f&clientTag=kdp%3Av3%2E9%2E2&sessionId=C90BFCFC%2D2EBF%2D5893%2D892D%2D2121162F"
    "414A&eventIndex=3&eventType=2&referrer=http%253A%2F%2Fabc%2Ego%2Ecom%2Fshows%2Fthe%2Dbachelorette%2Fvideo%2Fmost%2Dre"
    "cent%2FVDKA0%5Flawz79v7&entryId=0_n5nbuy6i&ks=YjdlZTNkMGUzZDYxMzY0OGJjZDVjOTYzOWVkMjFlNTg2ZmMyZDRlOXw1ODUyMzE7NTg1MjM"
    "xOzE0MzUxNjA2NzY7MDsxNDM1MDc0Mjc2Ljc2MTk7MDt2aWV3Oiosd2lkZ2V0OjE7Ow%3D%3D&sessionStartTime=1435075182567&uiConfId=235"
    "21211&partnerId=585231&position=18&clientVer=3%2E0%3Av3%2E9%2E2&playbackContext=sports&customVar1=Finnance"
)
COLLECT_QUERY = QUERY.encode()
"""The XMLHttpRequest and jQuery examples of the Event Tracking API; 574 bytes."""

API_QUERY = b"service=analytics&action=trackEvent&" + COLLECT_QUERY
"""The cURL example: the same event on the API path."""


def fields(number: int, query: bytes | None = None) -> Fields:
    """The fields of a request, a little different for each number, as `append` takes them."""
    values = (
        b"GET",
        b"/collect",
        bytes([127, 0, 0, number % 256]),
        None,
        b"agent/%d" % (number % 3),
        None,
        b"eventType=%d&n=%d&%s" % (number % 5, number, b"x" * (number * 37 % 300)) if query is None else query,
        *([None] * 4 if number % 4 else [b'{"n": %d}' % number, b"application/json", b"identity", b"token"]),
    )
    return values + (None,) * (len(FIELD_NAMES) - len(values))


def fields_of(event: Request) -> Fields:
    """The fields of a request that was read, in the order in which `append` takes them."""
    return event.fields


def new_journal(data: DataDirectory, *, block_size: int = 4096, block_count: int = 4) -> Journal:
    return Journal(data, "test", ack="written", block_size=block_size, block_count=block_count, on_full=lambda: None)


@dataclass
class JournalFile:
    """The bytes of a journal, and the requests appended to it."""

    path: Path
    content: bytes
    events: list[Fields]

    def read(self, content: bytes) -> tuple[list[Request], list[Damage]]:
        """Parses other content in its place: (requests, damage)."""
        found = parse_journal(self.path, content)
        events: list[Request] = []
        for records in found.pending:
            decoded = decode_records(records.content, found.worker_id, records.first_sequence)
            assert decoded is not None
            events += decoded
        return events, found.damaged


def journal_file(data: DataDirectory, events: Iterable[Fields], **options: int) -> JournalFile:
    """Writes a journal as a crash would leave it."""
    journal = new_journal(data, **options)
    kept = list(events)
    for event in kept:
        assert journal.blocks.append(*event), "the journal is too small for the test"
    return JournalFile(journal.path, journal.path.read_bytes(), kept)


def record_bounds(journal: JournalFile, *, block_size: int = 4096) -> list[tuple[int, int]]:
    """(start, end) of each record, found without the code under test: each mark, then the length after it."""
    spans = []
    position = 4096
    while position < len(journal.content):
        if journal.content[position : position + 4] == b"KNEV":
            end = position + int.from_bytes(journal.content[position + 8 : position + 12], "little")
            spans.append((position, end))
            position = end
        else:
            position += block_size - position % block_size
    return spans


def hit_by(position: int, spans: Iterable[tuple[int, int]]) -> int | None:
    """The number of the span [start, end) that holds the position."""
    return next((number for number, (start, end) in enumerate(spans) if start <= position < end), None)


@dataclass
class SegmentFile:
    """The bytes of a sealed segment, the requests of each frame, and the offset where each frame ends."""

    path: Path
    content: bytes
    frames: list[list[Fields]]
    ends: list[int]

    @property
    def events(self) -> list[Fields]:
        return [event for frame in self.frames for event in frame]

    def read(self, content: bytes, *, sealed: bool) -> tuple[list[Request], Segment]:
        """Reads other content in its place to the end: (requests, the segment)."""
        self.path.write_bytes(content)
        with Segment(self.path, sealed) as segment:
            return list(segment.requests()), segment


def segment_file(data: DataDirectory, frames: list[list[Fields]]) -> SegmentFile:
    """Writes a sealed segment. Its records come from a journal, as in the collector."""
    journal = new_journal(data, block_size=1 << 16, block_count=len(frames) + 1)
    writer = None
    ends = []
    for events in frames:
        for event in events:
            assert journal.blocks.append(*event)
        journal.blocks.hand_over(0)
        block = journal.blocks.full_block(0)
        assert block
        records, first = block
        writer = writer or SegmentWriter(data, "test", journal.worker_id, 0, first)
        with records:
            writer.add(records, first)
        ends.append(writer.size)
        journal.blocks.free(1)
    assert writer
    writer.seal()
    journal.remove()
    path = data.sealed / writer.name
    return SegmentFile(path, path.read_bytes(), frames, ends)


def flipped(content: bytes, positions: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """(position, content with the byte there changed), with a different change at each position."""
    for position in positions:
        change = (position * 73 % 255) + 1
        yield position, content[:position] + bytes([content[position] ^ change]) + content[position + 1 :]
