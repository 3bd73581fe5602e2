"""The collector as a WSGI application, for any WSGI server.

Nothing here may import the offline half of kanalony: a serving process stays small, and a test sees to it.
"""

import os
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

import falcon
from falcon.routing import CompiledRouter

from kanalony.collector.clients import Cors, client_address
from kanalony.collector.counts import Counts
from kanalony.collector.privacy import forbid_core_dumps, private
from kanalony.collector.resources import (
    TRACKING_PATHS,
    Environ,
    Intake,
    NoIconResource,
    PixelResource,
    RobotsResource,
    TrackResource,
)
from kanalony.core.fast_path import FastPath
from kanalony.segments.directory import DataDirectory
from kanalony.segments.store import Store
from kanalony.settings.loading import load_settings
from kanalony.settings.serving import ServeSettings

if TYPE_CHECKING:
    from wsgiref.types import StartResponse


class Collector:
    """The application. Falcon's router is the one routing table and Falcon answers whatever is not an event.

    Requests to tracking paths are answered on a short path: Falcon's request object parses every query string in Python
    and its dispatch costs several µs, which is most of what an event costs. The paths are resolved by the router once,
    at the start. `respond` is this application too, compiled, for servers that call it often.
    """

    def __init__(self, settings: ServeSettings) -> None:
        """Raises WrongUse or StorageError when the data directory cannot be used."""
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
            cors=Cors(settings.allow_origin),
            counts=self._counts,
            is_shedding=self._is_nearly_full if settings.shed_views else lambda: False,
        )
        router = CompiledRouter()
        self.falcon = falcon.App(router=router)
        self.falcon.req_options.strip_url_path_trailing_slash = True
        self.falcon.add_route("/robots.txt", RobotsResource())
        self.falcon.add_route("/favicon.ico", NoIconResource())
        track, pixel = TrackResource(self._intake), PixelResource(self._intake)
        paths = list(dict.fromkeys([*TRACKING_PATHS, *settings.path]))
        for path in paths:
            self.falcon.add_route(path, pixel if path.endswith(".gif") else track)
        self.falcon.set_error_serializer(_plain_text(paths))
        routes = {path: router.find(path) for path in paths}
        self._resources = {path: cast(TrackResource, route[0]) for path, route in routes.items() if route}
        self.respond = FastPath(self._resources, self._intake, self._respond)
        self._opening = threading.Lock()
        os.register_at_fork(after_in_child=self._after_fork)

    def __call__(self, environ: Environ, start_response: "StartResponse") -> Iterable[bytes]:
        return self.respond(environ, start_response)

    def _respond(self, environ: Environ, start_response: "StartResponse") -> Iterable[bytes]:
        """Whatever is no plain GET of a tracking path."""
        path = environ["PATH_INFO"]
        if path not in self._resources:
            if path.startswith(("http://", "https://")):  # absolute form, as proxies send it (RFC 9112, section 3.2.2)
                environ["PATH_INFO"] = path = "/" + "".join(path.split("/", 3)[3:])
            # Falcon's router takes any number of leading slashes, and its request drops one that trails.
            path = "/" + path.lstrip("/").removesuffix("/")
        resource = self._resources.get(path)
        if resource and environ["REQUEST_METHOD"] in ("GET", "POST", "HEAD"):
            return resource.respond(environ, start_response)
        return self.falcon(environ, start_response)

    def close(self) -> None:
        """Seal what is stored and give the journal up. No request may come after this."""
        self._counts.close()
        if self._store:
            self._store.close()

    def _is_nearly_full(self) -> bool:
        return self._store is not None and self._store.is_nearly_full()

    def _after_fork(self) -> None:
        """Two processes must not append to one journal: a child of a pre-forking server gets its own, with its first
        event.
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
    """What anything but an event is told."""

    def tell(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
        resp.content_type = "text/plain"
        resp.text = f"{error.status}: events are tracked by GET or POST on {', '.join(paths)}\n"

    return tell


def create_app(settings: ServeSettings | None = None) -> Collector:
    """The application; without settings, from kanalony.toml and the environment. Call its `close` before the process
    ends, to seal at once what is stored: else the next process to start does it.
    """
    return Collector(settings or load_settings(ServeSettings))
