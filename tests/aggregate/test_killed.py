"""A compaction dies anywhere, or finds the remains of another one: no event is doubled or lost."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from harness.server import run
from kanalony.aggregate.compact import Compaction
from kanalony.aggregate.delta import Table
from kanalony.aggregate.lake import Lake, ReadOnlyLake
from kanalony.aggregate.ledger import read_ledger
from kanalony.aggregate.limits import Limits
from kanalony.aggregate.manifest import Manifest
from kanalony.errors import FormatError, StorageError
from kanalony.segments.directory import DataDirectory
from tests.aggregate.lakes import (
    MEMORY,
    NOON,
    SMALL_BATCHES,
    Killed,
    Sent,
    assert_balanced,
    compact,
    queries,
    rows,
    seal,
    sent,
)

STEPS: list[tuple[Any, str]] = [
    (Lake, "write"),
    (Lake, "_write_file"),
    (Manifest, "add"),
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
    limits = replace(SMALL_BATCHES, merge_rows=400, merge_bytes=1 << 30)
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
            result = real(*arguments, **options)
            if calls == death:
                raise Killed
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dying)
            try:
                compact(data, limits=limits)
            except Killed:
                deaths += 1
    assert deaths
    compact(data, limits=limits)
    assert len(rows(data)) == 1200
    assert set(queries(data).values()) == {1}
    assert_balanced(data, accepted=1200, framed=1200, read=1200, rows=1200, duplicates=0)


def killed(data: DataDirectory, nth: int) -> None:
    """Compacts, and dies when the nth batch is written."""
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
            compact(data, limits=SMALL_BATCHES)


def test_a_run_goes_on_in_a_file_whose_numbers_go_backwards(data: DataDirectory) -> None:
    late = seal(data, [[sent(n) for n in range(k, k + 100)] for k in (101, 201, 301, 401)], first=101)
    early = seal(data, [[sent(n) for n in range(1, 101)]])
    late.write_bytes(late.read_bytes() + early.read_bytes())
    early.unlink()
    killed(data, 3)
    compact(data, limits=SMALL_BATCHES)
    assert len(rows(data)) == 500
    assert_balanced(data, accepted=500, read=500, rows=500)


def test_damage_before_the_place_where_a_run_died_is_not_forgotten(data: DataDirectory) -> None:
    path = seal(data, [[sent(n) for n in range(k, k + 100)] for k in range(0, 600, 100)])
    content = bytearray(path.read_bytes())
    content[content.index(b"KFRM", content.index(b"KFRM") + 1) + 200] ^= 1  # in the second frame
    path.write_bytes(content)
    killed(data, 4)
    assert len(list(data.quarantine.iterdir())) == 0
    result = compact(data, limits=SMALL_BATCHES)
    assert result.damaged
    assert len(list(data.quarantine.iterdir())) == 1
    assert_balanced(data, accepted=600, read=500, quarantined=100, rows=500)


def test_a_run_that_dies_in_a_frame_that_was_known_in_part_counts_that_part_once(data: DataDirectory) -> None:
    seal(data, [[sent(n) for n in range(1, 101)]])
    compact(data, limits=SMALL_BATCHES)
    path = seal(data, [[sent(n) for n in range(1, 501)]])
    killed(data, 3)
    compact(data, limits=SMALL_BATCHES)
    assert len(rows(data)) == 500
    assert_balanced(data, accepted=600, framed=600, read=500, repeated=100)
    assert path.exists()


def test_a_segment_that_changes_when_it_was_half_taken_is_read_again(data: DataDirectory) -> None:
    path = seal(data, [[sent(n) for n in range(500)]])
    killed(data, 3)
    os.utime(path, (10, 10))
    compact(data, limits=SMALL_BATCHES)
    assert len(rows(data)) == 500
    assert_balanced(data, read=500, rows=500)


def test_a_copy_that_is_the_same_to_its_time_is_the_same(data: DataDirectory, tmp_path: Path) -> None:
    data.add_spools([tmp_path / "spool"])
    path = seal(data, [[sent(n) for n in range(500)]])
    shutil.copy2(path, DataDirectory(tmp_path / "spool").sealed / path.name)
    assert compact(data, limits=SMALL_BATCHES).segments == 1
    assert_balanced(data, accepted=500, read=500, repeated=0)
    os.utime(path, (0, 0))
    assert compact(data, limits=SMALL_BATCHES, keep_segments=0).deleted == 2
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


def test_a_segment_that_the_disk_does_not_return_is_reported_and_tried_again(
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


def test_long_values_that_many_rows_have_survive_merges(data: DataDirectory) -> None:
    limits = Limits(batch_share=MEMORY // (2 << 20), merge_rows=10_000, merge_bytes=1 << 20)
    agent = b"Mozilla/5.0 " + b"x" * 8000
    many = [
        Sent(NOON + n, b"partnerId=%d&entryId=e%d&eventIndex=%d" % (n % 3, n % 7, n), b"", agent) for n in range(900)
    ]
    seal(data, [many[:450], many[450:]])
    compact(data, limits=limits)
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


def test_a_checkpoint_that_a_power_loss_tore_is_done_without(data: DataDirectory) -> None:
    limits = Limits(checkpoint_commits=2)
    for number in range(4):
        seal(data, [[sent(number)]], first=number + 1)
        compact(data, limits=limits)
    log = data.lake / "events" / "_delta_log"
    for kept in (b"", b"PAR1", bytes(3000)):
        checkpoints = list(log.glob("*.checkpoint.parquet"))
        assert checkpoints
        for checkpoint in checkpoints:
            checkpoint.write_bytes(kept)
        done = run("ledger", "--data", data.root)
        assert done.returncode in (0, 2)
        assert len(done.stderr.splitlines()) <= 1
        assert compact(data, limits=limits).segments == 0
        assert_balanced(data, rows=4)
        DeltaTable(data.lake / "events").create_checkpoint()


def test_a_manifest_that_is_cut_off_is_repaired_and_one_that_is_lost_is_refused(data: DataDirectory) -> None:
    seal(data, [[sent(n) for n in range(10)]])
    compact(data)
    manifest = data.lake / "segments.ndjson"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole + b'{"batch": 2, "segm')
    assert compact(data).segments == 0
    assert manifest.read_bytes() == whole
    assert_balanced(data, rows=10)
    manifest.unlink()
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
        manifest.write_bytes(whole + line + b"\n")
        with pytest.raises(FormatError, match="line 2"):
            compact(data)
        with pytest.raises(FormatError, match="line 2"):
            read_ledger(data)


def test_without_its_lake_everything_is_made_again_from_the_segments(data: DataDirectory) -> None:
    seal(data, [[sent(n) for n in range(10)]])
    compact(data)
    shutil.rmtree(data.lake)
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
