"""The loop of `kanalony compact`: one compaction, or one after another until SIGTERM or Ctrl-C."""

import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from kanalony.aggregate.compact import Compaction, Result
from kanalony.aggregate.enrich import Enricher, open_geoip, read_secrets
from kanalony.aggregate.rollup_writer import RollupWriter
from kanalony.errors import FormatError, StorageError, is_disk_full
from kanalony.segments.damage import Damage
from kanalony.segments.directory import DataDirectory
from kanalony.segments.journal import is_in_use
from kanalony.segments.reader import Segment
from kanalony.settings.compaction import CompactSettings

log = logging.getLogger(__name__)

LOG_INTERVAL = 10.0  # seconds between lines of progress

ShowProgress = Callable[[int], AbstractContextManager[Callable[[int], object]]]


def compact(
    data: DataDirectory, settings: CompactSettings, every: float | None, show_progress: ShowProgress
) -> list[Damage]:
    """Moves the events of sealed segments to the lake, and updates the rollups.

    Args:
        data: Data directory, writable.
        settings: Its `data` is not used.
        every: Seconds between two rounds; None for one round.
        show_progress: Called with the number of requests of a round; returns a context whose function is called with
            the number of requests processed since its last call.

    Returns:
        The damage that was found, each place once.

    Raises:
        StorageError: Another compaction is running on the data directory.
        UsageError: The GeoIP database or the file of secrets cannot be read.
        OSError: The disk refused, and there is no further round: `every` is None, or the first round could not begin.
    """
    secrets = read_secrets(settings.ks_secrets) if settings.ks_secrets else None
    geoip = open_geoip(settings.geoip) if settings.geoip else None
    enricher = Enricher(secrets, geoip)
    damaged: dict[str, Damage] = {}
    begun = False

    def compaction() -> Compaction:
        return Compaction(data, memory=settings.memory, keep_segments=settings.keep_segments, enricher=enricher)

    with _stop_on_signals() as stop:
        while not stop.is_set():
            try:
                with _full_disk_explained(data.lake), compaction() as opened:
                    begun = True
                    rollups = RollupWriter(data.lake, opened.lake, memory=settings.memory, keep=_keep(settings))
                    while True:
                        result = _take(opened, stop, show_progress)
                        if not stop.is_set():
                            _roll_up(rollups, opened)
                        new = {str(damage): damage for damage in result.damaged if str(damage) not in damaged}
                        damaged |= new
                        for damage in new.values() if every is not None else ():
                            log.error("damage: %s", damage)
                        if every is None or result.segments or result.deleted:
                            _log_result(result)
                        if every is None or stop.wait(every):
                            stop.set()
                            break
            except OSError as error:  # a full disk, for example, which may have room again
                if every is None or not begun:
                    raise
                log.error("%s; trying again in %g s", error, every)
                stop.wait(every)
    _log_unsealed(data)
    return list(damaged.values())


def _take(compaction: Compaction, stop: threading.Event, show_progress: ShowProgress) -> Result:
    waiting = compaction.waiting()
    with show_progress(sum(_request_count(path) for path in waiting)) as progress:
        return compaction.run(waiting, progress, stop.is_set)


def _request_count(path: Path) -> int:
    """Returns how many requests a segment claims to hold; 0 when it cannot be read."""
    try:
        with Segment(path, sealed=True) as segment:
            return (segment.header and sum(end - first for _, first, end in segment.claims())) or 0
    except (OSError, FormatError):
        return 0


def _keep(settings: CompactSettings) -> dict[str, float]:
    return {
        "hour": settings.keep_hours,
        "minute": settings.keep_minutes,
        "tenSeconds": settings.keep_ten_seconds,
    }


def _roll_up(rollups: RollupWriter, compaction: Compaction) -> None:
    logged_at = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal logged_at
        if time.monotonic() - logged_at >= LOG_INTERVAL:
            logged_at = time.monotonic()
            log.info("rollups: %s of %s hours", f"{done:,}", f"{total:,}")

    rollups.refresh(compaction.lake, compaction.manifest, progress)


def _log_result(result: Result) -> None:
    for line in str(result).splitlines():
        log.info("%s", line)


def _log_unsealed(data: DataDirectory) -> None:
    """Logs what a later compaction will take: open segments, and the journals of dead workers."""
    if any(True for place in data.places() for _ in place.open.glob("*.lz4")):
        log.info("open segments are left for the next run: size, age, or a stop of the collector seals them")
    left = [path for path in data.journals() if not is_in_use(path)]
    if left:
        log.warning(
            "%d journals of dead workers hold requests; `kanalony recover` or the next start seals them",
            len(left),
        )


@contextmanager
def _full_disk_explained(lake: Path) -> Iterator[None]:
    """Turns errors of a full disk, whatever was being written, into a StorageError with the remedy."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or not is_disk_full(error):
            raise
        reason = os.strerror(error.errno or errno.ENOSPC)
        raise StorageError(
            f"{error.filename or lake} cannot be written: {reason}", "make room and run it again; nothing is lost"
        ) from error


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM and Ctrl-C set: the loop then finishes its batch and ends."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
