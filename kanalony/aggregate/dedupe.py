"""Finds duplicates: events with the fingerprint of an event that was kept, received within ten minutes of it.

A fingerprint is 128 bits of everything that a player sent: partner, session, event index, type and payload (see
kanalony/core/hash.h). Here 84 of its bits are compared, and times in whole milliseconds: 16 bytes for each event that
lies within the window.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kanalony.aggregate.lake import Lake
from kanalony.aggregate.parquet import read_file
from kanalony.units import MINUTE

_MILLISECOND = 1000  # µs

WINDOW = 10 * MINUTE // _MILLISECOND
"""Milliseconds. Players never retry; duplicates come from proxies, double clicks and copied logs, and come soon."""

_MERGE_ROWS = 2 << 20
_TIME_BITS = 44  # 557 years of milliseconds: times that are equal in these bits are equal
_TIMES = 1 << _TIME_BITS
_TIME = np.uint64(_TIMES - 1)

_U64 = npt.NDArray[np.uint64]
_I64 = npt.NDArray[np.int64]


@dataclass
class _Chunk:
    """Events of some files, sorted by key.

    Attributes:
        paths: The files.
        first: The earliest time of receipt in ms.
        last: The latest time of receipt in ms.
        keys: The first 64 bits of each fingerprint.
        tags: 20 further bits of the fingerprint and, below them, the time.
    """

    paths: set[Path]
    first: int
    last: int
    keys: _U64
    tags: _U64


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of a batch's events, sorted by key.

    Attributes:
        rows: The rows with a fingerprint.
        keys: As of `_Chunk`.
        tags: As of `_Chunk`.
        times: Times of receipt in ms.
    """

    rows: _I64
    keys: _U64
    tags: _U64
    times: _I64

    @classmethod
    def of(cls, fingerprints: pa.Array, received_at: pa.Array) -> "Fingerprints":
        """Sorts the fingerprints of a batch.

        Args:
            fingerprints: Binary, 16 bytes each or null.
            received_at: Timestamps in µs.
        """
        rows = np.flatnonzero(pc.is_valid(fingerprints).to_numpy(zero_copy_only=False))
        halves = _halves(fingerprints.drop_null())
        times = received_at.cast(pa.int64()).to_numpy()[rows] // _MILLISECOND
        tags = (halves[:, 1] & ~_TIME) | (times.astype(np.uint64) & _TIME)
        order = np.argsort(halves[:, 0])
        return cls(rows[order], halves[order, 0], tags[order], times[order])


def _halves(fingerprints: pa.Array) -> _U64:
    """Returns rows of the two 64-bit halves of fingerprints, none of which is null."""
    _, offsets, data = fingerprints.buffers()
    if not len(fingerprints) or data is None:
        return np.empty((0, 2), np.uint64)
    first = int(np.frombuffer(offsets, np.int32)[fingerprints.offset])
    return np.frombuffer(data, np.uint64, 2 * len(fingerprints), first).reshape(-1, 2)


class Deduplicator:
    """Finds the duplicates of a batch. Holds the lake's fingerprints of the batch's times in memory."""

    def __init__(self, lake: Lake) -> None:
        """Starts without fingerprints; `find` reads those it needs from the lake's files."""
        self._lake = lake
        self._chunks: list[_Chunk] = []
        self._barren: set[Path] = set()  # files without fingerprints

    def find(self, batch: Fingerprints) -> _I64:
        """Returns the rows of a batch that are duplicates of earlier ones in it, or of rows of the lake.

        Raises:
            FormatError: A file of the lake cannot be read.
        """
        if not len(batch.rows):
            return np.empty(0, np.int64)
        self._load(batch.times)
        keys = batch.keys
        again = keys[1:] == keys[:-1]
        suspect = np.concatenate([again, [False]]) | np.concatenate([[False], again])
        kept: dict[tuple[int, int], list[int]] = {}
        for chunk in self._chunks:
            at = np.searchsorted(chunk.keys, keys)
            met = (at < len(chunk.keys)) & (chunk.keys[np.minimum(at, len(chunk.keys) - 1)] == keys)
            suspect |= met
            for key, position in set(zip(keys[met].tolist(), at[met].tolist(), strict=True)):
                for tag in chunk.tags[position : np.searchsorted(chunk.keys, np.uint64(key), "right")].tolist():
                    kept.setdefault((key, tag >> _TIME_BITS), []).append(tag % _TIMES)
        suspects = np.flatnonzero(suspect)
        suspects = suspects[np.lexsort((batch.rows[suspects], batch.times[suspects]))]  # by time, then by row
        found = []
        for key, tag, i in zip(
            batch.keys[suspects].tolist(), batch.tags[suspects].tolist(), suspects.tolist(), strict=True
        ):
            times = kept.setdefault((key, tag >> _TIME_BITS), [])
            time = tag % _TIMES
            if any(min((time - other) % _TIMES, (other - time) % _TIMES) <= WINDOW for other in times):
                found.append(batch.rows[i])
            else:
                times.append(time)
        return np.array(found, np.int64)

    def add(self, batch: Fingerprints, kept: npt.NDArray[np.bool_], paths: set[Path]) -> None:
        """Adds the rows of a batch that are now in the lake.

        Args:
            batch: Its fingerprints.
            kept: For each row of the batch, whether it is in the lake.
            paths: The files that it is in.
        """
        chosen = kept[batch.rows]
        if chosen.any():
            self._append(paths, batch.keys[chosen], batch.tags[chosen], batch.times[chosen])

    @property
    def size(self) -> int:
        """Bytes of the fingerprints in memory."""
        return sum(chunk.keys.nbytes + chunk.tags.nbytes for chunk in self._chunks)

    def forget(self) -> None:
        """Frees all fingerprints: the lake has other files now, or the memory is needed. The next `find` reads them."""
        self._chunks = []
        self._barren = set()

    def _load(self, times: _I64) -> None:
        """Holds the fingerprints received within the window of any of these times, and not many more.

        One late event does not load everything received since.
        """
        windows = np.unique(times // WINDOW)

        def is_near(first: int, last: int) -> bool:
            at = np.searchsorted(windows, first // WINDOW - 1)
            return bool(at < len(windows) and windows[at] <= last // WINDOW + 1)

        self._chunks = [chunk for chunk in self._chunks if is_near(chunk.first, chunk.last)]
        loaded = self._barren.union(*(chunk.paths for chunk in self._chunks))
        for file in self._lake.files:
            if file.path not in loaded and is_near(file.first // _MILLISECOND, file.last // _MILLISECOND):
                rows = read_file(file.path, ["fingerprint", "receivedAt"])
                found = Fingerprints.of(rows["fingerprint"].combine_chunks(), rows["receivedAt"].combine_chunks())
                if not len(found.rows):
                    self._barren.add(file.path)
                else:
                    self._append({file.path}, found.keys, found.tags, found.times)

    def _append(self, paths: set[Path], keys: _U64, tags: _U64, times: _I64) -> None:
        chunk = _Chunk(set(paths), int(times.min()), int(times.max()), keys, tags)
        # A few large chunks are searched faster than many small ones. Merged by size, each row is merged a few times.
        while self._chunks and len(chunk.keys) >= len(self._chunks[-1].keys) // 2:
            other = self._chunks[-1]
            if len(chunk.keys) + len(other.keys) > _MERGE_ROWS:
                break
            self._chunks.pop()
            keys = np.concatenate([other.keys, chunk.keys])
            order = np.argsort(keys, kind="stable")
            chunk = _Chunk(
                other.paths | chunk.paths,
                min(other.first, chunk.first),
                max(other.last, chunk.last),
                keys[order],
                np.concatenate([other.tags, chunk.tags])[order],
            )
        self._chunks.append(chunk)
