"""The collector under granian, whose own supervisor starts and replaces the workers."""

import contextlib
import logging
import multiprocessing
import sys
import time
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING

from granian import Granian
from granian.constants import Interfaces
from granian.http import HTTP1Settings

from kanalony.errors import KanalonyError
from kanalony.settings.loading import hand_to_workers
from kanalony.settings.serving import ServeSettings

if TYPE_CHECKING:
    from granian.server.mp import MPServer
    from granian.server.mt import MTServer

    from kanalony.collector.app import Collector

log = logging.getLogger(__name__)

_RESTART_SECONDS = 0.5  # between the end of all workers and their start
_OVERLAP_SECONDS = 5  # between the start of a worker and the end of the one it replaces; it must listen by then
_STOP_SECONDS = 10  # how long stopping may take; granian loses a signal that comes while a worker starts


def create_granian_app() -> "Collector":
    """Creates the application in one of granian's workers.

    These are processes of multiprocessing, which end without atexit.
    """
    from kanalony.collector.app import create_app

    try:
        app = create_app(ServeSettings())  # from the environment alone: no file can stop a worker from being replaced
    except (KanalonyError, OSError) as error:
        log.error("worker not started: %s; trying again", error)
        sys.exit(1)
    Finalize(None, app.close, exitpriority=0)
    return app


def serve(settings: ServeSettings, port: int, *, backlog: int, connections: int) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        settings: The settings of all workers, also of those that replace others.
        port: The port to listen on.
        backlog: Most connections that may wait for a worker.
        connections: Most connections that a worker holds.
    """
    hand_to_workers(settings)  # for create_app() in its workers
    while True:
        server = _server(settings, port, backlog, connections)
        try:
            server.serve()
            return
        except SystemExit:
            # granian gives up when a worker dies twice in 5.5 s. A collector must go on: players do not send again.
            if server.interrupt_signal:
                raise
            log.error("a granian worker died twice within seconds; all workers are started again")
        except OSError as error:  # the system has no process
            log.error("cannot start a worker: %s; all workers are started again. Allow more processes", error)
            with contextlib.suppress(SystemExit):
                server.shutdown()  # type: ignore[no-untyped-call]
            for child in multiprocessing.active_children():  # granian forgets a worker that it was about to replace
                child.terminate()
        time.sleep(_RESTART_SECONDS)
        if server.interrupt_signal:  # its signal handlers stay installed until the next server installs its own
            return


def _server(settings: ServeSettings, port: int, backlog: int, connections: int) -> "MPServer | MTServer":
    return Granian(
        "kanalony.collector.granian_server:create_granian_app",
        factory=True,
        interface=Interfaces.WSGI,
        address=settings.host,
        port=port,
        workers=settings.workers,
        backlog=backlog,
        backpressure=connections,  # with its own limit, idle connections would keep others out
        http1_settings=HTTP1Settings(header_read_timeout=settings.keepalive * 1000, keep_alive=True),
        websockets=False,
        respawn_failed_workers=True,
        respawn_interval=_OVERLAP_SECONDS,
        workers_kill_timeout=_STOP_SECONDS,
        log_enabled=False,
    )
