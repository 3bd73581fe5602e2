"""When to start a worker after others have died, and when workers die in a crash loop."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RespawnLimits:
    """What counts as a quick death and a crash loop. Times are in seconds."""

    quick: float = 5
    """A worker that dies sooner after its start makes the next start wait."""

    remembered: float = 10
    """How long a quick death counts, and how long a crash loop lasts after its last one."""

    step: float = 0.2
    """How much each quick death but the first delays the next start."""

    max_delay: float = 1.0
    """How long a start is delayed at most."""

    crash_loop: int = 3
    """Quick deaths of workers that were ready, from which on it may be a crash loop."""

    many_waiting: int = 16
    """Waiting connections, from which on it is one."""


class Respawn:
    """Records quick deaths of workers, and delays starts while they go on. Times are in monotonic seconds."""

    def __init__(self, limits: RespawnLimits | None = None) -> None:
        self.limits = limits or RespawnLimits()
        self._quick_deaths: list[tuple[float, bool]] = []  # when, and whether the worker was ready
        self._next_start = 0.0
        self._loop_until = 0.0

    def forget(self, now: float) -> None:
        """Forgets old deaths."""
        self._quick_deaths = [death for death in self._quick_deaths if now - death[0] < self.limits.remembered]

    def record(self, now: float, *, was_ready: bool, waiting: int) -> None:
        """Records a quick death.

        Args:
            now: The time of the death.
            was_ready: Whether the worker served already.
            waiting: Connections that wait for a worker.
        """
        limits = self.limits
        self._next_start = now + min(limits.max_delay, limits.step * len(self._quick_deaths))
        self._quick_deaths.append((now, was_ready))
        ready_deaths = sum(ready for _, ready in self._quick_deaths)
        if ready_deaths >= limits.crash_loop and waiting >= limits.many_waiting:
            self._loop_until = now + limits.remembered

    def delay(self, now: float) -> float:
        """Returns how many seconds the next start has to wait; 0 or less when it need not."""
        return self._next_start - now

    def is_crash_loop(self, now: float) -> bool:
        """Whether workers die as soon as they serve, so that the next ones should drop waiting connections."""
        return now < self._loop_until
