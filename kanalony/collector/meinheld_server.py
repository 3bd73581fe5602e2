"""meinheld workers under gunicorn's arbiter: start, heartbeat, reload, stop."""

import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker
from meinheld import server

from kanalony.errors import KanalonyError
from kanalony.segments.directory import DataDirectory
from kanalony.settings.serving import ServeSettings, describe_reload

if TYPE_CHECKING:
    from kanalony.collector.app import Collector

log = logging.getLogger("kanalony")

DRAIN_SECONDS = 2  # how long a stopping worker waits for what is still being received
STOP_SECONDS = 30  # how long stopping may take before workers are killed
MIN_BODY_ROOM = 16 << 20  # bytes; a larger body is refused by the server itself, uncounted
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
QUICK_SECONDS = 5  # a worker that dies sooner after its start makes the next one wait
REMEMBERED_SECONDS = 10  # for how long quick deaths count
RESPAWN_STEP = 0.2  # seconds by which each of them but the first delays the next start
MAX_RESPAWN = 1.0  # seconds that a start is delayed at most
CRASH_LOOP = 3  # quick deaths of workers that were ready
MANY_WAITING = 16  # connections, in a crash loop
MOST_RETIRING = 2  # times as many workers as there should be may retire at a time


class _ErrorLog:
    """What meinheld tells of errors: an exception's parts, which no format of logging's takes."""

    def error(self, *parts: object, **_: object) -> None:
        log.error("meinheld: %s", " ".join(map(str, parts)))


class MeinheldWorker(Worker):  # type: ignore[misc]
    """A gunicorn worker around meinheld's event loop. docs/operations.md says what of meinheld it works around.

    In the arbiter it stands for its process: `created_at` is its start (monotonic seconds), `first_memory` the
    anonymous memory (bytes) it had when it was first seen ready. `drops_waiting`: it is to reset the connections that
    wait when it starts to serve.
    """

    drops_waiting = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.created_at = time.monotonic()
        self.first_memory: int | None = None

    def init_process(self) -> None:
        # A heartbeat file that was never touched bears the time of day, which the arbiter takes for a time far ahead:
        # a worker hanging before its first tick would never be killed.
        os.utime(self.tmp.fileno(), (0, time.monotonic()))
        # An exit code of gunicorn's own would make the arbiter stop all the workers that still serve.
        try:
            super().init_process()
            return
        except (KanalonyError, OSError) as error:
            if self.booted:
                raise
            log.error("worker not started: %s; trying again", error)
        except Exception:
            if self.booted:
                raise
            log.exception("worker not started; trying again")
        sys.exit(1)

    def init_signals(self) -> None:
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # what came since the fork is delivered here

    def run(self) -> None:
        app: Collector = self.wsgi
        server.set_access_logger(None)
        server.set_error_logger(_ErrorLog())
        server.set_keepalive(app.settings.keepalive)
        server.set_picoev_max_fd(resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # beyond it meinheld overwrites memory
        # Above these meinheld would answer 413 itself, uncounted, and spill bodies to files that it never frees.
        body_room = max(MIN_BODY_ROOM, 4 * app.settings.max_body)
        server.set_max_content_length(body_room)
        server.set_client_body_buffer_size(body_room)
        server.set_listen_socket([listener.fileno() for listener in self.sockets])
        self._leaving: int | None = None
        if self.drops_waiting:
            self._drop_waiting()
        server.schedule_call(0, self._take_signals)
        server.set_watchdog(self._tick)
        server.run(app.respond, True)  # silent: SIGINT is no exception
        app.close()

    def _drop_waiting(self) -> None:
        """Reset the connections that wait for a worker: when some kill workers faster than these start, nobody would be
        served until each has killed one.
        """
        for listener in self.sockets:
            with contextlib.suppress(BlockingIOError):
                for _ in range(self.cfg.backlog):
                    listener.accept()[0].close()

    def _take_signals(self) -> None:
        """From meinheld's loop, before any request: run() has put its own handlers in place, which drop connections."""
        self.notify()  # ready
        signal.signal(signal.SIGTERM, self._retire)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGQUIT, self._stop)
        if not self.alive:
            self._stop()  # told so while it started

    def _tick(self) -> None:
        """Once a second, from meinheld's loop."""
        self.notify()
        if self.ppid != os.getppid():
            self._stop()  # the arbiter is dead
        if self._leaving is None:
            for listener in self.sockets:
                if listener.get_backlog() > 0:
                    self._wake_somebody(listener)

    def _wake_somebody(self, listener: Any) -> None:
        """The kernel wakes one worker for a connection. When that one retires or dies without accepting it, the
        connection would wait until another comes: so another comes.
        """
        with (
            contextlib.suppress(OSError),
            socket.create_connection(listener.getsockname(), timeout=0.1),
        ):
            pass

    def handle_quit(self, *_: object) -> None:
        self.alive = False  # gunicorn's own would leave the journal to the next start

    def _retire(self, *_: object) -> None:
        """Others have taken over: accept no more, and end when every connection has had one more request answered, with
        Connection: close, or has been idle for as long as any may be.
        """
        self._leave(self.wsgi.settings.keepalive + DRAIN_SECONDS)

    def _stop(self, *_: object) -> None:
        """End soon: answer what is being received."""
        self._leave(DRAIN_SECONDS)

    def _leave(self, seconds: int) -> None:
        # Asked twice for the same, meinheld would miscount its connections and end too early.
        if self._leaving is None or seconds < self._leaving:
            self._leaving = seconds
            server.set_keepalive(0)
            server.shutdown(seconds)


class _Arbiter(Arbiter):  # type: ignore[misc]
    """To its workers SIGTERM means to retire, since others serve; SIGQUIT means to stop soon.

    Workers are outdated that are older than the last reload, or whose memory has grown too much. They retire when as
    many others as there should be are ready, not before: new code or settings that do not start leave the old workers
    serving. Those that retire may take as long as an idle connection lasts; the arbiter does not wait for them, and
    does not count them. When more than MOST_RETIRING allows do, the first of them are stopped.

    Workers that die soon after their start are replaced after a wait, which grows while this goes on. When they die
    as soon as they serve, and many connections wait by then, the next ones drop these.
    """

    def __init__(self, app: "Application") -> None:
        self._outdated: set[int] = set()
        self._retiring: list[int] = []
        self._quick_deaths: list[tuple[float, bool]] = []  # when (monotonic seconds), and whether it was ready
        self._next_spawn = 0.0  # monotonic seconds
        self._drop_until = 0.0  # monotonic seconds
        self._is_spawning = True  # the last try to start a worker did
        super().__init__(app)

    def stop(self, graceful: bool = True) -> None:
        self.cfg.set("graceful_timeout", STOP_SECONDS)
        super().stop(graceful=False)

    def reload(self) -> None:
        self._retire_surplus()  # else a reload that fails now would keep what the one before has replaced
        self._outdated = set(self.WORKERS)
        super().reload()

    def manage_workers(self) -> None:
        current = self._retire_surplus()
        if time.monotonic() >= self._next_spawn:
            for _ in range(len(current), self.num_workers):
                if self.spawn_worker() is None:
                    break

    def _retire_surplus(self) -> list[MeinheldWorker]:
        """Have those retire for whom others have taken over; the workers that are not outdated, oldest first."""
        self._retiring = [pid for pid in self._retiring if pid in self.WORKERS]
        serving = [worker for pid, worker in self.WORKERS.items() if pid not in self._retiring]
        for worker in serving:
            if worker.pid not in self._outdated and self._has_outgrown(worker):
                self._outdated.add(worker.pid)
        self._outdated &= set(self.WORKERS)
        old = [worker for worker in serving if worker.pid in self._outdated]
        new = sorted((worker for worker in serving if worker not in old), key=lambda worker: worker.age)
        surplus = new[: max(0, len(new) - self.num_workers)]
        if sum(map(_is_ready, new)) >= self.num_workers:
            surplus += old
        for worker in surplus:
            self._retiring.append(worker.pid)
            self.kill_worker(worker.pid, signal.SIGTERM)
        for pid in self._retiring[: -MOST_RETIRING * self.num_workers]:
            self.kill_worker(pid, signal.SIGQUIT)
        return new

    def _has_outgrown(self, worker: MeinheldWorker) -> bool:
        """Whether a worker's memory has grown by more than `worker_memory` since it was first seen ready."""
        if not _is_ready(worker):
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
        now = time.monotonic()
        young = {
            pid: _is_ready(worker)
            for pid, worker in self.WORKERS.items()
            if now - worker.created_at < QUICK_SECONDS and pid not in self._retiring
        }
        super().reap_workers()
        self._quick_deaths = [death for death in self._quick_deaths if now - death[0] < REMEMBERED_SECONDS]
        for pid in young.keys() - self.WORKERS.keys():
            self._next_spawn = now + min(MAX_RESPAWN, RESPAWN_STEP * len(self._quick_deaths))
            self._quick_deaths.append((now, young[pid]))
            waiting = sum(listener.get_backlog() or 0 for listener in self.LISTENERS)
            if sum(ready for _, ready in self._quick_deaths) >= CRASH_LOOP and waiting >= MANY_WAITING:
                self._drop_until = now + REMEMBERED_SECONDS

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        wait = self._next_spawn - time.monotonic()
        signals: list[int] = super().wait_for_signals(min(timeout, wait) if wait > 0 else timeout)
        return signals

    def handle_usr2(self) -> None:
        log.warning("SIGUSR2 is ignored; SIGHUP reloads settings and code")

    def spawn_worker(self) -> Any:
        # Between the fork and its own handlers a worker has the arbiter's, which would swallow a signal to stop; the
        # arbiter sends it once only, and kills the worker half a minute later.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        MeinheldWorker.drops_waiting = time.monotonic() < self._drop_until
        umask = os.umask(0)
        os.umask(umask)
        try:
            pid = super().spawn_worker()
        except OSError as error:  # no process, or no file for its heartbeat, can be had
            if os.getpid() != self.pid:
                raise
            os.umask(umask)  # gunicorn was about to set it back
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


def _is_ready(worker: MeinheldWorker) -> bool:
    """Whether a worker's loop runs: its heartbeat file is accessed at 0 while it starts, and at a monotonic time
    after.
    """
    return bool(0 < os.fstat(worker.tmp.fileno()).st_atime <= time.monotonic())


def _anonymous_memory(pid: int) -> int:
    """Bytes of memory that a process has allocated; 0 when it has ended.

    Not its resident memory as a whole: the journal's pages, which belong to the page cache, are in that.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon:"))


class Application(BaseApplication):  # type: ignore[misc]
    """gunicorn, told by us instead of by its own command line. SIGHUP makes it read the settings again."""

    def __init__(
        self,
        settings: ServeSettings,
        reload_settings: Callable[[], ServeSettings],
        listener: socket.socket,
        backlog: int,
    ) -> None:
        """`backlog` connections may wait for a worker."""
        self.settings = settings
        self._backlog = backlog
        self._reload_settings = reload_settings
        self._bind = f"fd://{listener.detach()}"
        self._started = False
        super().__init__()

    def load_config(self) -> None:
        if self._started:
            try:
                settings = self._reload_settings()
                guarded, others = describe_reload(self.settings, settings)
                DataDirectory.for_collector(settings.data, settings.spool, settings.group)
                self.settings = settings
                for change in guarded:
                    log.warning("reloaded, %s", change)
                for change in others:
                    log.info("reloaded, %s", change)
            except (KanalonyError, OSError, ValueError) as error:
                hint = getattr(error, "hint", "")
                log.error("settings not reloaded: %s; the old ones stay in force%s", error, hint and f" ({hint})")
        self._started = True
        options: dict[str, Any] = {
            "bind": self._bind,
            "backlog": self._backlog,
            "workers": self.settings.workers,
            "worker_class": MeinheldWorker,
            "timeout": self.settings.heartbeat,
            "graceful_timeout": 0,  # for workers that retire; _Arbiter.stop sets its own
            "control_socket_disable": True,
            "loglevel": "warning",
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> "Collector":
        # Imported by each worker for itself, so that a reload brings new code.
        from kanalony.collector.app import create_app

        return create_app(self.settings)

    def run(self) -> None:
        _Arbiter(self).run()
