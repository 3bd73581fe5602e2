"""Checking files: what `kanalony verify` and `kanalony cat PATH...` are made of."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kanalony.errors import WrongUse
from kanalony.segments.journal import JournalContents, read_journal
from kanalony.segments.names import DataDirectory
from kanalony.segments.reader import Coverage, Damage, Event, Segment, decode_records, pending_runs
from kanalony.segments.recovery import journals_in_use


@dataclass
class Check:
    """What was found. `torn` counts open segments that end in an unfinished write, which is normal after a crash."""

    segments: int = 0
    journals: int = 0
    in_use: int = 0
    frames: int = 0
    events: int = 0
    pending: int = 0
    torn: int = 0
    types: Counter[int] = field(default_factory=Counter)
    damaged: list[Damage] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.segments:,} segments, {self.frames:,} frames, {self.events:,} events"
        if self.journals:
            text += f"; {self.journals:,} journals left by dead workers, {self.pending:,} events pending"
        if self.in_use:
            text += f"; {self.in_use:,} journals in use, not checked"
        if self.torn:
            text += f"; {self.torn:,} open segments with a torn tail"
        return text + ("; damage found" if self.damaged else "; sound")


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """The segments and journals that paths name; a directory stands for all below it."""
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix in (".lz4", ".journal"))
            if not found:
                raise WrongUse(f"no segments or journals in {path}", "name files or directories that kanalony wrote")
            yield from found
        elif path.exists():
            yield path
        else:
            raise WrongUse(f"no file {path}", "name files or directories that kanalony wrote")


def _is_sealed(path: Path) -> bool:
    return path.absolute().parent.name != "open"


def _journal_damage(contents: JournalContents) -> list[Damage]:
    return [Damage(contents.path, start, end, reason) for start, end, reason in contents.damaged]


def events_of(paths: Iterable[Path], on_damage: Callable[[Damage], object]) -> Iterator[Event]:
    """The events of files, in their order. Raises WrongUse for a path that is not there, FormatError for a file that is
    not ours."""
    for path in _files(paths):
        if path.suffix == ".journal":
            contents = read_journal(path)
            for run in contents.runs:
                yield from decode_records(run.records, contents.worker_id, run.first_sequence) or []
            damaged = _journal_damage(contents)
        else:
            with Segment(path, _is_sealed(path)) as segment:
                yield from segment.events()
            damaged = segment.damaged
        for damage in damaged:
            on_damage(damage)


def check_paths(paths: Iterable[Path]) -> Check:
    """Check files. Raises WrongUse for a path that is not there, FormatError for a file that is not ours."""
    check = Check()
    for path in _files(paths):
        if path.suffix == ".journal":
            _check_journal(check, read_journal(path), Coverage())
        else:
            _check_segment(check, path, Coverage())
    return check


def check_data(data: DataDirectory) -> Check:
    """Check everything in a data directory that no running worker is writing."""
    check = Check()
    covered = Coverage()
    in_use = set(journals_in_use(data))
    check.in_use = len(in_use)
    for path in data.segments():
        _check_segment(check, path, covered)
    for path in data.journals():
        if path not in in_use:
            _check_journal(check, read_journal(path), covered)
    return check


def _check_segment(check: Check, path: Path, covered: Coverage) -> None:
    with Segment(path, _is_sealed(path)) as segment:
        for frame in segment.frames():
            if frame.events() is None:
                segment.note_bad_content(frame)
                continue
            prefix = frame.prefix
            covered.add(prefix.worker_id, prefix.first_sequence, prefix.first_sequence + prefix.event_count)
            check.frames += 1
            check.events += prefix.event_count
            check.types.update(prefix.types)
    check.segments += 1
    check.torn += segment.torn > 0
    check.damaged += segment.damaged


def _check_journal(check: Check, contents: JournalContents, covered: Coverage) -> None:
    check.journals += 1
    check.pending += sum(run.event_count for run in pending_runs(contents.runs, contents.worker_id, covered))
    check.damaged += _journal_damage(contents)
