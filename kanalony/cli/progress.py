"""Progress of a compaction: a bar on a terminal, lines in the log elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from kanalony.aggregate.loop import LOG_INTERVAL

log = logging.getLogger(__name__)


@contextmanager
def show_requests(total: int) -> Iterator[Callable[[int], object]]:
    """Shows how many requests of `total` were processed, on stderr.

    Yields:
        A function to call with the number of requests processed since its last call.
    """
    started = time.monotonic()
    done = 0
    if sys.stderr.isatty() and total:
        rates: list[str] = []
        with click.progressbar(
            rates, total, "requests", show_pos=True, item_show_func=lambda rate: rate, file=sys.stderr
        ) as bar:

            def update_bar(count: int) -> None:
                nonlocal done
                done += count
                bar.update(count, f"{done / (time.monotonic() - started or 1):,.0f}/s")

            yield update_bar
        return
    logged_at = started

    def log_line(count: int) -> None:
        nonlocal done, logged_at
        done += count
        now = time.monotonic()
        if now - logged_at >= LOG_INTERVAL:
            logged_at = now
            rate = done / (now - started)
            log.info(
                "%s of %s requests, %s/s, %.0f s left", f"{done:,}", f"{total:,}", f"{rate:,.0f}", (total - done) / rate
            )

    yield log_line
