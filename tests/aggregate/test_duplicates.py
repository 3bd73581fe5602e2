"""Events that were sent twice become one row."""

from collections import Counter

import pytest

from kanalony.aggregate.compact import Compaction
from kanalony.aggregate.dedupe import WINDOW
from kanalony.aggregate.enrich import Enricher
from kanalony.segments.directory import DataDirectory
from tests.aggregate.lakes import MEMORY, NOON, SECOND, Sent, assert_balanced, compact, queries, rows, seal, sent


def test_the_same_event_within_ten_minutes_is_one_and_later_it_is_another(data: DataDirectory) -> None:
    window = WINDOW // 1000
    times = [0, 1, window, window + 1, 2 * window + 1, 2 * window + 2]
    seal(data, [[sent(1, at=at) for at in times]])
    assert compact(data).duplicates == 3
    assert [(row["receivedAt"].timestamp() - NOON / SECOND) for row in rows(data)] == [0, window + 1, 2 * window + 2]
    assert_balanced(data, events=6, rows=3, duplicates=3)


@pytest.mark.parametrize("power", [31, 32, 33, 40])  # 2^32 ms are 49.7 days
def test_the_same_event_is_another_when_its_time_differs_in_high_bits_only(data: DataDirectory, power: int) -> None:
    window = WINDOW // 1000
    apart = (1 << power) // 1000
    seal(data, [[sent(n, at=at) for n, at in ((1, 0), (1, apart - window), (1, apart + window + 1), (2, 0))]])
    assert compact(data).duplicates == 0
    seal(data, [[sent(n, at=at) for n, at in ((2, apart), (3, apart))]], worker=2)
    seal(data, [[sent(3)]], worker=3)
    assert compact(data).duplicates == 0
    assert_balanced(data, rows=7, duplicates=0)


def test_duplicates_are_found_across_runs_and_when_they_come_late(data: DataDirectory) -> None:
    seal(data, [[sent(1, at=1000), sent(2, at=1000)]], worker=1)
    assert compact(data).duplicates == 0
    seal(data, [[sent(1, at=1500), sent(2, at=2000), sent(3)]], worker=2)
    assert compact(data).duplicates == 1
    seal(data, [[sent(1, at=500), sent(2, at=100), sent(3, at=1)]], worker=3)  # older than what is in the lake
    assert compact(data).duplicates == 2
    assert queries(data) == Counter({sent(1).query: 1, sent(2).query: 3, sent(3).query: 1})
    assert_balanced(data, events=8, rows=5, duplicates=3)


@pytest.mark.parametrize(("events", "held"), [(40, 41 * 16), pytest.param(2000, 0, marks=pytest.mark.slow)])
def test_fingerprints_that_take_much_memory_are_read_again_by_the_next_run(
    data: DataDirectory, events: int, held: int
) -> None:
    with Compaction(data, memory=256 << 10, keep_segments=1e9, enricher=Enricher(None, None)) as compaction:
        for worker in (1, 2):
            seal(data, [[*(sent(n) for n in range(events)), sent(9999, at=worker)]], worker=worker)
            compaction.run(compaction.waiting(), lambda _: None, lambda: False)
            assert compaction.deduplicator.size == held
    assert_balanced(data, events=2 * events + 2, rows=events + 1, duplicates=events + 1)


def test_events_without_a_session_are_never_duplicates(data: DataDirectory) -> None:
    seal(data, [[sent(1, session="")] * 5, [Sent(NOON, b"eventType=3")] * 5])
    assert compact(data).duplicates == 0
    assert len(rows(data)) == 10


def test_requests_whose_bodies_cannot_be_read_are_duplicates_byte_for_byte_only(data: DataDirectory) -> None:
    query = b"sessionId=s&eventIndex=1"
    bodies = [b"plain words one", b"other words two", b"\x1f\x8bxx", b'{"a": 1', b'{"a": 2', b"plain words one"]
    seal(data, [[Sent(NOON + n, query, body) for n, body in enumerate(bodies)]])
    assert compact(data).duplicates == 1
    assert [row["body"] for row in rows(data)] == bodies[:5]


def test_the_body_of_a_batch_stands_with_its_first_event_that_is_kept(data: DataDirectory) -> None:
    bodies = [b'[{"e":1},{"e":2}]', b'[{"e":1},{"e":2},{"e":3},{"e":4}]', b'[{"e":1},{"e":4}]', b'[{"e":5}]']
    seal(data, [[Sent(NOON + n, b"sessionId=s", body) for n, body in enumerate(bodies)]])
    assert compact(data).duplicates == 4
    found = [(row["sequence"], row["index"], row["body"]) for row in rows(data)]
    assert found == [(1, 0, bodies[0]), (1, 1, None), (2, 2, bodies[1]), (2, 3, None), (4, 0, bodies[3])]


def test_a_late_event_does_not_bring_back_all_that_was_received_since(data: DataDirectory) -> None:
    day = 86_400
    for number in range(5):
        seal(data, [[sent(n, at=number * day + n) for n in range(50)]], worker=number + 1)
        compact(data)
    seal(data, [[sent(1, at=2), sent(77, at=4 * day)]], worker=9)
    with Compaction(data, memory=MEMORY, keep_segments=1e9, enricher=Enricher(None, None)) as compaction:
        assert compaction.run(compaction.waiting(), lambda _: None, lambda: False).duplicates == 1
        assert sum(len(chunk.keys) for chunk in compaction.deduplicator._chunks) <= 101


def test_events_that_differ_in_anything_that_was_sent_are_not_duplicates(data: DataDirectory) -> None:
    one = b"sessionId=s&eventIndex=1&position=1"
    seal(
        data, [[Sent(NOON, one), Sent(NOON, one + b"0"), Sent(NOON, one, b"{}"), Sent(NOON, one, user_agent=b"other")]]
    )
    assert compact(data).duplicates == 1
