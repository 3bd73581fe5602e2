"""Counts rejected requests by reason."""

import logging
import threading
import time
from collections import Counter

log = logging.getLogger(__name__)

LOG_INTERVAL = 60.0
"""Seconds between two log lines of one reason: a full disk must not fill another one with messages."""


class Counts:
    """Counts requests by reason, and logs the counts. Threads may share an instance.

    The first request of a reason is logged at once, later ones together once a minute, the rest by `close`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total: Counter[str] = Counter()
        self._logged: dict[str, tuple[float, int]] = {}  # when (monotonic seconds), and the total then

    def add(self, reason: str) -> None:
        """Counts a request."""
        with self._lock:
            self._total[reason] += 1
            last, _ = self._logged.get(reason, (-LOG_INTERVAL, 0))
            if time.monotonic() - last >= LOG_INTERVAL:
                self._log(reason)

    def close(self) -> None:
        """Logs what has not been logged."""
        with self._lock:
            for reason in self._total:
                self._log(reason)

    def _log(self, reason: str) -> None:
        _, logged = self._logged.get(reason, (0.0, 0))
        total = self._total[reason]
        if total > logged:
            log.warning("%s: %d, %d since the start", reason, total - logged, total)
            self._logged[reason] = time.monotonic(), total
