"""Damaged, copied, missing and disordered segments: sound requests are in the lake, the ledger shows the others."""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import lz4.frame
import pytest
from deltalake import DeltaTable

from harness.server import run
from kanalony.aggregate.columns import decompress
from kanalony.aggregate.lake import Lake, ReadOnlyLake
from kanalony.aggregate.ledger import read_ledger
from kanalony.aggregate.limits import Limits
from kanalony.aggregate.rollups import DIRECTORY
from kanalony.cli import main
from kanalony.errors import FormatError
from kanalony.reports.execution import Reports
from kanalony.reports.query import Query
from kanalony.segments.directory import DataDirectory
from kanalony.segments.reader import Segment
from tests.aggregate.lakes import (
    SMALL_BATCHES,
    Killed,
    assert_balanced,
    compact,
    queries,
    roll_up,
    rows,
    seal,
    sent,
    tree,
)
from tests.files import journal_file, new_journal
from tests.reports.conftest import dashboard


def test_damaged_ranges_go_to_quarantine_and_sound_requests_to_the_lake(data: DataDirectory) -> None:
    path = seal(data, [[sent(n) for n in range(k, k + 10)] for k in range(0, 50, 10)])
    content = path.read_bytes()
    at = content.index(b"KFRM", content.index(b"KFRM") + 4) + 200  # in the second frame
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    result = compact(data)
    assert (result.rows, result.quarantined, len(result.damaged)) == (40, 10, 2)  # the range, and the missing requests
    (kept,) = data.quarantine.iterdir()
    assert kept.read_bytes() in path.read_bytes()
    assert compact(data).segments == 0
    assert_balanced(data, accepted=50, framed=40, read=40, quarantined=10, rows=40)
    # A sound copy brings the lost requests back, and no others.
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
    assert (ledger.total.accepted, ledger.balanced) == (30, False), "how many requests followed that frame is unknown"
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

    from kanalony.core.frames import crc32c

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


def test_an_error_of_the_lake_ends_the_run_and_loses_nothing(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
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
                compact(data, limits=SMALL_BATCHES)
    compact(data, limits=SMALL_BATCHES)
    assert len(rows(data)) == 900
    assert_balanced(data, accepted=900, read=900, rows=900)


def test_a_segment_that_cannot_be_opened_is_reported_and_the_others_are_taken(data: DataDirectory) -> None:
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


def test_a_file_that_is_no_segment_is_reported_and_left_alone(data: DataDirectory) -> None:
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


def test_unsealed_requests_are_pending_in_the_ledger_and_missing_ones_unbalance_it(data: DataDirectory) -> None:
    gone = seal(data, [[sent(1), sent(2)]])
    seal(data, [[sent(3)]], first=3)
    journal_file(data, [(b"GET", b"/collect", *[None] * 9)] * 4)
    ledger = read_ledger(data)
    assert (ledger.pending, ledger.missing, ledger.balanced) == (7, 0, True)
    gone.unlink()
    compact(data)
    ledger = read_ledger(data)
    assert (ledger.pending, ledger.missing, ledger.balanced) == (4, 2, False)


def test_a_segment_that_a_running_collector_sealed_and_that_is_gone_is_missing(data: DataDirectory) -> None:
    journal = new_journal(data)
    for _ in range(3):
        assert journal.blocks.append(b"GET", b"/collect", *[None] * 9)
    journal.blocks.hand_over(0)
    journal.blocks.free(1)  # durable in a segment, by its watermark
    ledger = read_ledger(data)
    assert (ledger.pending, ledger.missing, ledger.balanced) == (0, 3, False)
    journal.remove()


def test_a_segment_that_is_deleted_when_it_was_half_taken_is_missing(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
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
            compact(data, limits=SMALL_BATCHES)
    path.unlink()
    for _ in range(2):
        ledger = read_ledger(data)
        assert ledger.missing == 500 - ledger.total.read > 0
        assert not ledger.balanced
        compact(data, limits=SMALL_BATCHES)


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


@pytest.mark.parametrize(
    ("change", "is_sound"),
    [
        (lambda frame, content: frame, True),
        (lambda frame, content: lz4.frame.compress(content, store_size=True, block_linked=False), True),
        (lambda frame, content: frame + b"x", False),
        (lambda frame, content: frame + frame, False),
        (lambda frame, content: frame[:-1], False),
        (lambda frame, content: frame[:-1] + bytes([frame[-1] ^ 1]), False),
        (lambda frame, content: frame[: len(frame) // 2], False),
        (lambda frame, content: lz4.frame.compress(content + b"x", store_size=True), False),
        (lambda frame, content: lz4.frame.compress(content[:-1], store_size=True), False),
        (lambda frame, content: lz4.frame.compress(content, store_size=False), False),
        (lambda frame, content: b"", False),
        (lambda frame, content: content, False),
    ],
    ids=[
        "same",
        "blocks",
        "trailing",
        "twice",
        "cut",
        "checksum",
        "half",
        "longer",
        "shorter",
        "unsized",
        "empty",
        "plain",
    ],
)
def test_a_frame_that_decompresses_for_the_collector_does_so_for_the_lake(
    data: DataDirectory, change: Callable[[bytes, bytes], bytes], is_sound: bool
) -> None:
    with Segment(seal(data, [[sent(n) for n in range(100)]]), sealed=True) as segment:
        (frame,) = segment.frames()
    content = frame.records()
    assert content
    changed = replace(frame, compressed=change(frame.compressed, content))
    assert changed.records() == (content if is_sound else None)
    decompressed = decompress(changed)
    assert (decompressed and decompressed.to_pybytes()) == (content if is_sound else None)


# The table or its manifest is lost, or from another time: nothing is changed, and no command reports success.


def lose(pattern: str) -> Callable[[Path, Path], None]:
    """Deletes files of the log."""

    def damage(lake: Path, _: Path) -> None:
        paths = list((lake / "events" / "_delta_log").glob(pattern))
        assert paths
        for path in paths:
            path.unlink()

    return damage


def lose_the_whole_log(lake: Path, _: Path) -> None:
    shutil.rmtree(lake / "events" / "_delta_log")


def lose_the_log_and_the_manifest(lake: Path, _: Path) -> None:
    lose_the_whole_log(lake, _)
    (lake / "segments.ndjson").unlink()


def lose_the_table(lake: Path, _: Path) -> None:
    shutil.rmtree(lake / "events")


def replace_the_table(lake: Path, spare: Path) -> None:
    other = DataDirectory.writable(spare)
    three_batches(other)
    shutil.rmtree(lake / "events")
    shutil.copytree(other.lake / "events", lake / "events")


def replace_the_manifest(lake: Path, spare: Path) -> None:
    other = DataDirectory.writable(spare)
    three_batches(other)
    shutil.copy(other.lake / "segments.ndjson", lake)


def keep_lines(*numbers: int) -> Callable[[Path, Path], None]:
    """Keeps these lines of the manifest."""

    def damage(lake: Path, _: Path) -> None:
        manifest = lake / "segments.ndjson"
        lines = manifest.read_bytes().splitlines(keepends=True)
        manifest.write_bytes(b"".join(lines[number] for number in numbers))

    return damage


def lose_the_manifest(lake: Path, _: Path) -> None:
    (lake / "segments.ndjson").unlink()


def three_batches(data: DataDirectory) -> None:
    """Makes a lake whose manifest has five lines: of batches 1, 2, 2, 3 and 3."""
    for workers in ((1,), (1, 2), (1, 2)):
        for worker in workers:
            first = 1 + 10 * sum(f"_{worker:016x}_" in path.name for path in data.sealed.iterdir())
            seal(data, [[sent(first + n, session="") for n in range(10)]], worker=worker, first=first)
        compact(data)


@pytest.mark.parametrize(
    ("damage", "reason", "reports_answer"),
    [
        (lose_the_whole_log, "no table any more", False),
        (lose("*"), "no table any more", False),
        (lose_the_log_and_the_manifest, "no table any more", False),
        (lose_the_table, "no table any more", False),
        (lose("*0[2-9].json"), "holds batch 3", False),
        (replace_the_table, "is the manifest of table", False),
        (replace_the_manifest, "is the manifest of table", False),
        (lose_the_manifest, "does not hold batch 3", True),
        (keep_lines(), "does not hold batch 3", True),
        (keep_lines(0, 1, 2), "does not hold batch 3", True),
        (keep_lines(0, 1, 2, 3), "does not hold batch 3", True),
        (keep_lines(1, 2, 3, 4), "has lost entries", True),
        (keep_lines(0, 2, 3, 4), "has lost entries", True),
        (keep_lines(0, 1, 3, 4), "has lost entries", True),
        (keep_lines(0, 3, 4), "has lost entries", True),
    ],
    ids=[
        "log",
        "commits",
        "log-and-manifest",
        "table",
        "last-commits",
        "other-table",
        "other-manifest",
        "manifest",
        "manifest-empty",
        "manifest-cut",
        "manifest-cut-in-a-batch",
        "manifest-without-its-first",
        "manifest-without-the-first-of-a-batch",
        "manifest-without-the-last-of-a-batch",
        "manifest-without-a-batch",
    ],
)
def test_a_lake_that_has_lost_a_part_is_refused_and_left_as_it_is(
    data: DataDirectory,
    tmp_path: Path,
    damage: Callable[[Path, Path], None],
    reason: str,
    reports_answer: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    three_batches(data)
    roll_up(data)
    damage(data.lake, tmp_path / "spare")
    seal(data, [[sent(99)]], worker=9)
    before = tree(data.root)
    for command in (["compact"], ["ledger"], ["ledger", "--format", "json"]):
        with pytest.raises(SystemExit) as caught:
            main([*command, "--data", str(data.root)])
        assert caught.value.code == 2
        printed = capsys.readouterr()
        (line,) = (line for line in printed.err.splitlines() if line.startswith("Error: "))
        assert reason in line
        assert str(data.lake) in line
        assert "from a backup, or move it away" in line
        assert printed.out == ""
    if reports_answer:
        assert Reports(data).run(Query(("events",))).totals == {"events": 50}
    else:
        with pytest.raises(FormatError, match=reason):
            Reports(data).run(Query(("events",)))
    assert tree(data.root) == before
    # The remedy of the message.
    data.lake.rename(tmp_path / "away")
    compact(data)
    assert_balanced(data, read=51, rows=51)


def test_report_and_dashboard_report_that_the_table_is_lost(data: DataDirectory) -> None:
    seal(data, [[sent(n) for n in range(10)]])
    roll_up(data)
    lose_the_whole_log(data.lake, data.lake)
    done = run("report", "--metrics", "events", "--data", data.root)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no table any more" in done.stderr
    with dashboard(data.root) as address, pytest.raises(HTTPError) as caught:
        urlopen(f"{address}/api_v3/index.php?service=analytics&action=query&metrics=events", timeout=30)
    assert caught.value.code == 503
    answer = json.loads(caught.value.read())
    assert (answer["kind"], "no table any more" in answer["data"]["message"]) == ("unavailable", True)
    assert "from a backup, or move it away" in answer["data"]["hint"]


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_the_last_commit_may_be_lost_as_long_as_its_segments_are_there(data: DataDirectory, kept: int) -> None:
    """A run that died before the commit leaves the same files, and never without the segments."""
    for number in range(1, 4):
        seal(data, [[sent(number * 10 + n, session="") for n in range(10)]], first=number * 10 - 9)
        compact(data, keep_segments=float("inf") if number - 1 in range(kept) or number == 3 else 0)
    last = data.lake / "events" / "_delta_log" / "00000000000000000003.json"
    commit = last.read_bytes()
    last.unlink()
    segment = max(data.sealed.iterdir())
    content, modified = segment.read_bytes(), segment.stat().st_mtime_ns
    segment.unlink()
    before = tree(data.root)
    with pytest.raises(FormatError, match=f"batch 3, which the lake lacks, and {segment.name} is gone"):
        compact(data)
    assert tree(data.root) == before
    assert not read_ledger(data).balanced
    if kept:  # the segment is put back
        segment.write_bytes(content)
        os.utime(segment, ns=(modified, modified))
        assert compact(data).rows == 10
    else:  # the commit is
        last.write_bytes(commit)
        assert compact(data).rows == 0
    assert len(rows(data)) == 30
    assert_balanced(data, read=30, rows=30)


def test_a_lake_that_is_put_back_whole_goes_on_from_there(data: DataDirectory, tmp_path: Path) -> None:
    three_batches(data)
    shutil.copytree(data.lake, tmp_path / "backup")
    for worker in (3, 4, 5):
        seal(data, [[sent(n, session="") for n in range(10)]], worker=worker)
        compact(data)
    shutil.rmtree(data.lake)
    shutil.copytree(tmp_path / "backup", data.lake)
    assert_balanced(data, read=50, rows=50)
    assert compact(data).rows == 30
    assert_balanced(data, read=80, rows=80)


def test_a_log_of_which_only_a_checkpoint_is_left_can_be_read_and_not_written(data: DataDirectory) -> None:
    three_batches(data)
    DeltaTable(data.lake / "events").create_checkpoint()
    lose("*.json")(data.lake, data.lake)
    seal(data, [[sent(99)]], worker=9)
    before = tree(data.root)
    with pytest.raises(FormatError, match=r"00000000000000000003\.json.* is missing") as caught:
        compact(data)
    assert "from a backup" in caught.value.hint
    assert tree(data.root) == before
    assert Reports(data).run(Query(("events",))).totals == {"events": 50}
    assert_balanced(data, read=50, rows=50)


def test_a_manifest_of_version_1_is_still_read_and_one_of_a_later_version_is_refused(data: DataDirectory) -> None:
    three_batches(data)
    manifest = data.lake / "segments.ndjson"
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    for entry in entries:
        assert entry["version"] == 2
        del entry["version"], entry["table"], entry["part"]
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert_balanced(data, read=50, rows=50)
    seal(data, [[sent(99)]], worker=9)
    assert compact(data).rows == 1
    assert_balanced(data, read=51, rows=51)
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 3'))
    for read in (compact, read_ledger, lambda data: Reports(data).run(Query(("events",)))):
        with pytest.raises(FormatError, match="version 3") as caught:
            read(data)
        assert caught.value.hint == "use the version of kanalony that wrote it"


# A damaged file of a table is named, and the remedy in the message loses nothing more.


def cut_off(path: Path) -> None:
    os.truncate(path, 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def change_the_pages(path: Path) -> None:
    content = path.read_bytes()
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    path.write_bytes(content[:4] + bytes(byte ^ 0x55 for byte in content[4:end]) + content[end:])


DAMAGES = pytest.mark.parametrize("damage", [cut_off, empty, change_the_pages, Path.unlink])


@DAMAGES
def test_a_damaged_file_of_events_is_named_and_the_rollups_are_to_be_kept(
    data: DataDirectory,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = Limits(merge_files=99)
    for hour in range(3):  # a file each
        seal(data, [[sent(n, at=hour * 3600) for n in range(10)]], first=1 + 10 * hour)
        roll_up(data, limits=limits)
    file = sorted(ReadOnlyLake(data.lake / "events").files, key=lambda file: file.first)[1].path
    damage(file)
    seal(data, [[sent(n, at=3700, session="") for n in range(10)]], worker=2)
    for read in (
        lambda: Reports(data).run(Query(("events",), ("customVar1", "minute"))),
        lambda: roll_up(data, limits=limits),
    ):
        assert Reports(data).run(Query(("events",))).totals == {"events": 30}, "the rollups answer"
        with pytest.raises(FormatError) as caught:
            read()
        assert f"{file} cannot be read" in str(caught.value)
        assert "put it back from a backup" in caught.value.hint
        assert "keep the rollups" in caught.value.hint
    assert not caplog.records, "no rollup is blamed"


@DAMAGES
def test_a_damaged_file_of_a_rollup_is_named_and_made_again_from_the_events(
    data: DataDirectory, tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    seal(data, [[sent(n) for n in range(10)]])
    roll_up(data)
    (file,) = (data.lake / DIRECTORY / "hour").rglob("date=*/*.parquet")
    damage(file)
    assert Reports(data).run(Query(("events",), ("entry", "hour"))).totals == {"events": 10}
    (record,) = caplog.records
    assert f"{file} cannot be read" in record.getMessage()
    assert "move the directory rollups-" in record.getMessage()
    seal(data, [[sent(n, at=6 * 3600) for n in range(10)]], worker=2)  # of the same day
    with pytest.raises(FormatError) as caught:
        roll_up(data)
    assert f"{file} cannot be read" in str(caught.value)
    assert "move the directory rollups-" in caught.value.hint
    (data.lake / DIRECTORY).rename(tmp_path / "away")
    roll_up(data)
    assert Reports(data).run(Query(("events",))).totals == {"events": 20}


def test_a_damaged_log_of_a_rollup_is_named_and_the_other_tables_answer(
    data: DataDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seal(data, [[sent(n) for n in range(10)]])
    roll_up(data)
    log = data.lake / DIRECTORY / "hour" / "_delta_log"
    min(log.glob("*.json")).write_text("{}\n")
    found = Reports(data).run(Query(("events",), ("entry", "hour")))
    assert (found.totals, found.tables) == ({"events": 10}, ["minute"])
    said = [record.getMessage() for record in caplog.records]
    with pytest.raises(FormatError) as caught:
        roll_up(data)
    for text in (*said, f"{caught.value} {caught.value.hint}"):
        assert f"{log.parent} cannot be read" in text
        assert "move the directory rollups-" in text
        assert "backup" not in text
    assert len(said) == 1
    (data.lake / DIRECTORY).rename(tmp_path / "away")
    roll_up(data)
    assert Reports(data).run(Query(("events",), ("hour",))).tables == ["hour"]


def test_when_events_and_rollups_are_damaged_nothing_is_to_be_deleted(
    data: DataDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    seal(data, [[sent(n) for n in range(10)]])
    roll_up(data)
    files = [path for path in data.lake.rglob("date=*/*.parquet") if "minute" not in str(path)]
    for path in files:
        change_the_pages(path)
    with pytest.raises(FormatError) as caught:
        Reports(data).run(Query(("events",), ("entry", "hour")))
    assert f"{data.lake / 'events'}" in str(caught.value)
    said = caught.value.hint + "".join(record.getMessage() for record in caplog.records)
    assert "delete" not in said


# A full disk while the tables are made.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mounts a file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def compacted(data: DataDirectory, capsys: pytest.CaptureFixture[str]) -> str | None:
    """Runs `kanalony compact`. Returns its one error line; None when it did not fail."""
    with pytest.raises(SystemExit) as caught:
        main(["compact", "--data", str(data.root)])
    lines = capsys.readouterr().err.splitlines()
    if caught.value.code == 0:
        return None
    assert caught.value.code == 2
    (line,) = (line for line in lines if not line.startswith("20"))  # those of the log have the date first
    assert line.startswith("Error: ")
    return line


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_tables_are_made_stops_no_later_run(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed: Counter[str] = Counter()
    successes = 0
    for room in range(0, 1 << 20, 8192):
        data = DataDirectory.writable(small_disk / "data")
        seal(data, [[sent(n) for n in range(30)]])
        fill = small_disk / "fill"
        with fill.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, os.statvfs(small_disk).f_bavail * 4096 - room)
        line = compacted(data, capsys)
        if line is not None:
            assert "No space left" in line
            assert "run it again; nothing is lost" in line
            path = Path(line.split()[1])
            failed[next(name for name in reversed(path.parts) if not name.startswith(("date=", "0")))] += 1
        fill.unlink()
        assert compacted(data, capsys) is None
        assert_balanced(data, rows=30)
        assert Reports(data).run(Query(("events",))).totals == {"events": 30}
        shutil.rmtree(data.root)
        successes += line is None
        if successes == 2:
            break
    # Each step has failed once: the lock and the manifest, the tables, and the files in them.
    assert set(failed) == {"lake", "events", "hour", "minute", "tenSeconds"}, failed


@pytest.mark.parametrize("table", ["events", "hour", "minute", "tenSeconds"])
def test_a_quota_that_is_used_up_when_a_table_is_made_stops_no_later_run(
    data: DataDirectory, table: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = DeltaTable.create

    def create(root: Path, *arguments: Any, **options: Any) -> DeltaTable:
        if root.name == table:
            (root / "_delta_log").mkdir()
            raise OSError(
                "Generic error\n  \x1b[31m\u21b3\x1b[0m Unable to copy\n   Disk quota exceeded (os error 122)\n"
            )
        return real(root, *arguments, **options)

    seal(data, [[sent(n) for n in range(10)]])
    with monkeypatch.context() as patch:
        patch.setattr(DeltaTable, "create", create)
        line = compacted(data, capsys)
    assert line is not None
    assert f"{table} cannot be written: Generic error: Unable to copy: Disk quota exceeded" in line
    assert "\x1b" not in line
    assert compacted(data, capsys) is None
    assert_balanced(data, rows=10)
    assert Reports(data).run(Query(("events",))).totals == {"events": 10}
