"""What `kanalony compact` and `kanalony ledger` show and wait for."""

import errno
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import click
from tabulate import tabulate

from kanalony.aggregate.compact import Compaction, Result
from kanalony.aggregate.enrich import Enricher, open_geoip, read_secrets
from kanalony.aggregate.ledger import Ledger
from kanalony.aggregate.rollups import Rollups
from kanalony.errors import FormatError, StorageError, is_disk_full
from kanalony.segments.journal import is_in_use
from kanalony.segments.names import DataDirectory
from kanalony.segments.reader import Damage, Segment
from kanalony.settings.compaction import CompactSettings

log = logging.getLogger("kanalony")

_LINE_INTERVAL = 10.0  # seconds between lines of progress where there is no terminal

_COLUMNS = (
    ("segment", "segment"),
    ("accepted", "accepted"),
    ("framed", "framed"),
    ("read", "read"),
    ("repeated", "repeated"),
    ("quarantined", "quarantined"),
    ("events", "events"),
    ("rows", "rows"),
    ("duplicates", "duplicates"),
    ("stored", "in the lake"),
)


def compact(data: DataDirectory, settings: CompactSettings, every: float | None, terminal: TextIO) -> list[Damage]:
    """Take what is sealed into the lake, once or again and again until SIGTERM or Ctrl-C; the damage that was met.
    Raises StorageError when another compaction is at work, WrongUse for files of settings that cannot be read.
    """
    secrets = read_secrets(settings.ks_secrets) if settings.ks_secrets else None
    geoip = open_geoip(settings.geoip) if settings.geoip else None
    enricher = Enricher(secrets, geoip)
    damaged: dict[str, Damage] = {}
    begun = False

    def compaction() -> Compaction:
        return Compaction(data, memory=settings.memory, keep_segments=settings.keep_segments, enricher=enricher)

    with _stopping() as stop:
        while not stop.is_set():
            try:
                with _full_disks_named(data.lake), compaction() as opened:
                    begun = True
                    rollups = Rollups(data.lake, opened.lake, memory=settings.memory, keep=_keep(settings))
                    while True:
                        result = _run(opened, stop, terminal)
                        if not stop.is_set():
                            _roll_up(rollups, opened)
                        new = {str(damage): damage for damage in result.damaged if str(damage) not in damaged}
                        damaged |= new
                        for damage in new.values() if every is not None else ():
                            log.error("damage: %s", damage)
                        if every is None or result.segments or result.deleted:
                            _tell(result)
                        if every is None or stop.wait(every):
                            stop.set()
                            break
            except OSError as error:  # a full disk, say, which may have room again
                if every is None or not begun:
                    raise
                log.error("%s; trying again in %g s", error, every)
                stop.wait(every)
    if any(True for place in data.places() for _ in place.open.glob("*.lz4")):
        log.info(
            "segments that are still being written are for the next run: they are sealed by size, age, or stopping"
        )
    left = [path for path in data.journals() if not is_in_use(path)]
    if left:
        log.warning(
            "%d journals of dead workers hold requests; `kanalony recover` or the next start seals them", len(left)
        )
    return list(damaged.values())


@contextmanager
def _full_disks_named(lake: Path) -> Iterator[None]:
    """Give the errors of a full disk, whatever was being written, their remedy."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or not is_disk_full(error):
            raise
        reason = os.strerror(error.errno or errno.ENOSPC)
        raise StorageError(
            f"{error.filename or lake} cannot be written: {reason}", "make room and run it again; nothing is lost"
        ) from error


def _run(compaction: Compaction, stop: threading.Event, terminal: TextIO) -> Result:
    waiting = compaction.waiting()
    with _progress(sum(_count(path) for path in waiting), terminal) as progress:
        return compaction.run(waiting, progress, stop.is_set)


def _keep(settings: CompactSettings) -> dict[str, float]:
    return {
        "hour": settings.keep_hours,
        "minute": settings.keep_minutes,
        "tenSeconds": settings.keep_ten_seconds,
    }


def _roll_up(rollups: Rollups, compaction: Compaction) -> None:
    told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= _LINE_INTERVAL:
            told = time.monotonic()
            log.info("rollups: %s of %s hours", f"{done:,}", f"{total:,}")

    rollups.refresh(compaction.lake, compaction.record, progress)


def _tell(result: Result) -> None:
    for line in str(result).splitlines():
        log.info("%s", line)


def _count(path: Path) -> int:
    """How many requests a segment says it holds."""
    try:
        with Segment(path, sealed=True) as segment:
            return (segment.header and sum(end - first for _, first, end in segment.claims())) or 0
    except (OSError, FormatError):
        return 0


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set: what is being done is finished then."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(total: int, terminal: TextIO) -> Iterator[Callable[[int], object]]:
    """What to call with requests that were dealt with: a bar, or a line now and then where there is no terminal."""
    started = time.monotonic()
    done = 0
    if terminal.isatty() and total:
        rates: list[str] = []
        with click.progressbar(
            rates, total, "requests", show_pos=True, item_show_func=lambda rate: rate, file=terminal
        ) as bar:

            def show(count: int) -> None:
                nonlocal done
                done += count
                bar.update(count, f"{done / (time.monotonic() - started or 1):,.0f}/s")

            yield show
        return
    told = started

    def tell(count: int) -> None:
        nonlocal done, told
        done += count
        now = time.monotonic()
        if now - told >= _LINE_INTERVAL:
            told = now
            rate = done / (now - started)
            log.info(
                "%s of %s requests, %s/s, %.0f s left", f"{done:,}", f"{total:,}", f"{rate:,.0f}", (total - done) / rate
            )

    yield tell


def ledger_table(ledger: Ledger) -> str:
    """The ledger for people."""
    rows = [[getattr(account, name) for name, _ in _COLUMNS] for account in [*ledger.accounts, ledger.total]]
    texts = [[value if isinstance(value, str) else f"{value:,}" for value in row] for row in rows]
    titles = [title for _, title in _COLUMNS]
    table = tabulate(texts, titles, "plain", colalign=["left", *["right"] * (len(titles) - 1)], disable_numparse=True)
    lines = [table, "", f"{ledger.pending:,} requests wait to be compacted"]
    lines += [
        f"{account.segment} ends too early: how much it lost is not known"
        for account in ledger.accounts
        if account.torn
    ]
    if ledger.missing:
        lines.append(f"{ledger.missing:,} requests were accepted and are nowhere")
    if ledger.lake_rows != ledger.total.stored:
        lines.append(f"{ledger.lake_rows - ledger.total.stored:,} rows in the lake belong to no segment")
    lines += [f"not balanced: {account.segment}" for account in ledger.accounts if not account.balanced]
    lines.append("balanced" if ledger.balanced else "NOT BALANCED")
    return "\n".join(lines)


def ledger_json(ledger: Ledger) -> str:
    """The ledger for programs: one object."""
    told = {
        "balanced": ledger.balanced,
        "pending": ledger.pending,
        "missing": ledger.missing,
        "lake_rows": ledger.lake_rows,
        "sum": {name: getattr(ledger.total, name) for name, _ in _COLUMNS[1:]},
        "segments": [{**asdict(account), "balanced": account.balanced} for account in ledger.accounts],
    }
    return json.dumps(told, indent=1)
