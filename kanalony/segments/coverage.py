"""Sets of requests: which sequence numbers of which workers have been read, sealed or counted already."""

from bisect import bisect_right
from collections.abc import Iterable

from kanalony.segments.journal import RecordRange


class Coverage:
    """A set of sequence numbers by worker, as sorted disjoint ranges [first, end)."""

    def __init__(self) -> None:
        self._ranges: dict[int, list[tuple[int, int]]] = {}

    def missing(self, worker_id: int, first: int, end: int) -> list[tuple[int, int]]:
        """Returns the parts of [first, end) that are not in the set."""
        ranges = self._ranges.get(worker_id, [])
        parts = []
        for begin, stop in ranges[max(0, bisect_right(ranges, (first, first)) - 1) :]:
            if begin >= end:
                break
            if first < begin:
                parts.append((first, begin))
            first = max(first, stop)
        if first < end:
            parts.append((first, end))
        return parts

    def add(self, worker_id: int, first: int, end: int) -> None:
        """Adds [first, end)."""
        ranges = self._ranges.setdefault(worker_id, [])
        low = bisect_right(ranges, (first, first))
        if low and ranges[low - 1][1] >= first:
            low -= 1
        high = low
        while high < len(ranges) and ranges[high][0] <= end:
            first, end = min(first, ranges[high][0]), max(end, ranges[high][1])
            high += 1
        ranges[low:high] = [(first, end)]

    def missing_records(self, worker_id: int, ranges: Iterable[RecordRange]) -> list[RecordRange]:
        """Returns the parts of ranges of a worker's records that are not in the set."""
        return [
            records.part(*part)
            for records in ranges
            for part in self.missing(worker_id, records.first_sequence, records.end_sequence)
        ]
