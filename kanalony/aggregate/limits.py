"""How much `kanalony compact` holds in memory, and how large the files are that it writes."""

from dataclasses import dataclass

_BATCH_BASE = 160 << 20  # bytes that a compaction takes without any batch
_BATCH_MAX = 512 << 20  # bytes: columns of text have 31-bit offsets, and bytes that are not UTF-8 become three
_MERGE_ROWS = 1 << 20
_MERGE_ROW_SIZE = 2 << 10  # bytes that a row may take while files are merged, about
_ROLLUP_BASE = 224 << 20  # bytes that a refresh of the rollups takes without any rows


@dataclass(frozen=True)
class Limits:
    """Sizes of batches, files and parts of hours, beside `--memory`.

    The defaults suit every amount of memory that can be set, so there are no settings for them. Tests make them small:
    then a little data makes many batches, files and parts.
    """

    batch_share: int = 4
    """A batch takes one part in this many of the memory beyond the base: it is held twice, and the fingerprints of the
    window and freed buffers beside it. Larger batches make larger files, and commit less often."""

    merge_rows: int | None = None
    """Rows of a merged file, at most. None: as many as can be sorted in the memory of a batch, up to 1,048,576. Larger
    files are read faster, and each merge takes longer."""

    merge_bytes: int | None = None
    """Uncompressed bytes of a merged file, at most. None: a quarter of a batch."""

    merge_files: int = 8
    """Small files of a day that are merged into one. Fewer leave fewer files to read, and write each row more often."""

    row_group_rows: int = 64 << 10
    """Rows of a row group in a file of events. A reader decompresses that many at a time."""

    checkpoint_commits: int = 50
    """Commits of a Delta table between checkpoints: those that a reader of the log has to read one by one."""

    rollup_row_size: int = 2 << 10
    """Bytes of memory for an event whose hour is added up: 1.7 KiB when all of its values are its own. As many hours in
    a row as fit are taken at once."""

    rollup_least_sizes: tuple[int, ...] = (32, 256, 1024, 4096)
    """Bytes of an event that cannot wait on disk while an hour is added up, for one attempt after another: an hour is
    taken in parts that fit in memory. The least first, since each part reads the whole hour again; the larger ones
    for events with values of their own."""

    rollup_retention_hours: int = 1
    """Hours for which readers of an older version find a rollup's files. Short: every run replaces the files of the
    current hour."""

    rollup_vacuum_commits: int = 60
    """Commits of a rollup between two deletions of files that no version has."""

    def batch_size(self, memory: int) -> int:
        """Returns the bytes that a batch may take when a compaction may take `memory` bytes."""
        return min(max(memory - _BATCH_BASE, memory // 4) // self.batch_share, _BATCH_MAX)

    def merge_bounds(self, memory: int) -> tuple[int, int]:
        """Returns the rows, and the uncompressed bytes, that a merged file may have: it is sorted in memory.

        Args:
            memory: Bytes that a compaction may take.
        """
        batch_size = self.batch_size(memory)
        rows = min(_MERGE_ROWS, batch_size // _MERGE_ROW_SIZE) if self.merge_rows is None else self.merge_rows
        return rows, batch_size // 4 if self.merge_bytes is None else self.merge_bytes

    def rollup_budget(self, memory: int) -> int:
        """Returns the bytes for the SQL engine of the rollups when a refresh may take `memory` bytes.

        What the engine does not count, and its results, take as much again at most.
        """
        return max(memory - _ROLLUP_BASE, memory // 4) // 2


DEFAULT = Limits()
