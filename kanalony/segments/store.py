"""The events of a collector process: its journal, and the thread that turns full blocks into segments."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kanalony.errors import StorageError
from kanalony.segments.directory import DataDirectory, in_some_place
from kanalony.segments.journal import Journal
from kanalony.segments.recovery import adopt_journals, adopt_surplus, seal_abandoned
from kanalony.segments.writer import SegmentWriter
from kanalony.settings.serving import ServeSettings

log = logging.getLogger(__name__)

RETRY_INTERVAL = 0.5  # seconds between tries when every disk refuses
ADOPT_INTERVAL = 3.0  # seconds between searches for what dead workers left
MAX_ADOPT_INTERVAL = 60.0  # the same after failures
DEAD_JOURNALS = 1  # journals of dead workers that may wait for adoption when another one is created


def make_room(data: DataDirectory, *, leave: int = DEAD_JOURNALS) -> None:
    """Adopts journals of dead workers until at most `leave` of them are left, as far as the disk allows."""
    try:
        for adopted in adopt_surplus(data, leave):
            log.warning("%s", adopted)
    except OSError as error:
        log.error("the journal of a dead worker cannot be sealed yet: %s", error)


class Store:
    """The events of one process. `append` is `Blocks.append` of its journal.

    The sealer thread takes blocks that are full, or whose oldest event is half of sync_interval old, writes each as a
    frame, syncs the segment, and frees the blocks. When the disk refuses, it goes on in the next spool directory. When
    every disk refuses, the blocks stay as they are and it tries again: serving goes on while a block is free.

    The adopter thread seals the segments that the sealer has abandoned, and what dead workers left.
    """

    def __init__(self, data: DataDirectory, settings: ServeSettings) -> None:
        """Creates the journal and starts both threads.

        Raises:
            StorageError: No disk has room for a journal.
        """
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
        """Creates a journal. Journals of dead workers are adopted first when they are many, or in the way."""
        make_room(self._data, leave=DEAD_JOURNALS)
        try:
            return in_some_place(self._places, self._create_journal_in)
        except StorageError:
            make_room(self._data, leave=0)
        return in_some_place(self._places, self._create_journal_in)

    def _create_journal_in(self, place: DataDirectory) -> Journal:
        return Journal(
            place,
            self._settings.host_id,
            ack=self._settings.ack,
            block_size=self._settings.journal_block_size,
            block_count=self._settings.journal_blocks,
            on_full=self._wake.set,
        )

    def close(self) -> None:
        """Seals everything and deletes the journal. When the disks refuse, the journal keeps the rest for recovery."""
        self._blocks.refuse()  # a later event would be acknowledged and never sealed
        self._stopping.set()
        self._wake.set()
        self._sealer.join()
        self._adopter.join(ADOPT_INTERVAL)  # it may wait for another process, which then does its work

    def is_nearly_full(self) -> bool:
        """Whether less than a quarter of the journal is free, so that the disk does not keep up."""
        return self._blocks.free_blocks * 4 < self._settings.journal_blocks

    def forget(self) -> None:
        """Closes the journal in a child process, where the threads do not run, and leaves the file alone."""
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
                    raise RuntimeError(f"{self.journal.path} was deleted: later events would be lost")
            self._finish()
        except Exception:
            # Without this thread events would be acknowledged until the journal is full, and none sealed. The journal
            # outlives the process, and the server starts another process.
            log.critical("the sealer thread failed; the process ends", exc_info=True)
            os.kill(os.getpid(), signal.SIGKILL)

    def _finish(self) -> None:
        """Seals everything and deletes the journal, unless the disks refuse."""
        self._blocks.hand_over(0)
        if self._in_some_place(self._seal_blocks) and self._in_some_place(self._seal_segment):
            self.journal.remove()
        else:
            log.error("%s keeps requests that could not be sealed; the next start seals them", self.journal.path)

    def _in_some_place(self, step: Callable[[DataDirectory], object]) -> bool:
        """Runs a step where the open segment is, else in the first place that accepts it; False when none does."""
        places = self._places
        if self._writer:
            places = sorted(places, key=lambda place: place.root != self._writer_root)
        try:
            in_some_place(places, step, self._give_up_segment)
        except OSError:
            return False
        return True

    def _give_up_segment(self, place: DataDirectory, error: OSError) -> None:
        """Logs that a disk refused, and abandons the open segment."""
        if place.root not in self._refused:
            log.error("cannot write to %s: %s (%d free journal blocks)", place.root, error, self._blocks.free_blocks)
        self._refused.add(place.root)
        if self._writer and (path := self._writer.abandon()):
            self._abandoned.append(path)
        self._writer = None

    def _seal_blocks(self, place: DataDirectory) -> None:
        """Writes every full block as a frame, syncs and frees them; seals the segment when it is large or old."""
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
                log.info("%s accepts events again", place.root)
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
            # The watermark must be durable before the segment can be compacted and deleted, or a power loss could bring
            # its events back.
            self.journal.sync()
            self._writer.seal()
            self._writer = None

    def _run_adopter(self) -> None:
        """Seals abandoned segments of this worker and what dead workers left, until the store closes.

        This is not done in the sealer thread: it waits while another process recovers.
        """
        last_message = ""
        interval = ADOPT_INTERVAL
        while True:
            last = self._stopping.is_set()
            if last:
                self._sealer.join()  # it may still abandon a segment
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
                if str(error) != last_message:
                    log.error("files of dead workers or abandoned segments cannot be sealed yet: %s", error)
                last_message = str(error)
            if last:
                return
            self._stopping.wait(interval)
