"""What was sent twice: an event with the same fingerprint as one that was kept, received within ten minutes of it.

A fingerprint is 128 bits of all that a player sent, so of partner, session, event index, type and payload; see
hash.h. Here 84 of them are compared, and times in whole milliseconds: 16 bytes an event, for all that lie within the
window.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kanalony.aggregate.delta import read_file
from kanalony.aggregate.lake import Lake

WINDOW = 600_000
"""Milliseconds. Players never retry; what comes twice comes from proxies, double clicks and copied logs, soon."""

_MERGE_ROWS = 2 << 20
_TIME_BITS = 44  # 557 years of milliseconds: times that are the same in these are the same
_TIMES = 1 << _TIME_BITS
_TIME = np.uint64(_TIMES - 1)

_U64 = npt.NDArray[np.uint64]
_I64 = npt.NDArray[np.int64]


@dataclass
class _Chunk:
    """Events of some files, by key. `tags` are 20 further bits of the fingerprint and, below them, the time."""

    paths: set[Path]
    first: int
    last: int
    keys: _U64
    tags: _U64


@dataclass(frozen=True)
class Prints:
    """The fingerprints of those `rows` that have one, and their times of receipt in ms; sorted by key."""

    rows: _I64
    keys: _U64
    tags: _U64
    times: _I64

    @classmethod
    def of(cls, fingerprints: pa.Array, received_at: pa.Array) -> "Prints":
        """Of columns of binary and of timestamps in µs."""
        rows = np.flatnonzero(pc.is_valid(fingerprints).to_numpy(zero_copy_only=False))
        halves = _halves(fingerprints.drop_null())
        times = received_at.cast(pa.int64()).to_numpy()[rows] // 1000
        tags = (halves[:, 1] & ~_TIME) | (times.astype(np.uint64) & _TIME)
        order = np.argsort(halves[:, 0])
        return cls(rows[order], halves[order, 0], tags[order], times[order])


def _halves(fingerprints: pa.Array) -> _U64:
    """Rows of the two numbers that each of these, which are not null, is."""
    _, offsets, data = fingerprints.buffers()
    if not len(fingerprints) or data is None:
        return np.empty((0, 2), np.uint64)
    first = int(np.frombuffer(offsets, np.int32)[fingerprints.offset])
    return np.frombuffer(data, np.uint64, 2 * len(fingerprints), first).reshape(-1, 2)


class Duplicates:
    """Finds them, with the lake's fingerprints of the times in question in memory."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._chunks: list[_Chunk] = []
        self._barren: set[Path] = set()  # files without fingerprints

    def find(self, prints: Prints) -> _I64:
        """The rows that are duplicates of others here or in the lake."""
        if not len(prints.rows):
            return np.empty(0, np.int64)
        self._load(prints.times)
        keys = prints.keys
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
        suspects = suspects[np.lexsort((prints.rows[suspects], prints.times[suspects]))]  # by time, then by row
        found = []
        for key, tag, i in zip(
            prints.keys[suspects].tolist(), prints.tags[suspects].tolist(), suspects.tolist(), strict=True
        ):
            times = kept.setdefault((key, tag >> _TIME_BITS), [])
            time = tag % _TIMES
            if any(min((time - other) % _TIMES, (other - time) % _TIMES) <= WINDOW for other in times):
                found.append(prints.rows[i])
            else:
                times.append(time)
        return np.array(found, np.int64)

    def add(self, prints: Prints, kept: npt.NDArray[np.bool_], paths: set[Path]) -> None:
        """Rows that are in these files of the lake now; `kept` is by row of the batch."""
        chosen = kept[prints.rows]
        if chosen.any():
            self._append(paths, prints.keys[chosen], prints.tags[chosen], prints.times[chosen])

    @property
    def size(self) -> int:
        """Bytes of the fingerprints in memory."""
        return sum(chunk.keys.nbytes + chunk.tags.nbytes for chunk in self._chunks)

    def forget(self) -> None:
        """Have none in memory: the lake's files are others now, or the memory is needed. The next batch reads them."""
        self._chunks = []
        self._barren = set()

    def _load(self, times: _I64) -> None:
        """Have in memory what was received within the window of any of these times, and not much more: one late event
        does not bring back all between.
        """
        whens = np.unique(times // WINDOW)

        def is_near(first: int, last: int) -> bool:
            at = np.searchsorted(whens, first // WINDOW - 1)
            return bool(at < len(whens) and whens[at] <= last // WINDOW + 1)

        self._chunks = [chunk for chunk in self._chunks if is_near(chunk.first, chunk.last)]
        loaded = self._barren.union(*(chunk.paths for chunk in self._chunks))
        for file in self._lake.files:
            if file.path not in loaded and is_near(file.first // 1000, file.last // 1000):
                told = read_file(file.path, ["fingerprint", "receivedAt"])
                prints = Prints.of(told["fingerprint"].combine_chunks(), told["receivedAt"].combine_chunks())
                if not len(prints.rows):
                    self._barren.add(file.path)
                else:
                    self._append({file.path}, prints.keys, prints.tags, prints.times)

    def _append(self, paths: set[Path], keys: _U64, tags: _U64, times: _I64) -> None:
        chunk = _Chunk(set(paths), int(times.min()), int(times.max()), keys, tags)
        # Few large ones are searched faster than many small ones; merged by size, each is merged a few times only.
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
