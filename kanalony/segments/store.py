"""Where a collector process keeps events: its journal, and the thread that turns full blocks into segments."""

import logging
import threading
import time
from collections.abc import Callable

from kanalony.errors import FormatError
from kanalony.segments.journal import Journal
from kanalony.segments.names import DataDirectory
from kanalony.segments.recovery import adopt_journals
from kanalony.segments.writer import SegmentWriter
from kanalony.settings import Settings

log = logging.getLogger("kanalony")

RETRY_INTERVAL = 1.0  # seconds between two tries at a disk that refuses


class Store:
    """The events of one process. `append` is Blocks.append of its journal.

    The sealer thread takes blocks that are full, or whose oldest event is half of sync_interval old, writes each as a
    frame, syncs, and frees them. When the disk refuses, blocks stay as they are and it tries again: serving goes on
    while a block is free.
    """

    def __init__(self, data: DataDirectory, settings: Settings) -> None:
        """Raises StorageError when there is no room for a journal."""
        self._settings = settings
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._writer: SegmentWriter | None = None
        self._data = data
        self.journal = Journal(
            data,
            settings.host_id,
            ack=settings.ack,
            block_size=settings.journal_block_size,
            block_count=settings.journal_blocks,
            on_full=self._wake.set,
        )
        self._blocks = self.journal.blocks
        self.append: Callable[..., int] = self._blocks.append
        self._sealer = threading.Thread(target=self._run_sealer, name="kanalony-sealer", daemon=True)
        self._adopter = threading.Thread(target=self._run_adopter, name="kanalony-adopter", daemon=True)
        self._sealer.start()
        self._adopter.start()

    def close(self) -> None:
        """Seal everything and remove the journal. What a failing disk does not let be sealed stays in the journal, for
        recovery."""
        self._stopping.set()
        self._wake.set()
        self._sealer.join()
        self._adopter.join()

    def _run_sealer(self) -> None:
        hand_over_age = int(self._settings.sync_interval / 2 * 1e6)
        while not self._stopping.is_set():
            self._wake.wait(self._settings.sync_interval / 4)
            self._wake.clear()
            self._blocks.hand_over(hand_over_age)
            if not self._try(self._seal_blocks):
                self._stopping.wait(RETRY_INTERVAL)
        self._blocks.hand_over(0)
        if self._try(self._seal_blocks) and self._try(self._seal_segment) and not self._blocks.full_blocks:
            self._try(self.journal.remove)

    def _try(self, step: Callable[[], object]) -> bool:
        """Do one step; when the disk refuses, say so, give the open segment up and answer False."""
        try:
            step()
        except OSError as error:
            log.error("%s; trying again. %d of the journal's blocks are free", error, self._blocks.free_blocks)
            if self._writer:
                self._writer.abandon()
                self._writer = None
            return False
        return True

    def _seal_blocks(self) -> None:
        """Write every full block as a frame, sync once, free them; start another segment when this one is large or
        old."""
        written = 0
        while block := self._blocks.full_block(written):
            records, first_sequence = block
            with records:
                if self._writer is None:
                    self._writer = SegmentWriter(
                        self._data, self.journal.host, self.journal.worker_id, self.journal.ack, first_sequence
                    )
                self._writer.add(records, first_sequence)
            written += 1
            if self._writer.size >= self._settings.segment_size:
                break
        if self._writer and written:
            self._writer.sync()
            self._blocks.free(written)
        if self._writer and (
            self._writer.size >= self._settings.segment_size
            or time.monotonic() - self._writer.opened_at >= self._settings.segment_age
        ):
            self._seal_segment()
            self._wake.set()

    def _seal_segment(self) -> None:
        if self._writer:
            # Before the segment can be consumed and deleted, the watermark must outlive a power loss: else its events
            # could come back.
            self.journal.sync()
            self._writer.seal()
            self._writer = None

    def _run_adopter(self) -> None:
        while not self._stopping.is_set():
            try:
                for adopted in adopt_journals(self._data):
                    log.warning("%s", adopted)
                return
            except OSError as error:
                log.error("recovery of a dead worker's events failed: %s; trying again", error)
                self._stopping.wait(RETRY_INTERVAL)
            except FormatError as error:
                log.error("recovery of a dead worker's events is left to you: %s; %s", error, error.hint)
                return
