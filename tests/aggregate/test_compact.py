"""Segments become a lake, exactly once, whatever comes in between."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from kanalony.aggregate.compact import Compaction
from kanalony.aggregate.dedupe import WINDOW
from kanalony.aggregate.delta import Table
from kanalony.aggregate.enrich import Enricher
from kanalony.aggregate.lake import Lake, ReadOnlyLake
from kanalony.aggregate.ledger import Record, read_ledger
from kanalony.errors import FormatError, StorageError
from kanalony.segments.names import DataDirectory
from kanalony.segments.reader import Segment
from tests.aggregate.lakes import MEMORY, NOON, SECOND, Sent, compact, queries, rows, seal
from tests.files import journal_file, new_journal
from tests.serving import KANALONY, run


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    return DataDirectory.writable(tmp_path / "data")


def sent(number: int, *, at: int = 0, session: str = "s") -> Sent:
    return Sent(NOON + at * SECOND, f"eventType=3&partnerId=5&sessionId={session}&eventIndex={number}".encode())


def assert_balanced(data: DataDirectory, **expected: int) -> None:
    """The ledger balances, and its sum is as expected."""
    ledger = read_ledger(data)
    assert [account for account in ledger.accounts if not account.balanced] == []
    assert ledger.balanced
    assert {name: getattr(ledger.total, name) for name in expected} == expected


def test_each_request_is_a_row_once_however_often_it_is_compacted(data: DataDirectory) -> None:
    seal(data, [[sent(n) for n in range(100)], [sent(n) for n in range(100, 150)]])
    result = compact(data)
    assert (result.segments, result.requests, result.rows) == (1, 150, 150)
    seal(data, [[sent(n) for n in range(150, 200)]], first=151)
    assert compact(data).rows == 50
    assert compact(data).segments == 0
    assert queries(data) == Counter(sent(n).query for n in range(200))
    assert_balanced(data, accepted=200, framed=200, read=200, rows=200, duplicates=0, stored=200)


def test_rows_are_sorted_by_partner_entry_and_time_within_files_of_their_day(data: DataDirectory) -> None:
    day = 86_400
    many = [
        Sent(NOON + (n % 2) * day * SECOND - n * SECOND, b"partnerId=%d&entryId=e%d&eventIndex=%d" % (n % 3, n % 5, n))
        for n in range(300)
    ]
    seal(data, [many])
    compact(data)
    lake = ReadOnlyLake(data.lake / "events")
    assert {str(file.day): file.rows for file in lake.files} == {"2026-01-01": 150, "2026-01-02": 150}
    for file in lake.files:
        assert file.path.parent.name == f"date={file.day}"
        table = pq.read_table(file.path, columns=["partnerId", "entryId", "receivedAt"], partitioning=None).to_pylist()
        keys = [(row["partnerId"], row["entryId"], row["receivedAt"]) for row in table]
        assert keys == sorted(keys)
    assert {str(row["date"]) for row in rows(data)} == {"2026-01-01", "2026-01-02"}


def test_duckdb_and_polars_open_the_tables(data: DataDirectory) -> None:
    batch = b'[{"eventType":1,"zz":"a"},{"eventType":2,"zz":["b"]}]'
    seal(data, [[sent(1), Sent(NOON + 1, b"partnerId=5&partnerId=6", batch)]])
    compact(data)
    lake = data.lake / "events"
    files = [str(file.path) for file in ReadOnlyLake(lake).files]
    names = "eventType, partnerId, parameters['zz'], parameters['partnerId'], conflicts, body is null, date::varchar"
    cursor = duckdb.connect().execute(
        f"select {names} from read_parquet({files!r}, hive_partitioning=true) order by receivedAt, index"
    )
    found = cursor.fetchall()
    assert found == [
        (3, 5, None, None, [], True, "2026-01-01"),
        (1, 5, ["a"], ["6"], ["partnerId"], False, "2026-01-01"),
        (2, 5, ['["b"]'], ["6"], ["partnerId"], True, "2026-01-01"),
    ]
    table = polars.scan_delta(str(lake)).filter(polars.col("eventType") > 1).collect()
    assert sorted(table["eventType"].to_list()) == [2, 3]


# Duplicates


def test_the_same_event_within_ten_minutes_is_one_and_later_it_is_another(data: DataDirectory) -> None:
    window = WINDOW // 1000
    times = [0, 1, window, window + 1, 2 * window + 1, 2 * window + 2]
    seal(data, [[sent(1, at=at) for at in times]])
    assert compact(data).duplicates == 3
    assert [(row["receivedAt"].timestamp() - NOON / SECOND) for row in rows(data)] == [0, window + 1, 2 * window + 2]
    assert_balanced(data, events=6, rows=3, duplicates=3)


def test_duplicates_are_found_across_runs_and_when_they_come_late(data: DataDirectory) -> None:
    seal(data, [[sent(1, at=1000), sent(2, at=1000)]], worker=1)
    assert compact(data).duplicates == 0
    seal(data, [[sent(1, at=1500), sent(2, at=2000), sent(3)]], worker=2)
    assert compact(data).duplicates == 1
    seal(data, [[sent(1, at=500), sent(2, at=100), sent(3, at=1)]], worker=3)  # older than what is in the lake
    assert compact(data).duplicates == 2
    assert queries(data) == Counter({sent(1).query: 1, sent(2).query: 3, sent(3).query: 1})
    assert_balanced(data, events=8, rows=5, duplicates=3)


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
    told = [(row["sequence"], row["index"], row["body"]) for row in rows(data)]
    assert told == [(1, 0, bodies[0]), (1, 1, None), (2, 2, bodies[1]), (2, 3, None), (4, 0, bodies[3])]


def test_a_late_event_does_not_bring_back_all_that_was_received_since(data: DataDirectory) -> None:
    day = 86_400
    for number in range(5):
        seal(data, [[sent(n, at=number * day + n) for n in range(50)]], worker=number + 1)
        compact(data)
    seal(data, [[sent(1, at=2), sent(77, at=4 * day)]], worker=9)
    with Compaction(data, memory=MEMORY, keep_segments=1e9, enricher=Enricher(None, None)) as compaction:
        assert compaction.run(compaction.waiting(), lambda _: None, lambda: False).duplicates == 1
        assert sum(len(chunk.keys) for chunk in compaction.duplicates._chunks) <= 101


def test_events_that_differ_in_anything_that_was_sent_are_not_duplicates(data: DataDirectory) -> None:
    one = b"sessionId=s&eventIndex=1&position=1"
    seal(
        data, [[Sent(NOON, one), Sent(NOON, one + b"0"), Sent(NOON, one, b"{}"), Sent(NOON, one, user_agent=b"other")]]
    )
    assert compact(data).duplicates == 1


# Damage, copies, order


def test_what_is_damaged_goes_to_quarantine_and_the_rest_to_the_lake(data: DataDirectory) -> None:
    path = seal(data, [[sent(n) for n in range(k, k + 10)] for k in range(0, 50, 10)])
    content = path.read_bytes()
    at = content.index(b"KFRM", content.index(b"KFRM") + 4) + 200  # in the second frame
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    result = compact(data)
    assert (result.rows, result.quarantined, len(result.damaged)) == (40, 10, 2)  # the range, and what is missing
    (kept,) = data.quarantine.iterdir()
    assert kept.read_bytes() in path.read_bytes()
    assert compact(data).segments == 0
    assert_balanced(data, accepted=50, framed=40, read=40, quarantined=10, rows=40)
    # A sound copy brings back what was lost, and only that.
    (data.sealed / f"{path.name[:-4]}0.lz4".replace("_test_", "_copy_")).write_bytes(content)
    result = compact(data)
    assert (result.rows, result.repeated) == (10, 40)
    assert queries(data) == Counter(sent(n).query for n in range(50))
    assert_balanced(data, read=50, repeated=40, quarantined=10)


def test_a_segment_without_header_and_trailer_gives_its_good_frames(data: DataDirectory) -> None:
    path = seal(data, [[sent(n) for n in range(k, k + 10)] for k in range(0, 30, 10)], first=101)
    content = path.read_bytes()
    path.write_bytes(bytes(20) + content[20:-60])
    result = compact(data)
    assert (result.rows, result.quarantined) == (30, 0)
    ledger = read_ledger(data)
    assert ledger.missing == 100, "the requests before this segment are nowhere"
    assert [(account.torn, account.balanced) for account in ledger.accounts] == [(True, False)]


def test_of_a_segment_that_ends_within_a_frame_the_frames_requests_are_quarantined(data: DataDirectory) -> None:
    path = seal(data, [[sent(n) for n in range(k, k + 10)] for k in range(0, 30, 10)])
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"KFRM") + 100])
    assert read_ledger(data).pending == 30
    result = compact(data)
    assert (result.rows, result.quarantined) == (20, 10)
    ledger = read_ledger(data)
    assert (ledger.total.accepted, ledger.balanced) == (30, False), "what came behind that frame is not known"
    done = run("ledger", "--data", data.root)
    assert done.returncode == 1
    assert "ends too early" in done.stdout


def test_two_segments_in_one_file_are_never_less_than_nothing(data: DataDirectory) -> None:
    one, other = seal(data, [[sent(n) for n in range(10)]]), seal(data, [[sent(n) for n in range(10, 20)]], first=11)
    one.write_bytes(one.read_bytes() + other.read_bytes())
    other.unlink()
    result = compact(data)
    assert (result.rows, result.quarantined, bool(result.damaged)) == (20, 0, True)
    assert_balanced(data, accepted=20, read=20, quarantined=0)


def test_a_prefix_that_announces_other_requests_than_there_are_is_damage(data: DataDirectory) -> None:
    import struct

    from kanalony._frames import crc32c

    path = seal(data, [[sent(n) for n in range(5)]])
    content = path.read_bytes()
    start = content.index(b"KFRM") - 8
    size = 8 + int.from_bytes(content[start + 4 : start + 8], "little")
    prefix = content[start : start + size - 4]
    prefix = prefix[:24] + struct.pack("<I", 9) + prefix[28:]
    path.write_bytes(content[:start] + prefix + struct.pack("<I", crc32c(prefix)) + content[start + size :])
    result = compact(data)
    assert (result.rows, bool(result.damaged)) == (0, True)


def test_another_file_of_the_same_name_is_not_taken_for_the_one_that_was_read(
    data: DataDirectory, tmp_path: Path
) -> None:
    data.add_spools([tmp_path / "spool"])
    path = seal(data, [[sent(n) for n in range(k, k + 10)] for k in (0, 10)])
    content = path.read_bytes()
    other = DataDirectory(tmp_path / "spool").sealed / path.name  # a move between disks, broken off
    other.write_bytes(content[:150])
    for file in (path, other):
        os.utime(file, (0, 0))
    assert compact(data, keep_segments=3600).rows == 20
    # Damaged when it was read, restored since.
    path = seal(data, [[sent(n) for n in range(20, 30)]], first=21)
    content = path.read_bytes()
    at = content.index(b"KFRM") + 150
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert compact(data).rows == 0
    path.write_bytes(content)
    os.utime(path, (10, 10))
    assert compact(data).rows == 10
    assert queries(data) == Counter(sent(n).query for n in range(30))


def test_an_error_of_the_lakes_ends_the_run_and_costs_nothing(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kanalony.aggregate.compact._BATCH_SHARE", MEMORY // (128 << 10))
    for worker in (1, 2, 3):
        seal(data, [[sent(n, session=f"s{worker}") for n in range(300)]], worker=worker)
    real = Lake.write
    for error in (FileNotFoundError(2, "gone"), FormatError("cannot be read")):
        calls = 0

        def write(self: Lake, events: Any, error: Exception = error) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise error
            return real(self, events)

        with monkeypatch.context() as patch:
            patch.setattr(Lake, "write", write)
            with pytest.raises(type(error)):
                compact(data)
    compact(data)
    assert len(rows(data)) == 900
    assert_balanced(data, accepted=900, read=900, rows=900)


def test_what_cannot_be_opened_is_told_and_the_rest_is_taken(data: DataDirectory) -> None:
    seal(data, [[sent(1)]])
    (data.sealed / "directory.lz4").mkdir()
    path = seal(data, [[sent(2)]], worker=2)
    path.rename(data.sealed / f"{'x' * 240}.lz4")
    (data.sealed / f"{'x' * 240}.lz4").write_bytes(b"\x50\x2a\x4d\x18nothing")
    done = run("compact", "--data", data.root)
    assert done.returncode == 1
    assert "directory.lz4" in done.stderr
    assert len(rows(data)) == 1
    assert run("ledger", "--data", data.root).returncode == 0


def test_a_copy_under_another_name_adds_nothing(data: DataDirectory) -> None:
    path = seal(data, [[sent(n, session="") for n in range(20)]])
    shutil.copy(path, data.sealed / path.name.replace("_test_", "_copy_"))
    result = compact(data)
    assert (result.segments, result.rows, result.repeated) == (2, 20, 20)
    shutil.copy(path, data.sealed / path.name.replace("_test_", "_later_"))
    assert compact(data).repeated == 20
    assert len(rows(data)) == 20
    assert_balanced(data, accepted=60, read=20, repeated=40, rows=20)


def test_a_file_that_is_no_segment_is_told_and_left_alone(data: DataDirectory) -> None:
    seal(data, [[sent(1)]])
    alien = data.sealed / "alien.lz4"
    alien.write_bytes(b"not a segment at all")
    result = compact(data)
    assert result.rows == 1
    assert len(result.damaged) == 1
    assert alien.exists()


def test_spool_directories_are_compacted_too(data: DataDirectory, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    data.add_spools([spool])
    seal(DataDirectory(spool), [[sent(1)]], worker=1)
    seal(data, [[sent(2)]], worker=2)
    assert compact(data).rows == 2


def test_what_is_not_sealed_is_pending_in_the_ledger_and_what_is_nowhere_unbalances_it(data: DataDirectory) -> None:
    gone = seal(data, [[sent(1), sent(2)]])
    seal(data, [[sent(3)]], first=3)
    journal_file(data, [(b"GET", b"/collect", *[None] * 9)] * 4)
    ledger = read_ledger(data)
    assert (ledger.pending, ledger.missing, ledger.balanced) == (7, 0, True)
    gone.unlink()
    compact(data)
    ledger = read_ledger(data)
    assert (ledger.pending, ledger.missing, ledger.balanced) == (4, 2, False)


def test_what_a_running_collector_has_sealed_and_is_gone_is_missing(data: DataDirectory) -> None:
    journal = new_journal(data)
    for _ in range(3):
        assert journal.blocks.append(b"GET", b"/collect", *[None] * 9)
    journal.blocks.hand_over(0)
    journal.blocks.free(1)  # durable in a segment, it says
    ledger = read_ledger(data)
    assert (ledger.pending, ledger.missing, ledger.balanced) == (0, 3, False)
    journal.remove()


def test_a_segment_that_is_deleted_when_it_was_half_taken_is_missing(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kanalony.aggregate.compact._BATCH_SHARE", MEMORY // (128 << 10))
    path = seal(data, [[sent(n) for n in range(500)]])
    real = Lake.write
    calls = 0

    def write(self: Lake, events: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Killed
        return real(self, events)

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "write", write)
        with pytest.raises(Killed):
            compact(data)
    path.unlink()
    for _ in range(2):
        ledger = read_ledger(data)
        assert ledger.missing == 500 - ledger.total.read > 0
        assert not ledger.balanced
        compact(data)


def test_a_segment_that_is_sealed_while_the_ledger_looks_is_found(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = seal(data, [[sent(n) for n in range(10)]])
    opened = path.rename(data.open / path.name)
    real = Segment.__enter__

    def enter(self: Segment) -> Segment:
        # Before it is opened, and behind it.
        if opened.exists():
            opened.rename(path)
        entered = real(self)
        if path.exists() and path == self.path:
            path.rename(path.with_name("moved.lz4"))
        return entered

    monkeypatch.setattr(Segment, "__enter__", enter)
    ledger = read_ledger(data)
    assert (ledger.pending, ledger.missing, ledger.balanced) == (10, 0, True)


def test_rows_that_vanish_from_the_lake_unbalance_the_ledger(data: DataDirectory) -> None:
    seal(data, [[sent(n) for n in range(10)]])
    compact(data)
    assert read_ledger(data).balanced
    DeltaTable(data.lake / "events").delete("eventIndex = 3")
    ledger = read_ledger(data)
    assert (ledger.total.rows, ledger.total.stored, ledger.balanced) == (10, 9, False)


# Batches, files, memory


def test_a_run_of_many_batches_merges_its_files_and_keeps_every_row(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kanalony.aggregate.compact._BATCH_SHARE", MEMORY // (128 << 10))  # some 70 events a batch
    monkeypatch.setattr("kanalony.aggregate.compact._merge_bounds", lambda size: (500, 1 << 30))
    seal(data, [[sent(n, at=n) for n in range(k, k + 300)] for k in (0, 300, 600, 900)])
    result = compact(data)
    assert result.rows == 1200
    lake = ReadOnlyLake(data.lake / "events")
    assert lake.batch > 10
    assert len(lake.files) <= 8
    assert max(file.rows for file in lake.files) > 400
    assert [row["eventIndex"] for row in rows(data)] == list(range(1200))
    seal(data, [[sent(n, at=n) for n in range(1200)]], worker=2)
    assert compact(data).duplicates == 1200, "they are found in merged files as well"
    assert_balanced(data, read=2400, rows=1200, duplicates=1200)


def test_one_request_of_many_events_does_not_exceed_a_batch_by_more_than_itself(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kanalony.aggregate.compact._BATCH_SHARE", MEMORY // (128 << 10))
    body = b"[" + b",".join(b'{"eventIndex":%d}' % n for n in range(500)) + b"]"
    seal(data, [[Sent(NOON + n, b"sessionId=%d" % n, body) for n in range(5)]])
    result = compact(data)
    assert (result.requests, result.events, result.rows) == (5, 2500, 2500)
    assert ReadOnlyLake(data.lake / "events").batch == 6  # and one that says the segment is complete
    assert_balanced(data, accepted=5, read=5, events=2500, rows=2500)


def test_segments_are_deleted_when_they_are_in_the_lake_and_old_enough(data: DataDirectory) -> None:
    old, young = seal(data, [[sent(1)]], worker=1), seal(data, [[sent(2)]], worker=2)
    os.utime(old, (0, 0))
    assert compact(data, keep_segments=float("inf")).deleted == 0
    third = seal(data, [[sent(3)]], worker=3)
    os.utime(third, (0, 0))
    assert compact(data, keep_segments=3600).deleted == 2
    assert [path.exists() for path in (old, young, third)] == [False, True, False]
    assert compact(data, keep_segments=3600).segments == 0
    assert_balanced(data, accepted=3, rows=3)


# Killed anywhere


class Killed(BaseException):
    pass


STEPS: list[tuple[Any, str]] = [
    (Lake, "write"),
    (Lake, "_write_file"),
    (Record, "add"),
    (Lake, "commit"),
    (Table, "commit"),
    (Table, "_sync_log"),
    (Lake, "_merge"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])
def test_a_run_that_dies_at_any_step_has_stored_nothing_twice_and_lost_nothing(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool
) -> None:
    monkeypatch.setattr("kanalony.aggregate.compact._BATCH_SHARE", MEMORY // (128 << 10))
    monkeypatch.setattr("kanalony.aggregate.compact._merge_bounds", lambda size: (400, 1 << 30))
    real = getattr(owner, name)
    for worker in (1, 2):
        seal(data, [[sent(n, session=f"s{worker}") for n in range(k, k + 200)] for k in (0, 200, 400)], worker=worker)
    deaths = 0
    for death in (1, 3, 7, 1, 2, 12):
        calls = 0

        def dying(*arguments: Any, death: int = death, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == death and not after:
                raise Killed
            told = real(*arguments, **options)
            if calls == death:
                raise Killed
            return told

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dying)
            try:
                compact(data)
            except Killed:
                deaths += 1
    assert deaths
    compact(data)
    assert len(rows(data)) == 1200
    assert set(queries(data).values()) == {1}
    assert_balanced(data, accepted=1200, framed=1200, read=1200, rows=1200, duplicates=0)


def killed(data: DataDirectory, nth: int) -> None:
    """Compact, and die when the nth batch is written."""
    real = Lake.write
    calls = 0

    def write(self: Lake, events: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise Killed
        return real(self, events)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lake, "write", write)
        with pytest.raises(Killed):
            compact(data)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kanalony.aggregate.compact._BATCH_SHARE", MEMORY // (128 << 10))  # some 70 events each


@pytest.mark.usefixtures("small_batches")
def test_a_run_goes_on_in_a_file_whose_numbers_go_backwards(data: DataDirectory) -> None:
    late = seal(data, [[sent(n) for n in range(k, k + 100)] for k in (101, 201, 301, 401)], first=101)
    early = seal(data, [[sent(n) for n in range(1, 101)]])
    late.write_bytes(late.read_bytes() + early.read_bytes())
    early.unlink()
    killed(data, 3)
    compact(data)
    assert len(rows(data)) == 500
    assert_balanced(data, accepted=500, read=500, rows=500)


@pytest.mark.usefixtures("small_batches")
def test_damage_before_the_place_where_a_run_died_is_not_forgotten(data: DataDirectory) -> None:
    path = seal(data, [[sent(n) for n in range(k, k + 100)] for k in range(0, 600, 100)])
    content = bytearray(path.read_bytes())
    content[content.index(b"KFRM", content.index(b"KFRM") + 1) + 200] ^= 1  # in the second frame
    path.write_bytes(content)
    killed(data, 4)
    assert len(list(data.quarantine.iterdir())) == 0
    result = compact(data)
    assert result.damaged
    assert len(list(data.quarantine.iterdir())) == 1
    assert_balanced(data, accepted=600, read=500, quarantined=100, rows=500)


@pytest.mark.usefixtures("small_batches")
def test_a_run_that_dies_in_a_frame_that_was_known_in_part_counts_that_part_once(data: DataDirectory) -> None:
    seal(data, [[sent(n) for n in range(1, 101)]])
    compact(data)
    path = seal(data, [[sent(n) for n in range(1, 501)]])
    killed(data, 3)
    compact(data)
    assert len(rows(data)) == 500
    assert_balanced(data, accepted=600, framed=600, read=500, repeated=100)
    assert path.exists()


@pytest.mark.usefixtures("small_batches")
def test_a_segment_that_changes_when_it_was_half_taken_is_read_anew(data: DataDirectory) -> None:
    path = seal(data, [[sent(n) for n in range(500)]])
    killed(data, 3)
    os.utime(path, (10, 10))
    compact(data)
    assert len(rows(data)) == 500
    assert_balanced(data, read=500, rows=500)


@pytest.mark.usefixtures("small_batches")
def test_a_copy_that_is_the_same_to_its_time_is_the_same(data: DataDirectory, tmp_path: Path) -> None:
    data.add_spools([tmp_path / "spool"])
    path = seal(data, [[sent(n) for n in range(500)]])
    shutil.copy2(path, DataDirectory(tmp_path / "spool").sealed / path.name)
    assert compact(data).segments == 1
    assert_balanced(data, accepted=500, read=500, repeated=0)
    os.utime(path, (0, 0))
    assert compact(data, keep_segments=0).deleted == 2
    assert_balanced(data, read=500, repeated=500)


def test_a_torn_segment_that_is_put_right_balances_again(data: DataDirectory) -> None:
    path = seal(data, [[sent(n) for n in range(k, k + 10)] for k in (0, 10)])
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"KFRM") + 90])
    compact(data)
    assert not read_ledger(data).balanced
    path.write_bytes(whole)
    compact(data)
    assert_balanced(data, read=20, rows=20)


def test_a_claim_is_from_the_lowest_number_to_the_highest(data: DataDirectory) -> None:
    late = seal(data, [[sent(n) for n in range(101, 151)]], first=101)
    early = seal(data, [[sent(n) for n in range(11, 31)]], first=11)
    late.write_bytes(late.read_bytes() + early.read_bytes()[:-60])
    early.unlink()
    missing = read_ledger(data).missing
    compact(data)
    assert read_ledger(data).missing <= missing
    assert len(rows(data)) == 70


def test_a_name_that_is_no_text_is_a_segment_like_any_other(data: DataDirectory) -> None:
    path = seal(data, [[sent(1)]])
    path.rename(data.sealed / os.fsdecode(b"copie-\xe9.lz4"))
    assert compact(data).rows == 1
    assert compact(data).segments == 0
    assert run("ledger", "--data", data.root).returncode == 0


def test_a_segment_that_the_disk_does_not_give_is_told_and_tried_again(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = seal(data, [[sent(n) for n in range(k, k + 10)] for k in (0, 10, 20)], worker=1)
    seal(data, [[sent(n, session="t") for n in range(10)]], worker=2)
    inode = bad.stat().st_ino
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == inode and 400 < offset < 2000:
            raise OSError(5, "Input/output error")
        return real(fd, size, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", pread)
        for _ in range(2):
            assert compact(data).damaged
    assert len(rows(data)) >= 10
    compact(data)
    assert len(rows(data)) == 40
    assert_balanced(data, accepted=40, read=40, repeated=0, rows=40)


def test_long_values_that_many_rows_have_survive_merges(data: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kanalony.aggregate.compact._BATCH_SHARE", MEMORY // (2 << 20))
    monkeypatch.setattr("kanalony.aggregate.compact._merge_bounds", lambda size: (10_000, 1 << 20))
    agent = b"Mozilla/5.0 " + b"x" * 8000
    many = [
        Sent(NOON + n, b"partnerId=%d&entryId=e%d&eventIndex=%d" % (n % 3, n % 7, n), b"", agent) for n in range(900)
    ]
    seal(data, [many[:450], many[450:]])
    compact(data)
    files = ReadOnlyLake(data.lake / "events").files
    assert max(file.rows for file in files) > 500
    found = rows(data)
    assert [row["eventIndex"] for row in found] == list(range(900))
    assert {row["userAgent"] for row in found} == {agent.decode()}
    for file in files:
        table = pq.read_table(file.path, columns=["partnerId", "entryId", "receivedAt"], partitioning=None).to_pylist()
        keys = [(row["partnerId"], row["entryId"], row["receivedAt"]) for row in table]
        assert keys == sorted(keys)


def test_a_commit_that_a_power_loss_tore_is_taken_back(data: DataDirectory) -> None:
    seal(data, [[sent(n) for n in range(10)]])
    compact(data)
    seal(data, [[sent(n) for n in range(10, 20)]], first=11)
    compact(data)
    last = max((data.lake / "events" / "_delta_log").glob("*.json"))
    for kept in (b"", last.read_bytes()[:-40]):
        last.write_bytes(kept)
        assert compact(data).rows == 10
        assert len(rows(data)) == 20
        assert_balanced(data, read=20, rows=20)


def test_a_checkpoint_that_a_power_loss_tore_is_done_without(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kanalony.aggregate.delta._CHECKPOINT_COMMITS", 2)
    for number in range(4):
        seal(data, [[sent(number)]], first=number + 1)
        compact(data)
    log = data.lake / "events" / "_delta_log"
    for kept in (b"", b"PAR1", bytes(3000)):
        checkpoints = list(log.glob("*.checkpoint.parquet"))
        assert checkpoints
        for checkpoint in checkpoints:
            checkpoint.write_bytes(kept)
        done = run("ledger", "--data", data.root)
        assert done.returncode in (0, 2)
        assert len(done.stderr.splitlines()) <= 1
        assert compact(data).segments == 0
        assert_balanced(data, rows=4)
        DeltaTable(data.lake / "events").create_checkpoint()


def test_a_record_that_is_cut_off_is_mended_and_one_that_is_lost_is_refused(data: DataDirectory) -> None:
    seal(data, [[sent(n) for n in range(10)]])
    compact(data)
    record = data.lake / "segments.ndjson"
    whole = record.read_bytes()
    record.write_bytes(whole + b'{"batch": 2, "segm')
    assert compact(data).segments == 0
    assert record.read_bytes() == whole
    assert_balanced(data, rows=10)
    record.unlink()
    with pytest.raises(FormatError, match="does not hold batch 1"):
        compact(data)
    entry = json.loads(whole)
    for line in (
        b"nonsense",
        b"\xff\xfe",
        *(
            json.dumps(entry | wrong).encode()
            for wrong in ({"ranges": None}, {"ranges": [[1]]}, {"batch": "x"}, {"worker": "zz"}, {"segment": 3})
        ),
    ):
        record.write_bytes(whole + line + b"\n")
        with pytest.raises(FormatError, match="line 2"):
            compact(data)
        with pytest.raises(FormatError, match="line 2"):
            read_ledger(data)


def test_without_its_lake_everything_is_made_again_from_the_segments(data: DataDirectory) -> None:
    seal(data, [[sent(n) for n in range(10)]])
    compact(data)
    shutil.rmtree(data.lake / "events")
    assert compact(data).rows == 10
    assert_balanced(data, rows=10)


def test_a_second_run_leaves_at_once_and_says_so(data: DataDirectory) -> None:
    seal(data, [[sent(1)]])
    with Compaction(data, memory=MEMORY, keep_segments=0, enricher=None):  # type: ignore[arg-type]
        with pytest.raises(StorageError, match=f"process {os.getpid()}"):
            compact(data)
        done = run("compact", "--data", data.root)
        assert done.returncode == 2
        assert "another kanalony compact" in done.stderr
    assert compact(data).rows == 1


def test_a_segment_that_appears_during_a_run_is_for_the_next(data: DataDirectory) -> None:
    seal(data, [[sent(1)]], worker=1)
    with Compaction(data, memory=MEMORY, keep_segments=1e9, enricher=None) as compaction:  # type: ignore[arg-type]
        waiting = compaction.waiting()
    seal(data, [[sent(2)]], worker=2)
    assert len(waiting) == 1
    assert compact(data).rows == 2


# The command


@pytest.fixture
def process(data: DataDirectory) -> Iterator[subprocess.Popen[str]]:
    seal(data, [[sent(1)]], worker=1)
    command = [*KANALONY, "compact", "--data", str(data.root), "--every", "1s"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_every_goes_on_until_sigterm_and_drains(data: DataDirectory, process: subprocess.Popen[str]) -> None:
    assert process.stderr
    killer = threading.Timer(60, process.kill)  # so that a run that hangs is a failure
    killer.start()
    assert "1 rows" in process.stderr.readline()
    seal(data, [[sent(2), sent(3)]], worker=2)
    assert "2 rows" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    killer.cancel()
    assert len(rows(data)) == 3


def test_the_command_tells_what_it_did_and_the_ledger_shows_it(data: DataDirectory) -> None:
    path = seal(data, [[sent(1), sent(1), Sent(NOON, b"partnerId=x", b"{")]])
    done = run("compact", "--data", data.root)
    assert done.returncode == 0, done.stderr
    assert "3 requests, 3 events: 2 rows, 1 duplicates; 1 bodies that could not be read" in done.stderr
    assert "do not fit their column: partnerId: 1" in done.stderr
    done = run("ledger", "--data", data.root)
    assert done.returncode == 0
    assert path.name in done.stdout
    assert done.stdout.endswith("balanced\n")
    path.write_bytes(path.read_bytes()[:-10])
    shutil.move(path, data.sealed / path.name.replace("_test_", "_torn_"))
    done = run("compact", "--data", data.root)
    assert done.returncode == 1
    assert "the file ends without a trailer" in done.stderr
    shutil.rmtree(data.lake / "events")
    shutil.rmtree(data.sealed)
    data.sealed.mkdir()
    done = run("ledger", "--data", data.root, "--format", "json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["missing"] == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--every", "soon"], "--every is 'soon': must be a length of time like 60s"),
        (["--every", "forever"], "--every is 'forever': must be more than nothing, and not for ever"),
        (["--every", "0"], "--every is '0'"),
        (["--memory", "1"], "--memory is '1'"),
        (["--keep-segments", "a week"], "--keep-segments is 'a week'"),
        (["--geoip", "nowhere.mmdb"], "nowhere.mmdb cannot be read"),
        (["--ks-secrets", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--data", "nowhere"], "nowhere is not a kanalony data directory"),
    ],
)
def test_wrong_use_is_one_clear_line(data: DataDirectory, arguments: list[str], told: str) -> None:
    done = run("compact", "--data", data.root, *arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert told in done.stderr


def test_old_versions_are_vacuumed_once_a_day(data: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kanalony.aggregate.compact._BATCH_SHARE", MEMORY // (128 << 10))
    monkeypatch.setattr("kanalony.aggregate.compact._merge_bounds", lambda size: (1000, 1 << 30))
    seal(data, [[sent(n) for n in range(300)]])
    compact(data)
    orphan = data.lake / "events" / "date=2026-01-01" / "killed.zstd.parquet"
    orphan.write_bytes(b"of a run that was killed")
    files = list((data.lake / "events").rglob("*.parquet"))
    for path in files:
        os.utime(path, (0, 0))
    assert compact(data).segments == 0
    assert orphan.exists()
    os.utime(data.lake / "vacuumed", (0, 0))
    compact(data)
    assert not orphan.exists()
    assert len(rows(data)) == 300
    assert_balanced(data, rows=300)


# Versions


def test_a_lake_of_an_older_version_is_read_and_gets_the_columns_it_lacks(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lake-1 was written by a version that knew no places, no ks, no customVar3, and sent no such columns."""
    shutil.copytree(Path(__file__).parent / "lake-1", data.lake)
    before = rows(data)
    assert len(before) == 20
    assert "country" not in before[0]
    assert_balanced(data, read=20, rows=20)
    monkeypatch.setattr("kanalony.aggregate.compact._merge_bounds", lambda size: (1000, 1 << 30))
    monkeypatch.setattr("kanalony.aggregate.lake._MERGE_FILES", 2)
    new = Sent(NOON + 30 * SECOND, b"partnerId=1&entryId=0_abc&customVar3=new&sessionId=s")
    again = Sent(NOON + 30 * SECOND, b"eventType=3&partnerId=1&entryId=0_abc&sessionId=s&eventIndex=7&customVar2=old")
    seal(data, [[new, again]], worker=2)
    result = compact(data)
    assert (result.rows, result.duplicates) == (1, 1), "its duplicates are found as well"
    after = rows(data)
    assert after[-1]["customVar3"] == "new"
    assert [{name: row[name] for name in before[0]} for row in after[:20]] == before
    assert {row["country"] for row in after} == {None}
    assert len(ReadOnlyLake(data.lake / "events").files) == 1, "old and new rows were merged"
    assert_balanced(data, read=22, rows=21, duplicates=1)


def test_a_lake_with_a_column_of_another_type_is_refused(data: DataDirectory) -> None:
    import pyarrow as pa

    DeltaTable.create(data.lake / "events", pa.schema([("date", pa.date32()), ("partnerId", pa.string())]))
    with pytest.raises(FormatError, match="column partnerId"):
        compact(data)
    shutil.rmtree(data.lake / "events")
    (data.lake / "events" / "_delta_log").mkdir(parents=True)
    (data.lake / "events" / "_delta_log" / "00000000000000000000.json").write_text("{}\n")
    with pytest.raises(FormatError, match="cannot be read as a table of events"):
        compact(data)


# Disks


def test_a_full_disk_is_one_clear_line_and_the_next_run_goes_on(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kanalony.cli import main

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    seal(data, [[sent(n) for n in range(10)]])
    for target in ("kanalony.aggregate.delta.os.fsync", "kanalony.aggregate.delta.DeltaTable.create_write_transaction"):
        error = full if "fsync" in target else _commit_failed
        with monkeypatch.context() as patch:
            patch.setattr(target, error)
            with pytest.raises(SystemExit) as caught:
                main(["compact", "--data", str(data.root)])
        assert caught.value.code == 2
        assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]) == 1
    assert compact(data).rows == 10
    assert_balanced(data, rows=10)


def _commit_failed(*_: object, **__: object) -> None:
    from deltalake.exceptions import CommitFailedError

    raise CommitFailedError("Generic LocalFileSystem error: No space left on device")


def test_every_tries_again_when_the_disk_was_full(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from kanalony.aggregate import run
    from kanalony.settings import Settings

    seal(data, [[sent(1)]])
    real = Lake.write
    calls = 0

    def write(self: Lake, events: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise OSError(28, "No space left on device")
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, events)

    monkeypatch.setattr(Lake, "write", write)
    with Path(os.devnull).open("w") as terminal:
        assert run.compact(data, Settings(data=data.root), 0.01, terminal) == []
    assert calls == 3
    assert "trying again in 0.01 s" in caplog.text
    assert len(rows(data)) == 1


def test_a_file_of_the_lake_that_is_damaged_is_named(data: DataDirectory) -> None:
    seal(data, [[sent(1)]])
    compact(data)
    (file,) = ReadOnlyLake(data.lake / "events").files
    file.path.write_bytes(b"PAR1 no more")
    seal(data, [[sent(1)]], worker=2)
    done = run("compact", "--data", data.root)
    assert done.returncode == 2
    assert file.path.name in done.stderr.splitlines()[-1]
    done = run("ledger", "--data", data.root)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
