"""Scheduling: a few queries run at a time, and partners take turns."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect

from kanalony.reports.api.errors import Refused


class Turns:
    """Decides which queries run."""

    def __init__(self, running: int, of_one: int, queued: int) -> None:
        """Starts without any query.

        Args:
            running: Queries that run at a time.
            of_one: Queries of one partner that run at a time.
            queued: Queries of one partner that wait; more are refused.
        """
        self._most_running = running
        self._most_of_one = of_one
        self._most_queued = queued
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the partner that was served last comes last

    @asynccontextmanager
    async def turn(self, partner: str, gone: asyncio.Task[None]) -> AsyncIterator[None]:
        """Waits for a turn of a partner, which lasts as long as the context.

        Args:
            partner: The partner.
            gone: Done when the client has disconnected.

        Raises:
            Refused: Too many queries of the partner wait already.
            ClientDisconnect: The client has disconnected.
        """
        waiting = self._waiting.setdefault(partner, deque())
        if len(waiting) >= self._most_queued:
            raise Refused(503, "busy", "too many queries are waiting for their turn")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        self._start()
        try:
            await asyncio.wait({turn, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ClientDisconnect
            yield
        finally:
            if turn.done():
                self._running[partner] -= 1
            else:
                waiting.remove(turn)
            self._start()

    def _start(self) -> None:
        """Gives turns to as many queries as may run."""
        for partner, waiting in list(self._waiting.items()):
            if self._running.total() >= self._most_running:
                return
            if waiting and self._running[partner] < self._most_of_one:
                waiting.popleft().set_result(None)
                self._running[partner] += 1
                self._waiting[partner] = self._waiting.pop(partner)
                self._start()
                return
