"""Segments become a lake: its rows, files and versions, and `kanalony compact`."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from harness.server import KANALONY, run
from kanalony.aggregate.lake import Lake, ReadOnlyLake
from kanalony.aggregate.limits import Limits
from kanalony.errors import FormatError
from kanalony.segments.directory import DataDirectory
from tests.aggregate.lakes import NOON, SECOND, SMALL_BATCHES, Sent, assert_balanced, compact, queries, rows, seal, sent


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


def test_a_file_holds_no_text_that_none_of_its_rows_has(data: DataDirectory) -> None:
    limits = Limits(row_group_rows=50)
    day = 86_400 * SECOND
    events = [
        Sent(NOON + (day if n % 40 == 7 else 0), b"eventIndex=%d&sessionId=s%d&userId=u%d" % (n, n // 8, n // 20))
        for n in range(400)
    ]
    seal(data, [events, events])
    assert compact(data, limits=limits).duplicates == 400
    for file in ReadOnlyLake(data.lake / "events").files:
        parquet = pq.ParquetFile(file.path, read_dictionary=["sessionId", "userId"])
        assert parquet.num_row_groups == (8 if file.rows > 50 else 1)
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=["sessionId", "userId"])
            for column in table.columns:
                texts = [text for chunk in column.chunks for text in chunk.dictionary.to_pylist()]
                assert sorted(texts) == sorted(set(column.to_pylist()))
    assert Counter(row["userId"] for row in rows(data)) == {f"u{n}": 20 for n in range(20)}


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


# Batches, files, memory


def test_a_run_of_many_batches_merges_its_files_and_keeps_every_row(data: DataDirectory) -> None:
    limits = replace(SMALL_BATCHES, merge_rows=500, merge_bytes=1 << 30)
    seal(data, [[sent(n, at=n) for n in range(k, k + 300)] for k in (0, 300, 600, 900)])
    result = compact(data, limits=limits)
    assert result.rows == 1200
    lake = ReadOnlyLake(data.lake / "events")
    assert lake.batch > 10
    assert len(lake.files) <= 8
    assert max(file.rows for file in lake.files) > 400
    assert [row["eventIndex"] for row in rows(data)] == list(range(1200))
    seal(data, [[sent(n, at=n) for n in range(1200)]], worker=2)
    assert compact(data, limits=limits).duplicates == 1200, "duplicates are found in merged files as well"
    assert_balanced(data, read=2400, rows=1200, duplicates=1200)


def test_one_request_of_many_events_does_not_exceed_a_batch_by_more_than_itself(data: DataDirectory) -> None:
    body = b"[" + b",".join(b'{"eventIndex":%d}' % n for n in range(500)) + b"]"
    seal(data, [[Sent(NOON + n, b"sessionId=%d" % n, body) for n in range(5)]])
    result = compact(data, limits=SMALL_BATCHES)
    assert (result.requests, result.events, result.rows) == (5, 2500, 2500)
    assert ReadOnlyLake(data.lake / "events").batch == 6  # and one whose entry completes the segment
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
    killer = threading.Timer(60, process.kill)  # a run that hangs fails
    killer.start()
    assert "1 rows" in process.stderr.readline()
    seal(data, [[sent(2), sent(3)]], worker=2)
    assert "2 rows" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    killer.cancel()
    assert len(rows(data)) == 3


def test_the_command_logs_its_result_and_the_ledger_shows_it(data: DataDirectory) -> None:
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
    done = run("ledger", "--data", data.root, "--format", "json")
    assert done.returncode == 1, "the loss of a segment without its end is unknown"
    assert json.loads(done.stdout)["balanced"] is False
    shutil.rmtree(data.lake / "events")
    done = run("ledger", "--data", data.root)
    assert done.returncode == 2
    assert "is lost" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--every", "soon"], "--every is 'soon': must be a length of time like 60s"),
        (["--every", "forever"], "--every is 'forever': must be more than 0 s and less than 115 days"),
        (["--every", "0"], "--every is '0'"),
        (["--memory", "1"], "--memory is '1'"),
        (["--keep-segments", "a week"], "--keep-segments is 'a week'"),
        (["--keep-segments", "-1d"], "--keep-segments is '-1d'"),
        (["--geoip", "nowhere.mmdb"], "nowhere.mmdb cannot be read"),
        (["--ks-secrets", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--data", "nowhere"], "nowhere is not a kanalony data directory"),
    ],
)
def test_wrong_use_is_one_clear_line(data: DataDirectory, arguments: list[str], message: str) -> None:
    done = run("compact", "--data", data.root, *arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_old_versions_are_vacuumed_once_a_day(data: DataDirectory) -> None:
    limits = replace(SMALL_BATCHES, merge_rows=1000, merge_bytes=1 << 30)
    seal(data, [[sent(n) for n in range(300)]])
    compact(data, limits=limits)
    orphan = data.lake / "events" / "date=2026-01-01" / "killed.zstd.parquet"
    orphan.write_bytes(b"of a run that was killed")
    files = list((data.lake / "events").rglob("*.parquet"))
    for path in files:
        os.utime(path, (0, 0))
    assert compact(data, limits=limits).segments == 0
    assert orphan.exists()
    os.utime(data.lake / "vacuumed", (0, 0))
    compact(data, limits=limits)
    assert not orphan.exists()
    assert len(rows(data)) == 300
    assert_balanced(data, rows=300)


# Versions


def test_a_lake_of_an_older_version_is_read_and_gets_the_columns_it_lacks(data: DataDirectory) -> None:
    """lake-1 was written by a version without columns of places, ks and customVar3."""
    shutil.copytree(Path(__file__).parent / "lake-1", data.lake)
    before = rows(data)
    assert len(before) == 20
    assert "country" not in before[0]
    assert_balanced(data, read=20, rows=20)
    limits = Limits(merge_rows=1000, merge_bytes=1 << 30, merge_files=2)
    new = Sent(NOON + 30 * SECOND, b"partnerId=1&entryId=0_abc&customVar3=new&sessionId=s")
    again = Sent(NOON + 30 * SECOND, b"eventType=3&partnerId=1&entryId=0_abc&sessionId=s&eventIndex=7&customVar2=old")
    seal(data, [[new, again]], worker=2)
    result = compact(data, limits=limits)
    assert (result.rows, result.duplicates) == (1, 1), "duplicates of old rows are found as well"
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
    with pytest.raises(FormatError, match="cannot be read as a Delta table"):
        compact(data)


# Disks


def test_a_full_disk_is_one_clear_line_and_the_next_run_goes_on(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kanalony.cli import main

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    seal(data, [[sent(n) for n in range(10)]])
    for target in ("kanalony.durable.os.fsync", "kanalony.aggregate.delta.DeltaTable.create_write_transaction"):
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
    from kanalony.aggregate import loop
    from kanalony.settings.compaction import CompactSettings

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
    assert loop.compact(data, CompactSettings(), 0.01, lambda _: nullcontext(lambda _: None)) == []
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
