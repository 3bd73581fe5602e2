"""The collector under meinheld: gunicorn's arbiter, configured by the settings."""

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication

from kanalony.collector.meinheld_arbiter import MeinheldArbiter
from kanalony.collector.meinheld_worker import MeinheldWorker
from kanalony.errors import KanalonyError
from kanalony.segments.directory import DataDirectory
from kanalony.settings.serving import ServeSettings, describe_reload

if TYPE_CHECKING:
    from kanalony.collector.app import Collector

log = logging.getLogger(__name__)


def serve(
    settings: ServeSettings, reload_settings: Callable[[], ServeSettings], listener: socket.socket, *, backlog: int
) -> None:
    """Serves until SIGTERM or SIGINT; does not return.

    Args:
        settings: The settings to start with.
        reload_settings: Reads the settings again, at SIGHUP.
        listener: The listening socket.
        backlog: Most connections that may wait for a worker.
    """
    Application(settings, reload_settings, listener, backlog).run()


class Application(BaseApplication):  # type: ignore[misc]
    """gunicorn, configured by the settings instead of its own command line. SIGHUP reads the settings again."""

    def __init__(
        self,
        settings: ServeSettings,
        reload_settings: Callable[[], ServeSettings],
        listener: socket.socket,
        backlog: int,
    ) -> None:
        self.settings = settings
        self._backlog = backlog
        self._reload_settings = reload_settings
        self._bind = f"fd://{listener.detach()}"
        self._started = False
        super().__init__()

    def load_config(self) -> None:
        """Configures gunicorn, from settings that are read again except at the start."""
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
            "graceful_timeout": 0,  # for retiring workers; MeinheldArbiter.stop sets its own
            "control_socket_disable": True,
            "loglevel": "warning",
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> "Collector":
        """Creates the WSGI application, in a worker's process."""
        # Imported by each worker for itself, so that a reload brings new code.
        from kanalony.collector.app import create_app

        return create_app(self.settings)

    def run(self) -> None:
        """Runs the arbiter."""
        MeinheldArbiter(self).run()
