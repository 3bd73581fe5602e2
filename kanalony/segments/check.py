"""Checks files and whole data directories: `kanalony verify`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kanalony.bodies import Parameters, read_events
from kanalony.core.frames import OTHER_TYPE
from kanalony.core.querystring import bare_name, event_type
from kanalony.errors import FormatError
from kanalony.segments.coverage import Coverage
from kanalony.segments.damage import Damage
from kanalony.segments.directory import DataDirectory
from kanalony.segments.journal import JournalContents, is_in_use, read_journal
from kanalony.segments.names import is_sealed
from kanalony.segments.reader import Request, Segment
from kanalony.segments.requests import each_segment, files_of


@dataclass
class Check:
    """The result of a check.

    Attributes:
        segments: Number of segments.
        journals: Number of journals that were checked; of a data directory those left by dead workers.
        in_use: Number of journals that running workers hold, which were not checked.
        frames: Number of good frames, each counted once.
        requests: Number of requests in them.
        events: Number of events in these requests.
        unread: Number of requests whose body could not be read, or only in part.
        pending: Number of requests in journals and in no segment.
        types: Number of events by event type.
        torn: Open segments that end in an unfinished write, which is normal after a crash.
        damaged: Damaged ranges.
    """

    segments: int = 0
    journals: int = 0
    in_use: int = 0
    frames: int = 0
    requests: int = 0
    events: int = 0
    unread: int = 0
    pending: int = 0
    types: Counter[int] = field(default_factory=Counter)
    torn: list[tuple[Segment, Damage]] = field(default_factory=list)
    damaged: list[Damage] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.segments:,} segments, {self.frames:,} frames, "
        text += f"{self.requests:,} requests, {self.events:,} events"
        if self.unread:
            text += f"; {self.unread:,} bodies that could not be read"
        if self.journals:
            text += f"; {self.journals:,} journals left by dead workers, {self.pending:,} requests pending"
        if self.in_use:
            text += f"; {self.in_use:,} journals in use, not checked"
        if self.torn:
            text += f"; {len(self.torn):,} open segments with a torn tail"
        text += "; damage found" if self.damaged else "; sound"
        if self.types:
            known = sorted((count, kind) for kind, count in self.types.items())[::-1]
            text += "\nby event type: "
            text += ", ".join(f"{'other' if kind == OTHER_TYPE else kind}: {count:,}" for count, kind in known)
        return text


def check_paths(paths: Iterable[Path]) -> Check:
    """Checks the segments and journals that paths name.

    Raises:
        UsageError: A path is missing, or a directory holds no segments and no journals.
        FormatError: A file is neither a segment nor a journal, or of a later version.
        OSError: A file cannot be read.
    """
    check = Check()
    for path in files_of(paths):
        if path.suffix == ".journal":
            _check_journal(check, read_journal(path), Coverage())
        else:
            with Segment(path, is_sealed(path)) as segment:
                _check_segment(check, segment, Coverage())
    return check


def check_data(data: DataDirectory) -> Check:
    """Checks everything in a data directory that no running worker is writing.

    Raises:
        StorageError: A spool directory is missing, or this user may not list a directory.
    """
    check = Check()
    live: set[int] = set()
    left: dict[int, JournalContents] = {}
    for path in data.journals():
        try:
            if is_in_use(path):
                live.add(int(path.stem, 16))
            else:
                left[int(path.stem, 16)] = read_journal(path)
        except FileNotFoundError:
            continue  # its worker has ended
        except FormatError as error:
            check.damaged.append(Damage(path, 0, 0, str(error)))
    covered = Coverage()
    for segment in each_segment(data, check.damaged.append):
        _check_segment(check, segment, covered)
    for contents in left.values():
        _check_journal(check, contents, covered)
    check.in_use = len(live)
    for segment, tail in check.torn:
        # A torn tail is no loss as long as the journal has the requests.
        journal = left.get(segment.worker_id or 0)
        if segment.worker_id not in live and (journal is None or segment.next_sequence <= journal.watermark):
            check.damaged.append(tail)
    return check


def _check_segment(check: Check, segment: Segment, covered: Coverage) -> None:
    """Checks every frame that no other file has brought yet."""
    for frame in segment.frames():
        prefix = frame.prefix
        end = prefix.first_sequence + prefix.request_count
        if not covered.missing(prefix.worker_id, prefix.first_sequence, end):
            continue
        requests = frame.requests()
        if requests is None or prefix.types != _count_types(requests):
            segment.note_bad_content(frame)
            continue
        covered.add(prefix.worker_id, prefix.first_sequence, end)
        check.frames += 1
        check.requests += prefix.request_count
        for request in requests:
            _count_events(check, request)
    check.segments += 1
    check.damaged += segment.damaged
    if segment.torn:
        size = segment.size
        tail = Damage(segment.path, size - segment.torn, size, "the last frame is incomplete, and no journal holds it")
        check.torn.append((segment, tail))


def _count_types(requests: list[Request]) -> dict[int, int]:
    """Requests by the event type in their query, as a frame's prefix counts them."""
    return dict(Counter(event_type(request.query or b"") for request in requests))


def _count_events(check: Check, request: Request) -> None:
    events = read_events(request)
    check.unread += events.problem is not None
    for parameters in events.parameters:
        check.events += 1
        check.types[_type_among(parameters)] += 1


def _type_among(parameters: Parameters) -> int:
    for name, value in parameters:
        if bare_name(name) == b"eventType":
            return event_type(b"eventType=" + value)
    return OTHER_TYPE


def _check_journal(check: Check, contents: JournalContents, covered: Coverage) -> None:
    check.journals += 1
    check.pending += sum(
        records.request_count for records in covered.missing_records(contents.worker_id, contents.pending)
    )
    check.damaged += contents.damaged
