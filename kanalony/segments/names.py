"""Names of journal and segment files: docs/segment-format.md, sections 3 and 4."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kanalony.segments.times import to_datetime, to_microseconds

JOURNAL_NAME = re.compile(r"([0-9a-f]{16})\.journal")
YOUNG_JOURNAL = ".new"
"""Suffix of a journal until it is complete and has its name."""

_SEGMENT_NAME = re.compile(r"(\d{8}T\d{6}\.\d{6})Z_([A-Za-z0-9.-]{0,63})_([0-9a-f]{16})_([0-9a-f]{16})\.lz4")


def worker_name(worker_id: int) -> str:
    """Returns a worker id as file names and output show it: 16 hex digits."""
    return f"{worker_id:016x}"


@dataclass(frozen=True)
class SegmentName:
    """The parts of a segment's file name.

    Attributes:
        created_at: µs since 1970.
        host: At most 63 ASCII letters, digits, `.` and `-`.
        worker_id: 64 bits.
        first_sequence: The sequence number of the segment's first request.
    """

    created_at: int
    host: str
    worker_id: int
    first_sequence: int

    def __str__(self) -> str:
        start = to_datetime(self.created_at).strftime("%Y%m%dT%H%M%S.%f")
        return f"{start}Z_{self.host}_{worker_name(self.worker_id)}_{self.first_sequence:016x}.lz4"

    @classmethod
    def parse(cls, name: str) -> "SegmentName | None":
        """Returns the parts of a name, or None when it is not a segment's."""
        match = _SEGMENT_NAME.fullmatch(name)
        if match is None:
            return None
        try:
            start = datetime.strptime(match[1], "%Y%m%dT%H%M%S.%f").replace(tzinfo=UTC)
        except ValueError:
            return None  # digits, but no date
        return cls(to_microseconds(start), match[2], int(match[3], 16), int(match[4], 16))


def segments_of(directories: Iterable[Path], worker_id: int) -> list[Path]:
    """Returns one worker's segments in some directories, by first sequence number."""
    found = [path for directory in directories for path in directory.glob(f"*_{worker_name(worker_id)}_*.lz4")]
    return sorted(found, key=lambda path: path.name.rsplit("_", 1)[1])


def is_sealed(path: Path) -> bool:
    """Whether a segment must be complete: everywhere but in the directory of open segments."""
    return path.absolute().parent.name != "open"
