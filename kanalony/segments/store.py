"""Where a collector process keeps events: its journal, and the thread that turns full blocks into segments."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kanalony.errors import StorageError
from kanalony.segments.journal import Journal
from kanalony.segments.names import DataDirectory
from kanalony.segments.recovery import adopt_journals, adopt_surplus, seal_abandoned
from kanalony.segments.writer import SegmentWriter
from kanalony.settings.serving import ServeSettings

log = logging.getLogger("kanalony")

RETRY_INTERVAL = 0.5  # seconds between two tries at disks that refuse
ADOPT_INTERVAL = 3.0  # seconds between two looks for what dead workers left
MAX_ADOPT_INTERVAL = 60.0  # the same after failures
DEAD_JOURNALS = 1  # of dead workers, that may wait to be adopted while another one is made


def make_room(data: DataDirectory, *, leave: int = DEAD_JOURNALS) -> None:
    """Adopt dead workers' journals until at most `leave` of them are left, as far as the disk lets it."""
    try:
        for adopted in adopt_surplus(data, leave):
            log.warning("%s", adopted)
    except OSError as error:
        log.error("the journal of a dead worker cannot be sealed yet: %s", error)


class Store:
    """The events of one process. `append` is Blocks.append of its journal.

    The sealer thread takes blocks that are full, or whose oldest event is half of sync_interval old, writes each as a
    frame, syncs, and frees them. When the disk refuses, it goes on in the next spool directory; when all refuse, blocks
    stay as they are and it tries again: serving goes on while a block is free.
    """

    def __init__(self, data: DataDirectory, settings: ServeSettings) -> None:
        """Raises StorageError when there is no room for a journal."""
        self._settings = settings
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._writer: SegmentWriter | None = None
        self._abandoned: list[Path] = []
        self._refused: set[Path] = set()
        self._data = data
        self._places = [data, *(DataDirectory(root) for root in settings.spool)]
        self.journal = self._create_journal()
        self._blocks = self.journal.blocks
        self.append: Callable[..., int] = self._blocks.append
        self._sealer = threading.Thread(target=self._run_sealer, name="kanalony-sealer", daemon=True)
        self._adopter = threading.Thread(target=self._run_adopter, name="kanalony-adopter", daemon=True)
        self._sealer.start()
        self._adopter.start()

    def _create_journal(self) -> Journal:
        """A journal, for which dead workers' journals make room when there is none, or when they are many."""
        make_room(self._data, leave=DEAD_JOURNALS)
        try:
            return self._create_in_some_place()
        except StorageError:
            make_room(self._data, leave=0)
        return self._create_in_some_place()

    def _create_in_some_place(self) -> Journal:
        """A journal in the first place that has room for one."""
        refused: StorageError | None = None
        for place in self._places:
            try:
                return Journal(
                    place,
                    self._settings.host_id,
                    ack=self._settings.ack,
                    block_size=self._settings.journal_block_size,
                    block_count=self._settings.journal_blocks,
                    on_full=self._wake.set,
                )
            except StorageError as error:
                refused = error
        assert refused
        raise refused

    def close(self) -> None:
        """Seal everything and remove the journal. What a failing disk does not let be sealed stays in the journal, for
        recovery.
        """
        self._blocks.refuse()  # an event that came now would be acknowledged and never sealed
        self._stopping.set()
        self._wake.set()
        self._sealer.join()
        self._adopter.join(ADOPT_INTERVAL)  # it may be waiting for another process, which then does its work

    def is_nearly_full(self) -> bool:
        """Whether less than a quarter of the journal is free: the disk does not keep up."""
        return self._blocks.free_blocks * 4 < self._settings.journal_blocks

    def forget(self) -> None:
        """Let go of the journal without a trace: for a child process, in which the threads do not run."""
        self.journal.forget()

    def _run_sealer(self) -> None:
        try:
            while not self._stopping.is_set():
                self._wake.wait(self._settings.sync_interval / 4)
                self._wake.clear()
                self._blocks.hand_over(int(self._settings.sync_interval / 2 * 1e6))
                if not self._in_some_place(self._seal_blocks):
                    self._stopping.wait(RETRY_INTERVAL)
                if self.journal.is_deleted():
                    raise RuntimeError(f"{self.journal.path} was deleted: what it takes from now on would be lost")
            self._finish()
        except Exception:
            # Without this thread every event would be acknowledged until the journal is full, and none sealed. The
            # journal outlives the process; whoever keeps it starts another.
            log.critical("the sealer thread failed; the process ends", exc_info=True)
            os.kill(os.getpid(), signal.SIGKILL)

    def _finish(self) -> None:
        """Seal everything and remove the journal, or say what stays in it."""
        self._blocks.hand_over(0)
        if self._in_some_place(self._seal_blocks) and self._in_some_place(self._seal_segment):
            self.journal.remove()
        else:
            log.error("%s keeps what could not be sealed, for the next start to seal", self.journal.path)

    def _in_some_place(self, step: Callable[[DataDirectory], object]) -> bool:
        """Do one step where the open segment is, or else in the first place that takes it; False when none does."""
        places = self._places
        if self._writer:
            places = sorted(places, key=lambda place: place.root != self._writer_root)
        for place in places:
            try:
                step(place)
            except OSError as error:
                if place.root not in self._refused:
                    log.error("%s refuses: %s; %d journal blocks are free", place.root, error, self._blocks.free_blocks)
                self._refused.add(place.root)
                if self._writer and (path := self._writer.abandon()):
                    self._abandoned.append(path)
                self._writer = None
            else:
                return True
        return False

    def _seal_blocks(self, place: DataDirectory) -> None:
        """Write every full block as a frame, sync, free them; start another segment when this one is large or old."""
        while self._blocks.full_blocks:
            written = 0
            while block := self._blocks.full_block(written):
                records, first_sequence = block
                with records:
                    if self._writer is None:
                        self._open_segment(place, first_sequence)
                    assert self._writer
                    self._writer.add(records, first_sequence)
                written += 1
                if self._writer.size >= self._settings.segment_size:
                    break
            assert self._writer
            self._writer.sync()
            self._blocks.free(written)
            if place.root in self._refused:
                self._refused.discard(place.root)
                log.info("%s takes events again", place.root)
            if self._writer.size >= self._settings.segment_size:
                self._seal_segment(place)
        if self._writer and time.monotonic() - self._writer.opened_at >= self._settings.segment_age:
            self._seal_segment(place)

    def _open_segment(self, place: DataDirectory, first_sequence: int) -> None:
        journal = self.journal
        self._writer = SegmentWriter(place, journal.host, journal.worker_id, journal.ack, first_sequence)
        self._writer_root = place.root

    def _seal_segment(self, _: DataDirectory) -> None:
        if self._writer:
            # Before the segment can be consumed and deleted, the watermark must outlive a power loss: else its events
            # could come back.
            self.journal.sync()
            self._writer.seal()
            self._writer = None

    def _run_adopter(self) -> None:
        """Seal what this worker's failures and other workers' deaths leave, again and again: either may come at any
        time. Not in the sealer thread, since another process may be at it, and is waited for.
        """
        told = ""
        interval = ADOPT_INTERVAL
        while True:
            last = self._stopping.is_set()
            if last:
                self._sealer.join()  # it may yet abandon something
            try:
                while self._abandoned:
                    self.journal.sync()  # the watermark first, as in _seal_segment
                    seal_abandoned(self._data, self._abandoned[0])
                    del self._abandoned[0]
                for adopted in () if last else adopt_journals(self._data):
                    log.warning("%s", adopted)
                interval = ADOPT_INTERVAL
            except Exception as error:
                interval = min(2 * interval, MAX_ADOPT_INTERVAL)  # a try may copy a whole segment before it fails
                if str(error) != told:
                    log.error("what dead workers or a full disk left cannot be sealed yet: %s", error)
                told = str(error)
            if last:
                return
            self._stopping.wait(interval)
