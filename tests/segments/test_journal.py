"""The journal as a file: what remains of it after any cut, any changed byte and any crash."""

import errno
import mmap
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kanalony.core.frames import FIELD_NAMES
from kanalony.core.journal import HEADER_SIZE, Blocks, scan_block
from kanalony.errors import StorageError
from kanalony.segments.directory import DataDirectory
from kanalony.segments.journal import Journal, parse_journal, read_journal
from tests.files import fields, fields_of, flipped, hit_by, journal_file, new_journal, record_bounds

PART = st.none() | st.binary(min_size=1, max_size=300)


@given(st.lists(st.tuples(*[PART] * len(FIELD_NAMES)), min_size=1, max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_any_bytes_come_back_as_they_were_appended(data: DataDirectory, events: list[tuple[bytes | None, ...]]) -> None:
    journal = journal_file(data, events, block_size=1 << 16, block_count=2)
    found, damaged = journal.read(journal.content)
    assert [fields_of(event) for event in found] == events
    assert [event.sequence for event in found] == list(range(1, len(events) + 1))
    assert damaged == []


def test_latin_1_strings_are_stored_as_the_bytes_they_stand_for(data: DataDirectory) -> None:
    journal = new_journal(data)
    journal.blocks.append("GET", "/collect", None, "", "Zoë", None, "q=é\xff", b"")
    (records,) = read_journal(journal.path).pending
    assert b"Zo\xeb" in records.content
    assert b"q=\xe9\xff" in records.content


@pytest.mark.parametrize(
    ("query", "complaint"),
    [("q=€", "beyond latin-1"), (7, "str, bytes or None, not int"), (b"x" * 4096, "exceeds a journal")],
)
def test_a_request_that_cannot_be_stored_is_refused_and_others_are_kept(
    data: DataDirectory, query: object, complaint: str
) -> None:
    journal = new_journal(data)
    assert journal.blocks.append(*fields(1))
    with pytest.raises((ValueError, TypeError, OverflowError), match=complaint):
        journal.blocks.append(b"GET", b"/", None, None, None, None, query, None)  # type: ignore[arg-type]
    assert journal.blocks.append(*fields(2))
    (records,) = read_journal(journal.path).pending
    assert records.request_count == 2


def test_every_cut_leaves_exactly_the_complete_records(data: DataDirectory) -> None:
    journal = journal_file(data, (fields(n) for n in range(20)), block_count=2)
    spans = record_bounds(journal)
    assert len(spans) == 20
    assert spans[-1][0] > 2 * 4096, "the test should reach into the second block"
    for size in range(spans[-1][1] + 50):
        found, damaged = journal.read(journal.content[:size])
        complete = sum(end <= size for _, end in spans)
        assert [fields_of(event) for event in found] == journal.events[:complete], f"cut at {size}"
        assert damaged, f"cut at {size}: the file is too short, which must be reported"


def test_every_changed_byte_is_noticed_and_never_becomes_an_event(data: DataDirectory) -> None:
    journal = journal_file(data, (fields(n) for n in range(20)), block_count=2)
    spans = record_bounds(journal)
    used = [*range(108), *(position for span in spans for position in range(*span))]
    for position, content in flipped(journal.content, used):
        found, damaged = journal.read(content)
        hit = hit_by(position, spans)
        expected = [event for number, event in enumerate(journal.events) if number != hit]
        assert [fields_of(event) for event in found] == expected, f"byte {position}: another event was lost or changed"
        assert damaged, f"byte {position} was not noticed"


def test_a_changed_mark_of_the_last_record_is_found(data: DataDirectory) -> None:
    journal = journal_file(data, [fields(1)])
    found, damaged = journal.read(journal.content[:4096] + b"\x01" + journal.content[4097:])
    assert found == []
    assert [damage.start for damage in damaged] == [4096]


def test_an_unfinished_append_leaves_no_trace(data: DataDirectory) -> None:
    journal = journal_file(data, [fields(1), fields(2)])
    last, _ = record_bounds(journal)[1]
    unmarked = journal.content[:last] + bytes(4) + journal.content[last + 4 :]
    found, damaged = journal.read(unmarked)
    assert [fields_of(event) for event in found] == journal.events[:1]
    assert damaged == []


def test_events_of_freed_blocks_do_not_come_back(data: DataDirectory) -> None:
    journal = new_journal(data, block_count=2)
    for number in range(100):
        assert journal.blocks.append(*fields(number, query=b"n=%d" % number))
        if journal.blocks.full_blocks:
            journal.blocks.free(1)
    found = read_journal(journal.path)
    assert found.damaged == []
    (records,) = found.pending
    assert records.first_sequence == found.watermark + 1 > 1
    assert records.end_sequence == 101


def test_the_watermark_survives_a_crash_between_its_two_stores(data: DataDirectory) -> None:
    journal = new_journal(data)
    for number in range(3):
        journal.blocks.append(*fields(number))
        journal.blocks.hand_over(0)
        journal.blocks.free(1)
    content = journal.path.read_bytes()
    assert parse_journal(journal.path, content).watermark == 3
    for _, torn in flipped(content, range(128, 140)):
        found = parse_journal(journal.path, torn)
        assert found.watermark == 2
        assert found.damaged


def test_a_full_journal_refuses_until_a_block_is_freed(data: DataDirectory) -> None:
    journal = new_journal(data, block_count=2)
    query = b"x" * 3000
    assert [bool(journal.blocks.append(*fields(n, query=query))) for n in range(3)] == [True, True, False]
    assert journal.blocks.accepted == 2
    journal.blocks.free(1)
    assert journal.blocks.append(*fields(3, query=query))
    assert journal.blocks.accepted == 3


def test_a_block_is_handed_over_by_age_and_never_empty(data: DataDirectory) -> None:
    journal = new_journal(data)
    journal.blocks.hand_over(0)
    assert journal.blocks.full_block(0) is None
    journal.blocks.append(*fields(1))
    journal.blocks.hand_over(3_600_000_000)
    assert journal.blocks.full_block(0) is None
    journal.blocks.hand_over(0)
    assert journal.blocks.full_blocks == 1
    with pytest.raises(IndexError):
        journal.blocks.free(2)


@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
def test_any_bytes_behind_the_last_record_are_no_event(data: DataDirectory, garbage: bytes) -> None:
    journal = journal_file(data, [fields(1)])
    ((_, end),) = record_bounds(journal)
    found, _ = journal.read(journal.content[:end] + garbage + journal.content[end + len(garbage) :])
    assert [fields_of(event) for event in found] == journal.events


def test_a_record_that_a_client_forged_is_no_event(data: DataDirectory, tmp_path: Path) -> None:
    """Only the worker id of the forged record is wrong, which no client learns.

    The record before it is damaged, so that the reader searches the bytes of the forged one.
    """
    other = DataDirectory.writable(tmp_path / "attacker")
    forged = journal_file(other, [fields(7), fields(8), fields(9)])
    records = forged.content[4096 : record_bounds(forged)[-1][1]]
    journal = journal_file(data, [fields(1), (*fields(2)[:7], records)])
    damaged_second = journal.content.replace(b"n=2&", b"n=3&")
    found, damaged = journal.read(damaged_second)
    assert [fields_of(event) for event in found] == journal.events[:1]
    assert damaged


@pytest.mark.parametrize(("block_size", "block_count"), [(4095, 1), (0, 1), (4096, 0), (4096, 1025), (8192, 1)])
def test_sizes_that_do_not_fit_are_refused(block_size: int, block_count: int) -> None:
    with mmap.mmap(-1, HEADER_SIZE + 4096) as mapping, pytest.raises(ValueError):
        Blocks(mapping, block_size, block_count, 1, False, lambda: None)


def test_a_block_beyond_the_buffer_is_refused() -> None:
    with pytest.raises(ValueError):
        scan_block(bytes(10), 5, 11, 1, 0)


def test_threads_that_append_together_lose_and_overwrite_nothing(data: DataDirectory) -> None:
    """Waking the sealer runs Python code, so other threads run in the middle of an append."""

    def wake() -> None:
        time.sleep(0)  # lets another thread go first

    journal = Journal(data, "test", ack="written", block_size=4096, block_count=1024, on_full=wake)

    def append(numbers: range) -> None:
        for number in numbers:
            assert journal.blocks.append(*fields(number))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(
                target=lambda start=start: [journal.blocks.append(*fields(n)) for n in range(start, 9000, 4)]
            )
            for start in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    found = read_journal(journal.path)
    assert found.damaged == []
    assert sum(records.request_count for records in found.pending) == journal.blocks.accepted == 9000


def test_waking_the_sealer_may_append_itself(data: DataDirectory) -> None:
    """The hardest interleaving, by hand: during the callback for a full block, another event fills the next block."""
    waking = 0

    def wake() -> None:
        nonlocal waking
        waking += 1
        if waking <= 2:
            assert journal.blocks.append(*fields(1, query=b"y" * 3900))

    journal = Journal(data, "test", ack="written", block_size=4096, block_count=8, on_full=wake)
    for number in range(4):
        assert journal.blocks.append(*fields(number, query=b"x" * 2500))
    found = read_journal(journal.path)
    assert found.damaged == []
    assert sum(records.request_count for records in found.pending) == journal.blocks.accepted == 6


def test_a_journal_that_refuses_or_was_released_stores_nothing(data: DataDirectory) -> None:
    journal = new_journal(data)
    assert journal.blocks.append(*fields(1))
    journal.blocks.refuse()
    assert journal.blocks.append(*fields(2)) == 0
    journal.forget()
    assert journal.blocks.append(*fields(3)) == 0
    assert journal.blocks.full_block(0) is None
    (records,) = read_journal(journal.path).pending
    assert records.request_count == 1


def test_the_search_gives_up_on_bytes_made_to_slow_it_down(data: DataDirectory) -> None:
    """Every four bytes look like a record that ends at the block's end: checking each would be quadratic."""
    fake = b"KNEV" + bytes(4) + (1 << 19).to_bytes(4, "little") + (1 << 40).to_bytes(8, "little")
    block = b"\1\0\0\0" + fake * ((1 << 20) // len(fake) - 1)
    runs, damaged = scan_block(block, 0, len(block), 1, 0)
    assert runs == []
    assert damaged == [(0, len(block))]


def test_a_journal_that_cannot_be_mapped_leaves_no_file(data: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", refuse)
        with pytest.raises(StorageError, match="Cannot allocate memory"):
            new_journal(data)
    assert list(data.journal.iterdir()) == []
