"""The number of requests that wait to be compacted."""

import asyncio
import time

from anyio import to_thread

from kanalony.aggregate.waiting import Waiting
from kanalony.errors import StorageError, UsageError
from kanalony.reports.api.limits import Limits
from kanalony.segments.directory import DataDirectory


class Backlog:
    """Counts the requests that wait to be compacted, at most once per interval, however many clients ask."""

    def __init__(self, data: DataDirectory, limits: Limits) -> None:
        """Reads nothing yet."""
        self._waiting = Waiting(data)
        self._limits = limits
        self._lock = asyncio.Lock()
        self._count: int | None = 0
        self._until = 0.0

    async def count(self) -> int | None:
        """Returns the last count, or a new one.

        None when this user may not read the journals: a member of the group may only read sealed segments.

        Raises:
            StorageError: The data directory cannot be read.
            FormatError: The lake or its record cannot be read.
        """
        async with self._lock:
            begin = time.monotonic()
            if begin >= self._until:
                try:
                    self._count = await to_thread.run_sync(self._waiting.count)
                except (UsageError, OSError) as error:
                    if not isinstance(error.__cause__ or error, PermissionError):
                        raise StorageError(str(error), getattr(error, "hint", "")) from error
                    self._count = None
                end = time.monotonic()
                self._until = end + max(self._limits.count_interval, (end - begin) / self._limits.count_share)
            return self._count
