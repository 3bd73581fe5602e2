"""Segments as files: what remains of them after any cut and any changed byte."""

import subprocess
from itertools import pairwise
from pathlib import Path

import lz4.frame
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kanalony.core.frames import (
    FIELD_NAMES,
    OTHER_TYPE,
    build_header,
    build_prefix,
    crc32c,
    parse_header,
    parse_prefix,
    read_records,
)
from kanalony.errors import FormatError
from kanalony.segments.coverage import Coverage
from kanalony.segments.directory import DataDirectory
from kanalony.segments.names import SegmentName
from kanalony.segments.reader import Segment
from tests.files import SegmentFile, fields, fields_of, flipped, hit_by, journal_file, segment_file
from tests.tools import tool

FRAMES = [[fields(n) for n in range(start, start + 4)] for start in (0, 4, 8)]


@pytest.fixture
def segment(data: DataDirectory) -> SegmentFile:
    return segment_file(data, FRAMES)


def test_a_sound_segment_reads_back_whole(segment: SegmentFile) -> None:
    events, read = segment.read(segment.content, sealed=True)
    assert [fields_of(event) for event in events] == segment.events
    assert read.damaged == []
    assert read.trailer
    assert read.trailer.request_count == 12


@pytest.mark.parametrize("sealed", [False, True])
def test_every_cut_leaves_exactly_the_complete_frames(segment: SegmentFile, sealed: bool) -> None:
    for size in range(len(segment.content)):
        events, read = segment.read(segment.content[:size], sealed=sealed)
        complete = sum(end <= size for end in segment.ends)
        assert [fields_of(event) for event in events] == [event for frame in FRAMES[:complete] for event in frame]
        if sealed:
            assert read.damaged, f"cut at {size}: a sealed segment without its end is damaged"
        else:
            assert read.damaged == [], f"cut at {size}: a torn tail is no damage"
            header = parse_header(segment.content)
            assert header
            whole = size in (header.size, *segment.ends)
            assert (read.torn == 0) == (whole or size == 0)


def test_every_changed_byte_is_noticed_and_costs_only_its_own_frame(segment: SegmentFile) -> None:
    header = parse_header(segment.content)
    assert header
    spans = list(pairwise([header.size, *segment.ends]))
    for position, content in flipped(segment.content, range(len(segment.content))):
        events, read = segment.read(content, sealed=True)
        hit = hit_by(position, spans)
        expected = [event for n, frame in enumerate(FRAMES) if n != hit for event in frame]
        assert [fields_of(event) for event in events] == expected, f"byte {position}"
        assert read.damaged, f"byte {position} was not noticed"


def test_a_changed_byte_in_an_open_segment_is_damage_or_a_torn_tail_but_never_an_event(segment: SegmentFile) -> None:
    """In the last frame it looks like an unfinished write: the journal's watermark decides what is lost."""
    end = segment.ends[-1]
    for position, content in flipped(segment.content[:end], range(end)):
        events, read = segment.read(content, sealed=False)
        assert {fields_of(event) for event in events} <= set(segment.events)
        assert read.damaged or read.torn, f"byte {position} was not noticed"
        if position < segment.ends[1]:
            assert read.damaged, f"byte {position}: only the last frame can be torn"
        else:
            assert read.next_sequence == 9


def test_garbage_between_frames_is_reported_with_offset_and_size(segment: SegmentFile) -> None:
    at = segment.ends[0]
    events, read = segment.read(segment.content[:at] + b"garbage" + segment.content[at:], sealed=True)
    assert [fields_of(event) for event in events] == segment.events
    assert [(damage.start, damage.end) for damage in read.damaged] == [(at, at + 7)]


def test_a_missing_frame_is_a_gap(segment: SegmentFile) -> None:
    content = segment.content[: segment.ends[0]] + segment.content[segment.ends[1] :]
    events, read = segment.read(content, sealed=True)
    assert [fields_of(event) for event in events] == FRAMES[0] + FRAMES[2]
    assert "sequence number 9 instead of 5" in str(read.damaged[0])


def test_a_frame_of_another_worker_is_damage_not_events(data: DataDirectory, segment: SegmentFile) -> None:
    other = segment_file(data, [[fields(99)]])
    header = parse_header(other.content)
    assert header
    foreign = other.content[header.size : other.ends[0]]
    at = segment.ends[0]
    events, read = segment.read(segment.content[:at] + foreign + segment.content[at:], sealed=True)
    assert [fields_of(event) for event in events] == segment.events
    assert [(damage.start, damage.end) for damage in read.damaged] == [(at, at + len(foreign))]


def test_a_damaged_header_in_a_renamed_file_costs_no_event(segment: SegmentFile, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed.lz4"
    renamed.write_bytes(segment.content[:20] + b"?" + segment.content[21:])
    with Segment(renamed, sealed=True) as read:
        assert [fields_of(event) for event in read.requests()] == segment.events
        assert read.damaged


def test_later_versions_and_other_files_are_refused(segment: SegmentFile, tmp_path: Path) -> None:
    later = bytearray(segment.content)
    later[12] = 2
    header = parse_header(segment.content)
    assert header
    later[header.size - 4 : header.size] = crc32c(later[: header.size - 4]).to_bytes(4, "little")
    with pytest.raises(FormatError, match="version 2"):
        segment.read(bytes(later), sealed=True)
    foreign = tmp_path / "foreign.lz4"
    foreign.write_bytes(lz4.frame.compress(b"somebody else's"))
    with pytest.raises(FormatError, match="not a segment"), Segment(foreign, sealed=True):
        pass


@given(
    st.lists(st.tuples(*[st.none() | st.binary(min_size=1, max_size=200)] * len(FIELD_NAMES)), min_size=1, max_size=10)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_any_bytes_come_back_from_a_segment(data: DataDirectory, events: list[tuple[bytes | None, ...]]) -> None:
    segment = segment_file(data, [events])
    found, read = segment.read(segment.content, sealed=True)
    assert [fields_of(event) for event in found] == events
    assert read.damaged == []


def test_lz4_tools_accept_a_segment_and_unpack_the_records(segment: SegmentFile) -> None:
    lz4_tool = tool("lz4")
    segment.path.write_bytes(segment.content)
    subprocess.run([lz4_tool, "-t", segment.path], check=True, capture_output=True)
    unpacked = subprocess.run([lz4_tool, "-dc", segment.path], check=True, capture_output=True).stdout
    name = SegmentName.parse(segment.path.name)
    assert name
    decoded = read_records(unpacked, name.worker_id, 1)
    assert decoded
    assert [tuple(parts[2:]) for parts in decoded] == segment.events


def test_a_prefix_counts_event_types_and_times(data: DataDirectory) -> None:
    queries = [b"eventType=3", b"a=b&eventType=99", b"eventType=3&x", b"none=1", None]
    journal = journal_file(data, [fields(n, query=query or b"") for n, query in enumerate(queries)])
    events, _ = journal.read(journal.content)
    segment = segment_file(data, [[fields_of(event) for event in events]])
    with Segment(segment.path, sealed=True) as read:
        (frame,) = read.frames()
        times = [event.received_at for event in frame.requests() or []]
    assert frame.prefix.types == {3: 2, 99: 1, OTHER_TYPE: 2}
    assert (frame.prefix.first_received, frame.prefix.last_received) == (min(times), max(times))


def test_no_prefix_is_built_for_invalid_records(data: DataDirectory) -> None:
    journal = journal_file(data, [fields(1), fields(2)])
    worker_id = int(journal.path.stem, 16)
    for content, first in [(b"", 1), (b"x" * 40, 1), (journal.content[4096:4400], 1)]:
        with pytest.raises(ValueError, match="no valid record"):
            build_prefix(content, worker_id, first, b"")


@pytest.mark.parametrize("host", ["", "web-1.example.org", "x" * 63])
def test_a_header_is_parsed_as_it_was_built(host: str) -> None:
    header = parse_header(build_header(2**64 - 1, host, 1, 2**40, 123) + b"what follows")
    assert header
    assert (header.worker_id, header.host, header.ack, header.first_sequence, header.created_at) == (
        2**64 - 1,
        host,
        1,
        2**40,
        123,
    )
    with pytest.raises(ValueError, match="exceeds 63"):
        build_header(1, "x" * 64, 0, 1, 1)


@given(st.binary(max_size=200))
def test_parsers_accept_any_bytes(content: bytes) -> None:
    assert parse_prefix(content) is None
    assert parse_header(b"\x5a\x2a\x4d\x18" + content) is None
    assert read_records(b"KNEV" + content, 1, 1) is None


@given(
    st.integers(0, 2**52),
    st.from_regex(r"[A-Za-z0-9.-]{0,63}", fullmatch=True),
    st.integers(0, 2**64 - 1),
    st.integers(1, 2**64 - 1),
)
def test_names_are_parsed_as_they_were_built_and_sort_by_time(
    created_at: int, host: str, worker_id: int, first_sequence: int
) -> None:
    name = SegmentName(created_at, host, worker_id, first_sequence)
    assert SegmentName.parse(str(name)) == name
    assert str(SegmentName(created_at + 1, host, worker_id, first_sequence)) > str(name)


RANGES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), max_size=12)


@given(RANGES, st.integers(1, 30), st.integers(0, 15))
def test_coverage_is_a_set_of_numbers(ranges: list[tuple[int, int]], first: int, size: int) -> None:
    covered, model = Coverage(), set()
    for start, length in ranges:
        covered.add(7, start, start + length)
        model |= set(range(start, start + length))
    missing = {number for begin, end in covered.missing(7, first, first + size) for number in range(begin, end)}
    assert missing == set(range(first, first + size)) - model
    assert sum(end - begin for begin, end in covered.missing(7, first, first + size)) == len(missing)
    assert covered.missing(8, 1, 5) == [(1, 5)]


def test_a_prefix_with_wrong_types_or_sizes_is_rejected(segment: SegmentFile) -> None:
    header = parse_header(segment.content)
    assert header
    prefix = parse_prefix(segment.content[header.size :])
    assert prefix
    start = header.size
    for offset, value in [(24, 99), (64 + 2, 77), (64, 500)]:  # request count, a count, an order
        lying = bytearray(segment.content[start : start + prefix.size])
        lying[offset : offset + 2] = value.to_bytes(2, "little")
        lying[-4:] = crc32c(lying[:-4]).to_bytes(4, "little")
        assert parse_prefix(lying) is None
    huge = bytearray(segment.content)
    data = start + prefix.size
    huge[data + 6 : data + 14] = (1 << 60).to_bytes(8, "little")  # the LZ4 header's content size
    huge[data + 14] = lz4_header_checksum(bytes(huge[data + 4 : data + 14]))
    frame = bytes(huge[data : data + prefix.frame_length])
    huge[start + 16 : start + 20] = crc32c(frame).to_bytes(4, "little")
    huge[data - 4 : data] = crc32c(huge[start : data - 4]).to_bytes(4, "little")
    events, read = segment.read(bytes(huge), sealed=True)
    assert [fields_of(event) for event in events] == FRAMES[1] + FRAMES[2]
    assert "content does not match its prefix" in str(read.damaged[0])


def lz4_header_checksum(descriptor: bytes) -> int:
    """The second byte of a frame descriptor's xxHash-32 (LZ4 Frame Format Description), for less than 16 bytes."""
    prime = (2654435761, 2246822519, 3266489917, 668265263, 374761393)
    value = prime[4] + len(descriptor)
    rest = descriptor
    while len(rest) >= 4:
        value = value + int.from_bytes(rest[:4], "little") * prime[2] & 0xFFFFFFFF
        value = (value << 17 | value >> 15) & 0xFFFFFFFF
        value = value * prime[3] & 0xFFFFFFFF
        rest = rest[4:]
    for byte in rest:
        value = value + byte * prime[4] & 0xFFFFFFFF
        value = (value << 11 | value >> 21) & 0xFFFFFFFF
        value = value * prime[0] & 0xFFFFFFFF
    value = (value ^ value >> 15) * prime[1] & 0xFFFFFFFF
    value = (value ^ value >> 13) * prime[2] & 0xFFFFFFFF
    return (value ^ value >> 16) >> 8 & 255
