"""gunicorn's arbiter for meinheld workers: starts, replaces, retires and stops them."""

import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn.arbiter import Arbiter

from kanalony.collector.meinheld_worker import STOP_SIGNALS, MeinheldWorker
from kanalony.collector.respawn import Respawn

if TYPE_CHECKING:
    from kanalony.collector.meinheld_server import Application

log = logging.getLogger(__name__)

_STOP_SECONDS = 30  # how long stopping may take before workers are killed
_MAX_RETIRING = 2  # retiring workers at a time, for each worker there should be


class MeinheldArbiter(Arbiter):  # type: ignore[misc]
    """Sends its workers SIGTERM to retire, since others serve, and SIGQUIT to stop soon.

    Workers are outdated when they are older than the last reload, or when their memory has grown too much. They retire
    once as many other workers as there should be are ready, not before: new code or settings that do not start leave
    the old workers serving. Retiring workers may take as long as an idle connection lasts; the arbiter neither waits
    for them nor counts them. When there are more than _MAX_RETIRING allows, the oldest are stopped.

    Workers that die soon after their start are replaced after a delay, which grows while this goes on. In a crash loop
    the next workers drop the connections that wait.
    """

    def __init__(self, app: "Application") -> None:
        self._outdated: set[int] = set()
        self._retiring: list[int] = []
        self._respawn = Respawn()
        self._is_spawning = True  # whether the last attempt to start a worker succeeded
        super().__init__(app)

    def stop(self, graceful: bool = True) -> None:
        """Stops all workers, however gunicorn was asked to."""
        self.cfg.set("graceful_timeout", _STOP_SECONDS)
        super().stop(graceful=False)

    def reload(self) -> None:
        """Outdates all workers, and reads code and settings again."""
        self._retire_surplus()  # else a reload that fails now would keep what the one before has replaced
        self._outdated = set(self.WORKERS)
        super().reload()

    def manage_workers(self) -> None:
        """Retires and starts workers until there are as many as there should be."""
        current = self._retire_surplus()
        if self._respawn.delay(time.monotonic()) <= 0:
            for _ in range(len(current), self.num_workers):
                if self.spawn_worker() is None:
                    break

    def _retire_surplus(self) -> list[MeinheldWorker]:
        """Retires replaced workers. Returns the up-to-date workers, oldest first."""
        self._retiring = [pid for pid in self._retiring if pid in self.WORKERS]
        serving = [worker for pid, worker in self.WORKERS.items() if pid not in self._retiring]
        for worker in serving:
            if worker.pid not in self._outdated and self._has_outgrown(worker):
                self._outdated.add(worker.pid)
        self._outdated &= set(self.WORKERS)
        old = [worker for worker in serving if worker.pid in self._outdated]
        new = sorted((worker for worker in serving if worker not in old), key=lambda worker: worker.age)
        surplus = new[: max(0, len(new) - self.num_workers)]
        if sum(worker.is_ready() for worker in new) >= self.num_workers:
            surplus += old
        for worker in surplus:
            self._retiring.append(worker.pid)
            self.kill_worker(worker.pid, signal.SIGTERM)
        for pid in self._retiring[: -_MAX_RETIRING * self.num_workers]:
            self.kill_worker(pid, signal.SIGQUIT)
        return new

    def _has_outgrown(self, worker: MeinheldWorker) -> bool:
        """Whether a worker's memory has grown by more than `worker_memory` since it was first found ready."""
        if not worker.is_ready():
            return False
        memory = _anonymous_memory(worker.pid)
        if worker.first_memory is None:
            worker.first_memory = memory
        growth = memory - worker.first_memory
        if growth > self.app.settings.worker_memory:
            log.warning("worker %d has grown by %d MiB and is replaced", worker.pid, growth >> 20)
            return True
        return False

    def reap_workers(self) -> None:
        """Waits for workers that have ended, and records quick deaths."""
        now = time.monotonic()
        young = {
            pid: worker.is_ready()
            for pid, worker in self.WORKERS.items()
            if now - worker.created_at < self._respawn.limits.quick and pid not in self._retiring
        }
        super().reap_workers()
        self._respawn.forget(now)
        for pid in young.keys() - self.WORKERS.keys():
            waiting = sum(listener.get_backlog() or 0 for listener in self.LISTENERS)
            self._respawn.record(now, was_ready=young[pid], waiting=waiting)

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Waits for signals until the next worker is to be started."""
        delay = self._respawn.delay(time.monotonic())
        signals: list[int] = super().wait_for_signals(min(timeout, delay) if delay > 0 else timeout)
        return signals

    def handle_usr2(self) -> None:
        """Ignores gunicorn's way to replace itself."""
        log.warning("SIGUSR2 is ignored; SIGHUP reloads settings and code")

    def spawn_worker(self) -> Any:
        """Starts a worker. Returns its process id, or None when no process can be had."""
        # Between the fork and its own handlers a worker has the arbiter's, which would swallow a signal to stop; the
        # arbiter sends the signal only once, and kills the worker half a minute later.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        MeinheldWorker.drops_waiting = self._respawn.is_crash_loop(time.monotonic())
        umask = os.umask(0)
        os.umask(umask)
        try:
            pid = super().spawn_worker()
        except OSError as error:  # the system has no process, or no file for the heartbeat
            if os.getpid() != self.pid:
                raise
            os.umask(umask)  # gunicorn was about to restore it
            if self._is_spawning:
                log.error(
                    "cannot start a worker: %s; trying again. Allow more processes or open files, or free memory or "
                    "space in the directory for temporary files",
                    error,
                )
            self._is_spawning = False
            return None
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        self._is_spawning = True
        return pid


def _anonymous_memory(pid: int) -> int:
    """Returns the bytes of memory that a process has allocated; 0 when it has ended.

    The resident memory as a whole would include the pages of the journal, which belong to the page cache.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon:"))
