"""What each path answers. docs/requests.md describes it for clients."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import falcon

from kanalony.collector.cors import Cors
from kanalony.collector.counts import Counts
from kanalony.collector.intake import Environ, Intake
from kanalony.collector.refusals import RefusedError, refusal
from kanalony.collector.responses import Response, json_response, pixel_response, time_response, wants_json
from kanalony.core.fast_path import ResponseCache

if TYPE_CHECKING:
    from wsgiref.types import StartResponse

STORED_METHODS = frozenset(("GET", "HEAD", "POST"))
METHODS = "GET, HEAD, POST, OPTIONS"

_PREFLIGHT_AGE = "86400"  # seconds; browsers lower it to limits of their own
_ROBOTS = b"User-agent: *\nDisallow: /\n"


class TrackResource:
    """Stores every request to a tracking path and answers the time of receipt, as text or JSON.

    `respond` serves the methods that are stored. Falcon serves preflights.

    Attributes:
        responses: Responses of the current second, by origin. The fast path shares them.
    """

    is_pixel = False
    _compose = staticmethod(time_response)

    def __init__(self, intake: Intake, cors: Cors, counts: Counts, is_shedding: Callable[[], bool]) -> None:
        """Creates the resource.

        Args:
            intake: Stores requests.
            cors: Decides which pages may read responses.
            counts: Counts refused requests.
            is_shedding: Decides whether JSON responses ask players to send no views.
        """
        self._intake = intake
        self._cors = cors
        self._counts = counts
        self._is_shedding = is_shedding
        self.responses = ResponseCache(lambda second, origin: self._compose(second, cors.response_headers(origin)))

    def respond(self, environ: Environ, start_response: "StartResponse") -> Iterable[bytes]:
        """Stores and answers a GET, HEAD or POST, as a WSGI application."""
        status, headers, body = self._track(environ)
        start_response(status, headers[:])  # servers may append to the list
        return [body] if environ["REQUEST_METHOD"] != "HEAD" else []

    def _track(self, environ: Environ) -> Response:
        """Stores a request: 200 once it is stored, 4xx or 503 when it is not."""
        try:
            received_at = self._intake.store(environ)
        except RefusedError as refused:
            return self._refuse(environ, refused)
        second = received_at // 1_000_000
        origin = self._cors.origin(environ)
        if not self.is_pixel and wants_json(environ):
            return json_response(second, self._cors.response_headers(origin), views_enabled=self._views_enabled())
        return self.responses.get(second, origin)

    def _views_enabled(self) -> bool:
        if not self._is_shedding():
            return True
        self._counts.add("JSON responses that asked for no views, since the journal is nearly full")
        return False

    def _refuse(self, environ: Environ, refused: RefusedError) -> Response:
        self._counts.add(str(refused))
        return refused.response(self._cors.response_headers(self._cors.origin(environ)))

    def refuse(self, environ: Environ, error: Exception | None) -> Response:
        """Counts a request that was not stored.

        Args:
            environ: The request.
            error: What `append` raised; None when the journal is full.

        Returns:
            The response.
        """
        return self._refuse(environ, refusal(error))

    def on_options(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answers a preflight."""
        resp.content_type = "text/plain"
        granted = self._cors.preflight(req.env)
        if granted is None:
            self._counts.add("preflights of origins that are not allowed, answered with 403")
            resp.status = falcon.HTTP_403
            resp.text = "403: pages of this origin may not send events here.\n"
            granted = []
        else:
            granted = [*granted, ("Access-Control-Allow-Methods", METHODS), ("Access-Control-Max-Age", _PREFLIGHT_AGE)]
        resp.set_headers([("Allow", METHODS), ("Vary", "Origin, Access-Control-Request-Headers"), *granted])


class PixelResource(TrackResource):
    """Stores every request to a path that pages load as an image, and answers a pixel."""

    is_pixel = True
    _compose = staticmethod(pixel_response)


class RobotsResource:
    """Keeps search engines from following links to events."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answers robots.txt."""
        resp.content_type = "text/plain"
        resp.data = _ROBOTS

    on_head = on_get


class NoIconResource:
    """Answers 404 to a browser's request for an icon, and has the browser remember it."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answers 404 for a week."""
        resp.status = falcon.HTTP_404
        resp.content_type = "text/plain"
        resp.cache_control = ["max-age=604800"]

    on_head = on_get
