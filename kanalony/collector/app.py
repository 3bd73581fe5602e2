"""The collector as a WSGI application, for any WSGI server.

Nothing here may import the offline half of kanalony: a serving process stays small. A test checks the imports.
"""

import os
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import falcon

from kanalony.collector.addresses import client_address
from kanalony.collector.cors import Cors
from kanalony.collector.counts import Counts
from kanalony.collector.intake import Environ, Intake
from kanalony.collector.privacy import forbid_core_dumps, private
from kanalony.collector.resources import (
    METHODS,
    STORED_METHODS,
    NoIconResource,
    PixelResource,
    RobotsResource,
    TrackResource,
)
from kanalony.core.fast_path import FastPath
from kanalony.paths import ICON_PATH, ROBOTS_PATH, TRACKING_PATHS
from kanalony.segments.directory import DataDirectory
from kanalony.segments.store import Store
from kanalony.settings.loading import load_settings
from kanalony.settings.serving import ServeSettings

if TYPE_CHECKING:
    from wsgiref.types import StartResponse


class Collector:
    """The application.

    Requests for events bypass Falcon, whose request object parses every query string in Python and whose dispatch costs
    several µs, most of what an event costs. Plain GETs take the compiled fast path, every other request the general
    path, which hands to Falcon all but the requests for events.

    Attributes:
        settings: The settings.
        respond: The application as a compiled WSGI callable, for servers that call it often.
        falcon: What answers preflights, other paths and other methods.
    """

    def __init__(self, settings: ServeSettings) -> None:
        """Opens the data directory and creates a journal.

        Raises:
            UsageError: The data directory is not one.
            StorageError: The data directory cannot be written, or has no room for a journal.
        """
        self.settings = settings
        if settings.redact or settings.anonymize_ip != "no":
            forbid_core_dumps()
        self._data = DataDirectory.for_collector(settings.data, settings.spool, settings.group)
        self._store: Store | None = Store(self._data, settings)
        self._counts = Counts()
        self._intake = Intake(
            private(self._store.append, self._data, settings, self._counts),
            client_address(settings.trusted_proxy),
            max_body=settings.max_body,
        )
        cors = Cors(settings.allow_origin)
        is_shedding = self._is_nearly_full if settings.shed_views else lambda: False
        track, pixel = (kind(self._intake, cors, self._counts, is_shedding) for kind in (TrackResource, PixelResource))
        paths = dict.fromkeys([*TRACKING_PATHS, *settings.path])
        self._resources = {path: pixel if path.endswith(".gif") else track for path in paths}
        self.falcon = falcon.App()
        self.falcon.req_options.strip_url_path_trailing_slash = True
        self.falcon.add_route(ROBOTS_PATH, RobotsResource())
        self.falcon.add_route(ICON_PATH, NoIconResource())
        for path, resource in self._resources.items():
            self.falcon.add_route(path, resource)
        self.falcon.set_error_serializer(_plain_text(list(paths)))
        self.respond = FastPath(self._resources, self._intake, self.respond_generally, cors.deciding_headers)
        self._opening = threading.Lock()
        os.register_at_fork(after_in_child=self._after_fork)

    def __call__(self, environ: Environ, start_response: "StartResponse") -> Iterable[bytes]:
        """Answers a request, as a WSGI application."""
        return self.respond(environ, start_response)

    def respond_generally(self, environ: Environ, start_response: "StartResponse") -> Iterable[bytes]:
        """Answers any request, on the general path."""
        path = environ["PATH_INFO"]
        if path not in self._resources:
            if path.startswith(("http://", "https://")):  # absolute form, as proxies send it (RFC 9112, section 3.2.2)
                environ["PATH_INFO"] = path = "/" + "".join(path.split("/", 3)[3:])
            # Falcon's router accepts any number of leading slashes, and its request drops one trailing slash.
            path = "/" + path.lstrip("/").removesuffix("/")
        resource = self._resources.get(path)
        if resource and environ["REQUEST_METHOD"] in STORED_METHODS:
            return resource.respond(environ, start_response)
        return self.falcon(environ, start_response)

    def close(self) -> None:
        """Seals what is stored and removes the journal. No request may follow."""
        self._counts.close()
        if self._store:
            self._store.close()

    def _is_nearly_full(self) -> bool:
        return self._store is not None and self._store.is_nearly_full()

    def _after_fork(self) -> None:
        """Gives a child process a journal of its own with its first event.

        Servers that fork may share no journal: two processes must not append to one.
        """
        if self._store:
            self._store.forget()
        self._store = None
        self._opening = threading.Lock()
        self._intake.append = private(self._append_first, self._data, self.settings, self._counts)

    def _append_first(self, *fields: object) -> int:
        with self._opening:
            if self._store is None:
                self._store = Store(self._data, self.settings)
                self._intake.append = private(self._store.append, self._data, self.settings, self._counts)
        return self._store.append(*fields)


def _plain_text(paths: list[str]) -> Callable[[falcon.Request, falcon.Response, falcon.HTTPError], None]:
    """Makes Falcon's error serializer: text that names the tracking paths."""

    def serialize(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
        resp.content_type = "text/plain"
        resp.text = f"{error.status}: events are tracked by GET or POST on {', '.join(paths)}\n"
        if error.status == falcon.HTTP_405 and req.uri_template in paths:
            resp.set_header("Allow", METHODS)  # Falcon knows of OPTIONS only

    return serialize


def create_app(settings: ServeSettings | None = None) -> Collector:
    """Creates the application.

    Call its `close` before the process ends, to seal at once what is stored; otherwise the next process to start does.

    Args:
        settings: None reads kanalony.toml and the environment.

    Raises:
        UsageError: A setting is wrong, or the data directory is not one.
        StorageError: The data directory cannot be written, or has no room for a journal.
    """
    return Collector(settings or load_settings(ServeSettings))
