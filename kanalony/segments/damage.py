"""Damaged ranges of files. Readers report them and go on; what to do about them is up to the caller."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Damage:
    """A range [start, end) of a file, in bytes, that does not hold what it should.

    An empty range is a gap: something is missing there.
    """

    path: Path
    start: int
    end: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: offset {self.start:,}, {self.end - self.start:,} bytes: {self.reason}"
