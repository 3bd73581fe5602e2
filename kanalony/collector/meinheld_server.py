"""meinheld workers under gunicorn's arbiter: start, heartbeat, reload, stop."""

import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker
from meinheld import server

from kanalony.errors import KanalonyError
from kanalony.segments.names import DataDirectory
from kanalony.settings import Settings, describe_reload

if TYPE_CHECKING:
    from kanalony.collector.app import Collector

log = logging.getLogger("kanalony")

DRAIN_SECONDS = 2  # how long a stopping worker waits for what is still being received
STOP_SECONDS = 30  # how long stopping may take before workers are killed
MIN_BODY_ROOM = 16 << 20  # bytes; a larger body is refused by the server itself, uncounted
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
RESPAWN_SECONDS = 1  # between two tries to start a worker that finds no room for its journal


class _ErrorLog:
    """What meinheld tells of errors: an exception's parts, which no format of logging's takes."""

    def error(self, *parts: object, **_: object) -> None:
        log.error("meinheld: %s", " ".join(map(str, parts)))


class MeinheldWorker(Worker):  # type: ignore[misc]
    """A gunicorn worker around meinheld's event loop. docs/operations.md says what of meinheld it works around."""

    def init_process(self) -> None:
        # A heartbeat file that was never touched bears the time of day, which the arbiter takes for a time far ahead:
        # a worker hanging before its first tick would never be killed.
        os.utime(self.tmp.fileno(), (0, time.monotonic()))
        super().init_process()

    def init_signals(self) -> None:
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # what came since the fork is delivered here

    def load_wsgi(self) -> None:
        # An exit code of gunicorn's own would make the arbiter stop all the workers that still serve.
        try:
            super().load_wsgi()
        except (KanalonyError, OSError) as error:
            log.error("worker not started: %s; trying again", error)
        except Exception:
            log.exception("worker not started; trying again")
        else:
            return
        time.sleep(RESPAWN_SECONDS)
        sys.exit(1)

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
        server.schedule_call(0, self._take_signals)
        server.set_watchdog(self._tick)
        server.run(app.respond, True)  # silent: SIGINT is no exception
        app.close()

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

    def handle_quit(self, *_: object) -> None:
        self.alive = False  # gunicorn's own would leave the journal to the next start

    def _retire(self, *_: object) -> None:
        """Others have taken over: accept no more, and end when every connection has had one more request answered, with
        Connection: close, or has been idle for as long as any may be."""
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

    Workers older than the last reload retire when as many new ones as there should be are ready, not before: new code
    or settings that do not start leave the old workers serving. Those that retire may take as long as an idle
    connection lasts; the arbiter does not wait for them, and does not count them.
    """

    def __init__(self, app: "Application") -> None:
        self._old_age = 0  # workers of this age or less are from before the last reload
        self._retiring: set[int] = set()
        super().__init__(app)

    def stop(self, graceful: bool = True) -> None:
        self.cfg.set("graceful_timeout", STOP_SECONDS)
        super().stop(graceful=False)

    def reload(self) -> None:
        self._retire_surplus()  # else a reload that fails now would keep what the one before has replaced
        self._old_age = self.worker_age
        super().reload()

    def manage_workers(self) -> None:
        for _ in range(len(self._retire_surplus()), self.num_workers):
            self.spawn_worker()

    def _retire_surplus(self) -> list[MeinheldWorker]:
        """Have those retire for whom others have taken over; the workers since the last reload, oldest first."""
        self._retiring &= set(self.WORKERS)
        serving = [worker for pid, worker in self.WORKERS.items() if pid not in self._retiring]
        old = [worker for worker in serving if worker.age <= self._old_age]
        new = sorted((worker for worker in serving if worker.age > self._old_age), key=lambda worker: worker.age)
        surplus = new[: max(0, len(new) - self.num_workers)]
        if sum(map(_is_ready, new)) >= self.num_workers:
            surplus += old
        for worker in surplus:
            self._retiring.add(worker.pid)
            self.kill_worker(worker.pid, signal.SIGTERM)
        return new

    def handle_usr2(self) -> None:
        log.warning("SIGUSR2 is ignored; SIGHUP reloads settings and code")

    def spawn_worker(self) -> Any:
        # Between the fork and its own handlers a worker has the arbiter's, which would swallow a signal to stop; the
        # arbiter sends it once only, and kills the worker half a minute later.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            return super().spawn_worker()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _is_ready(worker: MeinheldWorker) -> bool:
    """Whether a worker's loop runs: its heartbeat file is accessed at 0 while it starts, and at a monotonic time
    after."""
    return bool(0 < os.fstat(worker.tmp.fileno()).st_atime <= time.monotonic())


class Application(BaseApplication):  # type: ignore[misc]
    """gunicorn, told by us instead of by its own command line. SIGHUP makes it read the settings again."""

    def __init__(
        self, settings: Settings, reload_settings: Callable[[], Settings], listener: socket.socket, backlog: int
    ) -> None:
        """`backlog` connections may wait for a worker."""
        self._settings = settings
        self._backlog = backlog
        self._reload_settings = reload_settings
        self._bind = f"fd://{listener.detach()}"
        self._started = False
        super().__init__()

    def load_config(self) -> None:
        if self._started:
            try:
                settings = self._reload_settings()
                guarded, others = describe_reload(self._settings, settings)
                DataDirectory.for_collector(settings.data, settings.spool, settings.group)
                self._settings = settings
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
            "workers": self._settings.workers,
            "worker_class": MeinheldWorker,
            "timeout": self._settings.heartbeat,
            "graceful_timeout": 0,  # for workers that retire; _Arbiter.stop sets its own
            "control_socket_disable": True,
            "loglevel": "warning",
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> "Collector":
        # Imported by each worker for itself, so that a reload brings new code.
        from kanalony.collector.app import create_app

        return create_app(self._settings)

    def run(self) -> None:
        _Arbiter(self).run()
