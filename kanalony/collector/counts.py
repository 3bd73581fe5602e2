"""How many requests did not go as they should, by what went wrong."""

import logging
import threading
import time
from collections import Counter

log = logging.getLogger("kanalony")

TELL_INTERVAL = 60.0
"""Seconds between two lines in the log about the same thing: a full disk must not fill another with messages."""


class Counts:
    """Counts by reason. The first of a kind is told in the log at once, the ones that follow together once a minute;
    the rest by `close`. Threads may share one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total: Counter[str] = Counter()
        self._told: dict[str, tuple[float, int]] = {}

    def add(self, reason: str) -> None:
        with self._lock:
            self._total[reason] += 1
            last, _ = self._told.get(reason, (-TELL_INTERVAL, 0))
            if time.monotonic() - last >= TELL_INTERVAL:
                self._tell(reason)

    def total(self, reason: str) -> int:
        """How many there were since the start."""
        return self._total[reason]

    def close(self) -> None:
        """Tell what has not been told."""
        with self._lock:
            for reason in self._total:
                self._tell(reason)

    def _tell(self, reason: str) -> None:
        _, told = self._told.get(reason, (0.0, 0))
        total = self._total[reason]
        if total > told:
            log.warning("%s: %d requests, %d since the start", reason, total - told, total)
            self._told[reason] = time.monotonic(), total
