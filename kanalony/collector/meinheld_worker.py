"""A gunicorn worker around meinheld's event loop. docs/operations.md lists what it works around."""

import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from gunicorn.workers.base import Worker
from meinheld import server

from kanalony.errors import KanalonyError

if TYPE_CHECKING:
    from kanalony.collector.app import Collector

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_DRAIN_SECONDS = 2  # how long a stopping worker waits for requests that are being received
_MIN_BODY_ROOM = 16 << 20  # bytes; meinheld itself refuses a larger body, uncounted


class _ErrorLog:
    """Receives meinheld's errors: the parts of an exception, which do not fit logging's own signature."""

    def error(self, *parts: object, **_: object) -> None:
        log.error("meinheld: %s", " ".join(map(str, parts)))


class MeinheldWorker(Worker):  # type: ignore[misc]
    """A serving process; in the arbiter, the object that stands for it.

    Attributes:
        created_at: The start of the worker, in monotonic seconds.
        first_memory: Anonymous memory in bytes when the arbiter first found the worker ready; None until then.
        drops_waiting: Whether the worker resets the connections that wait when it starts to serve. The arbiter sets it
            on the class before it forks.
    """

    drops_waiting = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.created_at = time.monotonic()
        self.first_memory: int | None = None

    def is_ready(self) -> bool:
        """Whether the worker's loop runs. The arbiter asks.

        The access time of the heartbeat file is 0 while the worker starts, and a monotonic time afterwards.
        """
        return bool(0 < os.fstat(self.tmp.fileno()).st_atime <= time.monotonic())

    def init_process(self) -> None:
        """Starts to serve, in the worker's process."""
        # The access time of a new heartbeat file is the time of day, which the arbiter would take for a monotonic time
        # far ahead: it would never kill a worker that hangs before its first tick.
        os.utime(self.tmp.fileno(), (0, time.monotonic()))
        # With an exit code of gunicorn's own, the arbiter would stop all workers, which still serve.
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
        """Installs gunicorn's signal handlers, and then receives the signals that came since the fork."""
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def run(self) -> None:
        """Serves until the worker is retired or stopped."""
        app: Collector = self.wsgi
        server.set_access_logger(None)
        server.set_error_logger(_ErrorLog())
        server.set_keepalive(app.settings.keepalive)
        server.set_picoev_max_fd(resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # beyond it meinheld overwrites memory
        # Above these limits meinheld would answer 413 itself, uncounted, and spill bodies to files that it never frees.
        body_room = max(_MIN_BODY_ROOM, 4 * app.settings.max_body)
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
        """Resets the connections that wait for a worker.

        When some of them kill workers faster than workers start, no other would be served until each of these has
        killed one.
        """
        for listener in self.sockets:
            with contextlib.suppress(BlockingIOError):
                for _ in range(self.cfg.backlog):
                    listener.accept()[0].close()

    def _take_signals(self) -> None:
        """Installs the signal handlers, from meinheld's loop and before any request.

        meinheld's run() has installed its own before, which drop connections.
        """
        self.notify()  # ready
        signal.signal(signal.SIGTERM, self._retire)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGQUIT, self._stop)
        if not self.alive:
            self._stop()  # the signal came while the worker started

    def _tick(self) -> None:
        """Sends the heartbeat, once a second from meinheld's loop."""
        self.notify()
        if self.ppid != os.getppid():
            self._stop()  # the arbiter is dead
        if self._leaving is None:
            for listener in self.sockets:
                if listener.get_backlog() > 0:
                    self._wake_a_worker(listener)

    def _wake_a_worker(self, listener: Any) -> None:
        """Opens a connection, for which the kernel wakes a worker.

        The kernel wakes one worker for a connection. When that worker retires or dies without accepting it, the
        connection would wait until another one comes.
        """
        with (
            contextlib.suppress(OSError),
            socket.create_connection(listener.getsockname(), timeout=0.1),
        ):
            pass

    def handle_quit(self, *_: object) -> None:
        """Stops a worker that is still starting; gunicorn's own handler would leave the journal to the next start."""
        self.alive = False

    def _retire(self, *_: object) -> None:
        """Stops accepting connections, because other workers have taken over.

        The worker ends when every connection has had one more request answered, with Connection: close, or has been
        idle for `keepalive`.
        """
        self._leave(self.wsgi.settings.keepalive + _DRAIN_SECONDS)

    def _stop(self, *_: object) -> None:
        """Ends soon: only requests that are being received are still answered."""
        self._leave(_DRAIN_SECONDS)

    def _leave(self, seconds: int) -> None:
        # Asked twice for the same, meinheld would miscount its connections and end too early.
        if self._leaving is None or seconds < self._leaving:
            self._leaving = seconds
            server.set_keepalive(0)
            server.shutdown(seconds)
