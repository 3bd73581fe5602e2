"""The ASGI application: routes, the query action, the dashboard's files."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kanalony.reports.api.access import EVERYBODY, Keys, refuse_other_sites, restrict
from kanalony.reports.api.backlog import Backlog
from kanalony.reports.api.errors import HANDLERS, Refused
from kanalony.reports.api.limits import Limits
from kanalony.reports.api.turns import Turns
from kanalony.reports.execution import Cancelled, Reports
from kanalony.reports.parsing import read_action
from kanalony.reports.query import Query
from kanalony.reports.renderer import csv_lines, json_parts
from kanalony.reports.result import answer_too_large
from kanalony.segments.directory import DataDirectory

_LOCAL_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
_MEDIA_TYPES = {"json": "application/json", "csv": "text/csv"}  # of answers, by format
_FILES = {file.name: file for file in (files("kanalony.reports") / "dashboard").iterdir()}
_FILE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".md": "text/plain"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(
    data: DataDirectory,
    reports: Reports,
    keys: Sequence[str] = (),
    *,
    local: bool = False,
    limits: Limits | None = None,
) -> Starlette:
    """Creates the application.

    Args:
        data: The data directory, to count the requests that wait to be compacted.
        reports: Answers the queries.
        keys: Keys of partners, PARTNER=KEY; without any, everybody sees everything.
        local: Answers only requests whose Host names this machine, so that no page of another site can read reports
            by DNS rebinding.
        limits: The limits; the usual ones when None.
    """
    service = _Service(data, reports, keys, limits or Limits())
    app = Starlette(
        routes=[
            Route("/", _file),
            Route("/static/{name}", _file),
            Route("/api_v3/index.php", service.respond, methods=["GET", "POST"]),
        ],
        middleware=[
            Middleware(_Headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=_LOCAL_HOSTS if local else ["*"]),
        ],
        exception_handlers=HANDLERS,
    )
    app.router.redirect_slashes = False
    return app


class _Service:
    """The actions of the service `analytics`."""

    def __init__(self, data: DataDirectory, reports: Reports, keys: Sequence[str], limits: Limits) -> None:
        self._reports = reports
        self._keys = Keys(keys)
        self._limits = limits
        self._turns = Turns(limits.running, limits.running - 1 if keys else limits.running, limits.queued)
        self._backlog = Backlog(data, limits)

    async def respond(self, request: Request) -> Response:
        """Answers a request for an action."""
        refuse_other_sites(request)
        parameters = await _read_parameters(request, self._limits.body_bytes)
        service, action = parameters.get("service"), parameters.get("action")
        if (service, action) == ("analytics", "waiting"):
            return await self._waiting(request, parameters)
        if (service, action) == ("analytics", "query"):
            return await self._query(request, parameters)
        raise Refused(
            404, "notFound", f"no action {action or ''!r} of the service {service or ''!r}: see docs/reports.md"
        )

    async def _waiting(self, request: Request, parameters: dict[str, Any]) -> Response:
        # The number of all partners' requests is not shown to one partner.
        is_shown = self._keys.partner(request, parameters) == EVERYBODY
        return JSONResponse({"requests": await self._backlog.count() if is_shown else None})

    async def _query(self, request: Request, parameters: dict[str, Any]) -> Response:
        partner = self._keys.partner(request, parameters)
        query = restrict(read_action(parameters), partner)
        form = str(parameters.get("format", "json"))
        if form not in _MEDIA_TYPES:
            raise Refused(400, "badRequest", f"format is {form!r}", hint="it must be json or csv")
        cancel = threading.Event()
        gone = asyncio.create_task(_disconnected(request))
        gone.add_done_callback(lambda _: cancel.set())
        try:
            async with self._turns.turn(partner, gone):
                return await to_thread.run_sync(self._run, query, form, cancel)
        except (ClientDisconnect, Cancelled):
            return Response(status_code=499)  # the client is gone and does not read it
        finally:
            gone.cancel()

    def _run(self, query: Query, form: str, cancel: threading.Event) -> Response:
        result = self._reports.run(query, cancel)
        body = bytearray()
        for part in csv_lines(result) if form == "csv" else json_parts(result):
            body += part.encode()
            if len(body) > self._limits.answer_bytes:
                raise answer_too_large(self._limits.answer_bytes)
        return Response(bytes(body), media_type=_MEDIA_TYPES[form])


async def _disconnected(request: Request) -> None:
    """Waits until the client has disconnected. Ignores the rest of the request."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_parameters(request: Request, most_bytes: int) -> dict[str, Any]:
    """Returns the parameters of the query string, and of a body that is a form or a JSON object."""
    parameters: dict[str, Any] = dict(request.query_params)
    if request.method != "POST":
        return parameters
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > most_bytes:
                raise Refused(400, "badRequest", f"the body has more than {most_bytes:,} bytes")
    except ClientDisconnect as error:  # the client is gone and does not read the answer
        raise Refused(400, "badRequest", "the body is incomplete") from error
    try:
        if "json" in request.headers.get("Content-Type", ""):
            values = json.loads(body or b"{}")
        else:
            values = dict(parse_qsl(body.decode(), keep_blank_values=True))
    except (ValueError, RecursionError) as error:
        raise Refused(400, "badRequest", f"the body cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise Refused(400, "badRequest", "the body is not a JSON object")
    return parameters | values


async def _file(request: Request) -> Response:
    """Serves a file of the dashboard."""
    name = request.path_params.get("name", "index.html")
    if name not in _FILES:
        raise HTTPException(404)
    return Response(_FILES[name].read_bytes(), media_type=_FILE_TYPES["." + name.rpartition(".")[2]])


class _Headers:
    """Middleware that adds headers to every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, send_with_headers)
