"""The Parquet files of the lake and its rollups: read, and searched for damage."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kanalony.errors import FormatError
from kanalony.units import HOUR

EVENTS_REMEDY = (
    "put it back from a backup, or, while the segments are kept, move the lake's directory away and run "
    "`kanalony compact`; keep the rollups, which have its sums"
)
"""Remedy for a damaged file of events."""

_BATCH_ROWS = 1024
_SEARCH_SECONDS = 10.0  # to find a damaged file: reading all of a large lake would take hours


@dataclass(frozen=True)
class LakeFile:
    """A file of a table.

    Attributes:
        path: Its path.
        day: The day of its rows.
        rows: Number of rows.
        size: Bytes.
        first: The earliest time of a row, in µs since 1970.
        last: The latest time of a row, in µs since 1970.
    """

    path: Path
    day: date
    rows: int
    size: int
    first: int
    last: int

    @property
    def hours(self) -> range:
        """The hours since 1970 from its first time to its last."""
        return range(self.first // HOUR, self.last // HOUR + 1)


def read_file(path: Path, columns: list[str] | None = None, *, encoded: bool = False) -> pa.Table:
    """Reads a file of a table.

    Args:
        path: The file.
        columns: Names of columns; all when None.
        encoded: Whether text columns are dictionaries.

    Raises:
        FormatError: The file cannot be read.
    """
    try:
        texts = [field.name for field in pq.read_schema(path) if pa.types.is_string(field.type)] if encoded else []
        return pq.ParquetFile(path, read_dictionary=texts).read(columns)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def read_metadata(path: Path) -> pq.FileMetaData:
    """Reads the Parquet metadata of a file of a table.

    Raises:
        FormatError: The file cannot be read.
    """
    try:
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def find_damaged(paths: Sequence[Path], error: Exception) -> tuple[Path, Exception] | None:
    """Finds the damaged file after an SQL engine failed.

    Args:
        paths: The files that the engine read.
        error: Its error, which names the file only sometimes.

    Returns:
        The first file that cannot be read, and the error of reading it. None when a search of some seconds finds none.
    """
    until = time.monotonic() + _SEARCH_SECONDS
    named = [path for path in paths if str(path) in str(error)]
    for read, candidates in ((_read_pages, named), (pq.read_metadata, paths), (_read_pages, paths)):
        for path in candidates:
            if time.monotonic() > until:
                return None
            try:
                read(path)
            except (OSError, pa.ArrowException) as damage:
                return path, damage
    return None


def _read_pages(path: Path) -> None:
    """Reads all of a file, a column at a time, which takes little memory."""
    with pq.ParquetFile(path) as parquet:
        for name in parquet.schema_arrow.names:
            for _ in parquet.iter_batches(_BATCH_ROWS, columns=[name]):
                pass


def unreadable(path: Path, error: Exception, hint: str = EVENTS_REMEDY) -> FormatError:
    """Returns the error for a file that cannot be read.

    Args:
        path: The file.
        error: The error of reading it.
        hint: The remedy; the default is that for a file of events.
    """
    return FormatError(f"{path} cannot be read: {str(error).splitlines()[0]}", hint)
