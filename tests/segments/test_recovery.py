"""Recovery of what dead workers left, with a crash at every step."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kanalony.core.frames import crc32c
from kanalony.errors import FormatError
from kanalony.segments import writer
from kanalony.segments.check import check_data
from kanalony.segments.damage import Damage
from kanalony.segments.directory import DataDirectory
from kanalony.segments.journal import Journal, is_in_use
from kanalony.segments.recovery import STAGED, Adopted, adopt_journals, adopt_surplus
from kanalony.segments.requests import read_data
from kanalony.segments.writer import SegmentWriter
from tests.files import Fields, fields, fields_of, new_journal


class DeadWorker:
    """A worker that died with `framed` events in open segments and `pending` more in its journal only."""

    def __init__(
        self, data: DataDirectory, framed: int, pending: int, *, freed: bool = True, segments: int = 1
    ) -> None:
        self._frames_per_segment = -(-framed // 10 // segments) or 1
        self._frames = 0
        self.data = data
        self.events = [fields(number) for number in range(framed + pending)]
        journal = new_journal(data, block_size=1 << 16)
        self.journal = journal.path
        self.segment: Path | None = None
        for start in range(0, framed, 10):
            for event in self.events[start : min(start + 10, framed)]:
                assert journal.blocks.append(*event)
            journal.blocks.hand_over(0)
            self._write_frame(journal, freed)
        for event in self.events[framed:]:
            assert journal.blocks.append(*event)
        if self.segment:
            self._writer._file.close()
        journal._file.close()  # the lock goes with it

    def _write_frame(self, journal: Journal, freed: bool) -> None:
        block = journal.blocks.full_block(0 if freed else journal.blocks.full_blocks - 1)
        assert block
        records, first = block
        if self._frames % self._frames_per_segment == 0:
            self._writer = SegmentWriter(self.data, "test", journal.worker_id, 0, first)
            self.segment = self._writer.path
        self._frames += 1
        with records:
            self._writer.add(records, first)
        self._writer.sync()
        if freed:
            journal.blocks.free(1)


def recover(data: DataDirectory) -> Adopted:
    (adopted,) = adopt_journals(data)
    return adopted


def read(data: DataDirectory) -> tuple[list[Fields], list[Damage]]:
    damaged: list[Damage] = []
    return [fields_of(event) for event in read_data(data, damaged.append)], damaged


def assert_recovered(data: DataDirectory, events: list[Fields]) -> None:
    """Every event is in sealed segments, once, and neither open segments nor journals are left."""
    assert read(data) == (events, [])
    check = check_data(data)
    assert (check.damaged, check.torn, check.journals) == ([], [], 0)
    assert check.requests == len(events)
    assert [*data.open.iterdir(), *data.journal.iterdir()] == []


def assert_recovered_of_several(data: DataDirectory, events: list[Fields]) -> None:
    """As `assert_recovered`, for events in another order."""
    found, damaged = read(data)
    assert (sorted(found, key=str), damaged) == (events, [])
    check = check_data(data)
    assert (check.damaged, check.torn, check.journals) == ([], [], 0)
    assert [*data.open.iterdir(), *data.journal.iterdir()] == []


@pytest.mark.parametrize("framed", [0, 10, 25])
@pytest.mark.parametrize("pending", [0, 1, 15])
@pytest.mark.parametrize("freed", [True, False])
def test_every_acknowledged_event_is_recovered_once(
    data: DataDirectory, framed: int, pending: int, freed: bool
) -> None:
    """Also when the worker died between the sync of a frame and the freeing of its block, so that both hold it."""
    dead = DeadWorker(data, framed, pending, freed=freed)
    assert read(data) == (dead.events, []), "before recovery"
    adopted = recover(data)
    assert (adopted.requests, adopted.lost, adopted.damaged) == (pending, 0, [])
    assert_recovered(data, dead.events)
    assert list(adopt_journals(data)) == []


def test_a_torn_tail_whose_events_the_journal_holds_is_dropped(data: DataDirectory) -> None:
    dead = DeadWorker(data, 20, 5, freed=False)
    assert dead.segment
    dead.segment.write_bytes(dead.segment.read_bytes()[:-7])
    assert read(data) == (dead.events, [])
    adopted = recover(data)
    assert (adopted.requests, adopted.lost, adopted.damaged) == (15, 0, [])
    assert_recovered(data, dead.events)


def test_a_torn_tail_that_was_durable_is_counted_as_lost_and_kept_in_quarantine(data: DataDirectory) -> None:
    dead = DeadWorker(data, 20, 5)
    assert dead.segment
    content = dead.segment.read_bytes()
    dead.segment.write_bytes(content[:-7])
    adopted = recover(data)
    assert (adopted.requests, adopted.lost) == (5, 10)
    assert_recovered(data, dead.events[:10] + dead.events[20:])
    (kept,) = data.quarantine.iterdir()
    assert content[:-7].endswith(kept.read_bytes())
    assert len(adopted.damaged) == 1


def test_a_damaged_frame_costs_its_own_events_and_is_kept_in_quarantine(data: DataDirectory) -> None:
    dead = DeadWorker(data, 30, 5)
    assert dead.segment
    content = bytearray(dead.segment.read_bytes())
    content[len(content) // 2] ^= 1
    dead.segment.write_bytes(content)
    adopted = recover(data)
    assert (adopted.requests, adopted.lost) == (5, 10)
    assert_recovered(data, dead.events[:10] + dead.events[20:])
    (damage,) = [damage for damage in adopted.damaged if damage.end > damage.start]
    (kept,) = data.quarantine.iterdir()
    assert kept.read_bytes() == bytes(content[damage.start : damage.end])


def test_a_damaged_journal_record_costs_itself_and_is_kept_in_quarantine(data: DataDirectory) -> None:
    dead = DeadWorker(data, 0, 10)
    content = dead.journal.read_bytes()
    at = content.index(b"n=4&")
    dead.journal.write_bytes(content[:at] + b"N" + content[at + 1 :])
    adopted = recover(data)
    assert (adopted.requests, adopted.lost) == (9, 1)
    assert_recovered(data, dead.events[:4] + dead.events[5:])
    assert b"N=4&" in b"".join(path.read_bytes() for path in data.quarantine.iterdir())


def test_a_damaged_journal_header_costs_no_event(data: DataDirectory) -> None:
    dead = DeadWorker(data, 10, 10)
    content = dead.journal.read_bytes()
    dead.journal.write_bytes(content[:12] + b"\xff" + content[13:])
    adopted = recover(data)
    assert (adopted.requests, adopted.lost) == (10, 0)
    assert_recovered(data, dead.events)


def test_an_open_segment_without_its_journal_is_sealed(data: DataDirectory) -> None:
    dead = DeadWorker(data, 20, 0)
    dead.journal.unlink()
    recover(data)
    assert_recovered(data, dead.events)


def test_a_journal_in_use_is_left_alone(data: DataDirectory) -> None:
    journal = new_journal(data)
    journal.blocks.append(*fields(1))
    assert list(adopt_journals(data)) == []
    assert is_in_use(journal.path)
    assert read(data) == ([fields(1)], [])


def test_a_journal_that_another_process_reads_is_adopted_later(data: DataDirectory) -> None:
    dead = DeadWorker(data, 10, 10)
    with dead.journal.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert list(adopt_journals(data)) == []
    recover(data)
    assert_recovered(data, dead.events)


@pytest.mark.parametrize("with_journal", [True, False])
def test_recoveries_at_the_same_time_do_not_harm_each_other(data: DataDirectory, with_journal: bool) -> None:
    """Several processes at once, for a worker with several open segments, as full disks leave them."""
    for _ in range(5):
        dead = DeadWorker(data, 300, 20, segments=3)
        if not with_journal:
            dead.journal.unlink()
            dead.events = dead.events[:300]
        command = [sys.executable, "-c", "import sys; from kanalony.cli import main; input(); main()"]
        command += ["recover", "--data", str(data.root)]
        recoveries = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(4)
        ]
        for process in recoveries:
            assert process.stdin
            process.stdin.write(b"\n")
            process.stdin.flush()
        for process in recoveries:
            _, errors = process.communicate(timeout=60)
            assert (process.returncode, errors) == (0, b"")
        assert_recovered(data, dead.events)
        for path in data.sealed.iterdir():
            path.unlink()


def test_cat_during_recovery_misses_nothing(data: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between listing and reading, recovery moves the events of an open segment to one of another name."""
    dead = DeadWorker(data, 40, 5, segments=2)
    real = DataDirectory.segments
    calls = 0

    def segments(self: DataDirectory) -> list[Path]:
        nonlocal calls
        calls += 1
        listed = real(self)
        if calls == 1:
            recover(self)
        return listed

    monkeypatch.setattr(DataDirectory, "segments", segments)
    assert read(data) == (dead.events, [])
    assert calls == 2


def test_a_segment_whose_writer_lives_is_left_alone_whatever_its_journal(data: DataDirectory) -> None:
    """As when its journal is in a directory that is no spool directory of this one."""
    journal = new_journal(data, block_size=1 << 16)
    journal.blocks.append(*fields(1))
    journal.blocks.hand_over(0)
    block = journal.blocks.full_block(0)
    assert block
    records, first = block
    living = SegmentWriter(data, "test", journal.worker_id, 0, first)
    with records:
        living.add(records, first)
    living.sync()
    journal.path.unlink()
    assert [adopted.segments for adopted in adopt_journals(data)] == [[]]
    assert living.path.exists()
    living.seal()
    assert read(data) == ([fields(1)], [])


def test_a_sealed_segment_is_never_overwritten(data: DataDirectory) -> None:
    """Recovery died after sealing; then the sealed copy was damaged. The original still has every event."""
    dead = DeadWorker(data, 30, 0)
    assert dead.segment
    original = dead.segment.read_bytes()
    journal = dead.journal.read_bytes()
    recover(data)
    (sealed,) = data.sealed.iterdir()
    content = bytearray(sealed.read_bytes())
    content[150] ^= 1
    sealed.write_bytes(content)
    dead.segment.write_bytes(original)
    dead.journal.write_bytes(journal)
    recover(data)
    assert len(list(data.sealed.iterdir())) == 2
    events, _ = read(data)
    assert sorted(events, key=str) == sorted(dead.events, key=str)


def test_a_segment_deleted_under_its_writer_is_noticed_before_its_events_are_given_up(data: DataDirectory) -> None:
    journal = new_journal(data)
    journal.blocks.append(*fields(1))
    journal.blocks.hand_over(0)
    block = journal.blocks.full_block(0)
    assert block
    written = SegmentWriter(data, "test", journal.worker_id, 0, 1)
    with block[0] as records:
        written.add(records, 1)
    written.path.unlink()
    with pytest.raises(FileNotFoundError, match="deleted while it was written"):
        written.sync()
    assert written.abandon() is None


def test_a_copy_of_a_journal_is_reported_and_not_adopted(data: DataDirectory) -> None:
    journal = new_journal(data)
    journal.blocks.append(*fields(1))
    copy = data.journal / "0123456789abcdef.journal"
    copy.write_bytes(journal.path.read_bytes())
    with pytest.raises(FormatError, match="is a copy of the journal of worker"):
        list(adopt_journals(data))
    assert copy.exists()
    assert journal.path.exists()


def test_one_file_of_a_later_version_does_not_keep_the_others_from_recovery(data: DataDirectory) -> None:
    later = data.journal / "0000000000000000.journal"
    content = bytearray(new_journal(data).path.read_bytes())
    content[8] = 2
    content[24:32] = bytes(8)
    content[104:108] = crc32c(content[:104]).to_bytes(4, "little")
    later.write_bytes(content)
    (data.sealed / "99999999T999999.000000Z_x_0000000000000000_0000000000000001.lz4").write_bytes(b"nonsense")
    dead = DeadWorker(data, 10, 5)
    with pytest.raises(FormatError, match="version 2"):
        list(adopt_journals(data))
    events, damaged = read(data)
    assert events == dead.events
    assert len(damaged) == 2
    assert later.exists()


def test_a_tail_of_zeros_after_a_power_loss_is_torn_not_damaged(data: DataDirectory) -> None:
    dead = DeadWorker(data, 20, 5, freed=False)
    assert dead.segment
    content = dead.segment.read_bytes()
    dead.segment.write_bytes(content[:-200] + bytes(200))
    assert check_data(data).damaged == []
    adopted = recover(data)
    assert (adopted.lost, adopted.damaged) == (0, [])
    assert_recovered(data, dead.events)


@pytest.mark.parametrize("adopt", [adopt_journals, lambda data: adopt_surplus(data, 5)])
def test_the_young_journal_of_a_dead_worker_is_deleted(
    data: DataDirectory, adopt: Callable[[DataDirectory], Iterator[Adopted]]
) -> None:
    young = data.journal / "0123456789abcdef.new"
    with young.open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert list(adopt(data)) == []
        assert young.exists(), "a worker is creating it"
    assert list(adopt(data)) == []
    assert not young.exists()


def test_surplus_journals_are_adopted_without_their_open_segments_and_the_rest_later(data: DataDirectory) -> None:
    dead = [DeadWorker(data, 20, 5, freed=False) for _ in range(4)]
    events = sorted((event for worker in dead for event in worker.events), key=str)
    assert len(list(adopt_surplus(data, 1))) == 3
    assert len(data.journals()) == 1
    assert len(list(data.open.iterdir())) == 4
    found, damaged = read(data)
    assert (sorted(found, key=str), damaged) == (events, [])
    assert {adopted.lost for adopted in adopt_journals(data)} == {0}
    assert_recovered_of_several(data, events)


def test_a_torn_tail_whose_events_were_sealed_from_the_journal_is_dropped(data: DataDirectory) -> None:
    dead = DeadWorker(data, 20, 5, freed=False)
    assert dead.segment
    dead.segment.write_bytes(dead.segment.read_bytes()[:-7])
    assert len(list(adopt_surplus(data, 0))) == 1
    assert data.journals() == []
    adopted = recover(data)
    assert (adopted.lost, adopted.damaged) == (0, [])
    assert_recovered_of_several(data, sorted(dead.events, key=str))


def test_surplus_is_adopted_while_another_process_recovers(data: DataDirectory) -> None:
    """That process may take long for a large segment, and a worker cannot serve before it has a journal."""
    dead = DeadWorker(data, 0, 5)
    with data.recovery_lock.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert [adopted.requests for adopted in adopt_surplus(data, 0)] == [5]
    assert_recovered(data, dead.events)


def test_a_journal_that_the_disk_refuses_does_not_keep_others_from_adoption(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adopting the others frees disk space, so the refused one is tried again."""
    dead = [DeadWorker(data, 0, 5) for _ in range(3)]
    real = SegmentWriter.add
    refusals = 0

    def add(self: SegmentWriter, records: bytes, first_sequence: int) -> None:
        nonlocal refusals
        if len(data.journals()) == 3 and not refusals:
            refusals += 1
            raise OSError(errno.ENOSPC, "no space left")
        real(self, records, first_sequence)

    monkeypatch.setattr(SegmentWriter, "add", add)
    assert len(list(adopt_journals(data))) == 3
    assert refusals == 1
    assert_recovered_of_several(data, sorted((event for worker in dead for event in worker.events), key=str))


class Crash(BaseException):
    """Stands for the death of the process at a system call."""


def crash_points(data: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Repeats recovery until it ends; each time it dies one disk-changing call later."""
    changing: list[tuple[object, str]] = [
        (os, "write"),
        (os, "fsync"),
        (os, "fdatasync"),
        (os, "ftruncate"),
        (Path, "rename"),
        (Path, "unlink"),
    ]
    for survived in range(1000):
        left = survived

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                nonlocal left
                if left == 0:
                    raise Crash
                left -= 1
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for owner, name in changing:
                patch.setattr(owner, name, counted(getattr(owner, name)))
            # A dead process does not clean up.
            patch.setattr(writer.SegmentWriter, "abandon", lambda self: self._file.close())
            try:
                list(adopt_journals(data))
            except Crash:
                yield survived
                continue
        return


@pytest.mark.parametrize("torn", [False, True])
def test_recovery_may_die_at_any_step_and_be_repeated(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    """The files left by earlier crashes accumulate, which is harder than one crash alone."""
    dead = DeadWorker(data, 25, 15, freed=False)
    assert dead.segment
    if torn:
        dead.segment.write_bytes(dead.segment.read_bytes()[:-9])
    steps = 0
    for _ in crash_points(data, monkeypatch):
        steps += 1
        assert read(data) == (dead.events, [])
    assert steps > 10, "the crash points were not reached"
    assert_recovered(data, dead.events)
    assert not list(data.open.glob(f"*{STAGED}"))


@pytest.mark.parametrize("steps", range(0, 24, 3))
def test_recovery_that_died_once_is_completed_by_the_next(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    dead = DeadWorker(data, 25, 15, freed=False)
    for survived in crash_points(data, monkeypatch):
        if survived >= steps:
            break
    list(adopt_journals(data))
    assert_recovered(data, dead.events)
