"""The collector under granian, whose own supervisor keeps the workers."""

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

log = logging.getLogger("kanalony")

RESTART_SECONDS = 0.5  # between the end of all workers and their start
OVERLAP_SECONDS = 5  # between the start of a worker and the end of the one it replaces; it must listen by then
STOP_SECONDS = 10  # how long stopping may take; granian loses a signal that comes while a worker starts


def create_granian_app() -> "Collector":
    """The application in one of granian's workers, which are processes of multiprocessing: those end without atexit."""
    from kanalony.collector.app import create_app

    try:
        app = create_app(ServeSettings())  # from the environment alone: no file can stop a worker from being replaced
    except (KanalonyError, OSError) as error:
        log.error("worker not started: %s; trying again", error)
        sys.exit(1)
    Finalize(None, app.close, exitpriority=0)
    return app


def serve(settings: ServeSettings, port: int, *, backlog: int, connections: int) -> None:
    """Serve until SIGTERM or SIGINT. `backlog` connections may wait for a worker, which holds up to `connections`."""
    hand_to_workers(settings)  # for create_app() in its workers
    while True:
        server = _server(settings, port, backlog, connections)
        try:
            server.serve()
            return
        except SystemExit:
            # granian gives up when a worker dies twice in 5.5 s. A collector must come back: nobody sends again.
            if server.interrupt_signal:
                raise
            log.error("a granian worker died twice within seconds; all workers are started again")
        except OSError as error:  # no process can be had
            log.error("cannot start a worker: %s; all workers are started again. Allow more processes", error)
            with contextlib.suppress(SystemExit):
                server.shutdown()  # type: ignore[no-untyped-call]
            for child in multiprocessing.active_children():  # one that was to be replaced is not granian's any more
                child.terminate()
        time.sleep(RESTART_SECONDS)
        if server.interrupt_signal:  # its handlers stay in place until the next one has its own
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
        backpressure=connections,  # its own limit would let idle connections keep others out
        http1_settings=HTTP1Settings(header_read_timeout=settings.keepalive * 1000, keep_alive=True),
        websockets=False,
        respawn_failed_workers=True,
        respawn_interval=OVERLAP_SECONDS,
        workers_kill_timeout=STOP_SECONDS,
        log_enabled=False,
    )
