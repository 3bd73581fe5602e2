"""Rollups: sums of measures by ten seconds, minute and hour. Their definition, and read-only access.

Each rollup is a Delta table below DATA/lake/rollups-2, derived from the lake and from nothing else. A rollup with the
lake's batch number has all events of the lake; reports do not use one that lags behind. An hour that did not fit in
memory is a gap: a file without rows marks it, and reports read its events instead. kanalony.aggregate.rollup_writer
keeps rollups up to date.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from datasketches import update_theta_sketch

from kanalony.aggregate.delta import PARTITION, ReadOnlyTable
from kanalony.aggregate.measures import MEASURES, OTHER_TYPES, RAW_DIMENSIONS
from kanalony.aggregate.parquet import LakeFile
from kanalony.events import TIME_DIMENSIONS
from kanalony.units import HOUR, SECOND

DIRECTORY = "rollups-2"
"""Name below the lake. Raise its number when the columns below, or their meaning, change: a new directory is filled
from the events, and the old one is removed."""

REMEDY = f"move the directory {DIRECTORY} out of the lake's: `kanalony compact` makes it again from the events"

TIME = "time"
"""The column with the beginning of a row's interval."""

SKETCH = "sessions"
"""Column of the hours' rollup: a theta sketch of the distinct sessionIds (Apache DataSketches)."""

SKETCH_SIZE = 12
"""Binary logarithm of the values a sketch holds: exact up to 4,096, then within 3.2 % in 95 of 100 cases."""

# Names of the application transactions of a rollup's table. They are stored: do not change them.
BATCH = "kanalony-rollup"
"""The lake's batch number that the rollup is complete to."""
LAKE = "kanalony-lake"
"""The number of the table of events that the rollup was made from."""
KEPT_FROM = "kanalony-kept-from"
"""The first hour since 1970 that the rollup is complete from."""


class Rollup(NamedTuple):
    """Sums by an interval of time and by dimensions. A busy hour may have several rows with the same keys.

    `name` is also that of its dimension of time (`TIME_DIMENSIONS`).
    """

    name: str
    dimensions: tuple[str, ...]
    has_sketch: bool = False

    @property
    def seconds(self) -> int:
        """The length of an interval in seconds."""
        return TIME_DIMENSIONS[self.name] or 0

    @property
    def interval(self) -> int:
        """The length of an interval in µs."""
        return self.seconds * SECOND

    @property
    def schema(self) -> pa.Schema:
        """The columns of its table."""
        kinds = {"BIGINT": pa.int64(), "BIGINT[]": pa.list_(pa.int64())}
        return pa.schema(
            [
                pa.field(PARTITION, pa.date32()),
                pa.field(TIME, pa.timestamp("us", "UTC")),
                *(pa.field(name, pa.string()) for name in self.dimensions),
                *(pa.field(measure.name, kinds[measure.kind]) for measure in MEASURES.values()),
                pa.field(OTHER_TYPES, pa.map_(pa.int64(), pa.int64())),
                *([pa.field(SKETCH, pa.binary())] if self.has_sketch else []),
            ]
        )


_LIVE = ("partner", "entry", "playbackType")
ROLLUPS = (
    Rollup("hour", tuple(RAW_DIMENSIONS), has_sketch=True),
    Rollup("minute", (*_LIVE, "device", "operatingSystem", "browser", "country", "syndicationDomain", "application")),
    Rollup("tenSeconds", _LIVE),
)
"""From the coarsest, which answers most at the lowest cost, to the finest."""


class ReadOnlyRollup(ReadOnlyTable):
    """A rollup as it is now.

    Attributes:
        batch: The lake's batch number that it is complete to.
        lake: The number of the table of events that it was made from.
        kept_from: The time in µs since 1970 that it is complete from.
        gaps: The beginnings of the hours that it leaves out, in µs since 1970, sorted.
        files: Its files that have rows.
    """

    def __init__(self, lake: Path, rollup: Rollup) -> None:
        """Reads the table's log.

        Args:
            lake: The directory of the lake.
            rollup: Which rollup.

        Raises:
            FormatError: The directory holds something else.
        """
        super().__init__(lake / DIRECTORY / rollup.name, TIME, REMEDY)
        self.rollup = rollup
        self.batch = self.number(BATCH)
        self.lake = self.number(LAKE)
        self.kept_from = self.number(KEPT_FROM) * HOUR
        self.gaps = sorted(hour * HOUR for hour in gaps(self.files))
        self.files = [file for file in self.files if file.rows]


def gaps(files: Iterable[LakeFile]) -> set[int]:
    """Returns the hours since 1970 that a rollup with these files leaves out."""
    return {file.first // HOUR for file in files if not file.rows}


def sketch_of(values: list[str]) -> bytes:
    """Returns a theta sketch of distinct texts, in the serialized form of Apache DataSketches."""
    sketch = update_theta_sketch(SKETCH_SIZE)
    for value in values:
        sketch.update(value)
    return bytes(sketch.compact().serialize())
