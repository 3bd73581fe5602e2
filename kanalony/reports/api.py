"""The query action and the dashboard's page over HTTP: a process of its own, which only reads."""

import asyncio
import hmac
import json
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.resources import files
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl

import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kanalony.aggregate.waiting import Waiting
from kanalony.errors import KanalonyError, StorageError, WrongUse
from kanalony.reports.query import Query, Reports, Stopped, too_large
from kanalony.reports.request import read_action
from kanalony.reports.table import csv_lines, json_parts
from kanalony.reports.vocabulary import UnknownName, Vocabulary
from kanalony.segments.directory import DataDirectory

log = logging.getLogger("kanalony")

EVERYBODY = "*"
"""The partner of a key that shows all of them."""

_MOST_BYTES = 64 << 10  # of a POST's body
_AT_A_TIME = 2  # queries that are answered; each takes all cores
_WAITING = 30  # queries of a partner; more wait no longer than it takes to say so
_MOST_ANSWER = 16 << 20  # bytes of an answer
_COUNT_INTERVAL = 10.0  # seconds at least between counts of what waits to be compacted
_COUNT_SHARE = 0.1  # of the time may go to them
_SECONDS = 60.0  # a query may take
_MEMORY = 0.6  # of the machine's, for all of them together
_OWN_PAGES = ("same-origin", "none")  # of Sec-Fetch-Site: this server's pages, and a person at the address bar
_PAGE = {file.name: file for file in (files("kanalony.reports") / "dashboard").iterdir()}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".md": "text/plain"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class _Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, kind: str, message: str, **data: Any) -> None:
        super().__init__(message)
        self.status, self.kind, self.data = status, kind, {"message": message, **data}


class _Access:
    """Which partner's rows a request may see."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Keys as settings have them: PARTNER=KEY."""
        self._keys = [(partner, key) for partner, _, key in (text.partition("=") for text in keys)]

    def of(self, request: Request, parameters: dict[str, Any]) -> str:
        """The partner that a request's key stands for, or EVERYBODY. Raises _Refused."""
        if not self._keys:
            return EVERYBODY
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        key = given if scheme.lower() == "bearer" else str(parameters.get("apiKey", ""))
        # All are compared, so that the time it takes tells nothing.
        told = key.encode(errors="replace")
        found = [partner for partner, known in self._keys if hmac.compare_digest(known.encode(), told)]
        if not found:
            hint = "send it as `Authorization: Bearer KEY`, or as the parameter apiKey"
            raise _Refused(401, "unauthorized", "this key opens nothing" if key else "a key is needed", hint=hint)
        return found[0]


def _restricted(query: Query, partner: str) -> Query:
    """A query for the rows of a partner alone. Raises _Refused when it asks for those of another."""
    if partner == EVERYBODY:
        return query
    wanted = query.filters.get("partner", (partner,))
    if any(value != partner for value in wanted):
        raise _Refused(404, "unknownPartner", "this key does not show that partner")
    return replace(query, filters={**query.filters, "partner": wanted}, latest_of=partner)


def _refuse_other_pages(request: Request) -> None:
    """Raises _Refused for what a page of another site sends. Its browser would not let it read the answer, but the
    query would have run.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        is_own = site in _OWN_PAGES
    else:  # browsers send it only over https, and to this machine
        is_own = origin is None or origin.partition("://")[2] == request.headers.get("Host")
    if not is_own:
        hint = "open the dashboard's own page; a proxy in front must pass on the Host header"
        raise _Refused(403, "forbidden", "pages of other sites may not ask here", hint=hint)


class _Turns:
    """Which queries run: some at a time, and the partners in turn."""

    def __init__(self, of_one: int) -> None:
        """`of_one` queries of a partner may run at a time."""
        self._of_one = of_one
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the partner that was served last is the last

    @asynccontextmanager
    async def turn(self, partner: str, gone: asyncio.Task[None]) -> AsyncIterator[None]:
        """Run with a turn of a partner. Raises _Refused when too many wait, ClientDisconnect once `gone` is done."""
        waiting = self._waiting.setdefault(partner, deque())
        if len(waiting) >= _WAITING:
            raise _Refused(503, "busy", "too many queries wait for their turn")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        self._start()
        try:
            await asyncio.wait({turn, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ClientDisconnect
            yield
        finally:
            if turn.done():
                self._running[partner] -= 1
            else:
                waiting.remove(turn)
            self._start()

    def _start(self) -> None:
        """Give turns to as many as may run."""
        for partner, waiting in list(self._waiting.items()):
            if self._running.total() >= _AT_A_TIME:
                return
            if waiting and self._running[partner] < self._of_one:
                waiting.popleft().set_result(None)
                self._running[partner] += 1
                self._waiting[partner] = self._waiting.pop(partner)
                self._start()
                return


class _Counted:
    """How many requests wait to be compacted: counted now and then, however often it is asked."""

    def __init__(self, data: DataDirectory) -> None:
        self._waiting = Waiting(data)
        self._alone = asyncio.Lock()
        self._count: int | None = 0
        self._until = 0.0

    async def get(self) -> int | None:
        """None when this user may not read the journals, as a member of a group that only reads what is sealed. Raises
        StorageError or FormatError when it cannot be counted.
        """
        async with self._alone:
            begin = time.monotonic()
            if begin >= self._until:
                try:
                    self._count = await to_thread.run_sync(self._waiting.count)
                except (WrongUse, OSError) as error:
                    if not isinstance(error.__cause__ or error, PermissionError):
                        raise StorageError(str(error), getattr(error, "hint", "")) from error
                    self._count = None
                end = time.monotonic()
                self._until = end + max(_COUNT_INTERVAL, (end - begin) / _COUNT_SHARE)
            return self._count


async def _gone(request: Request) -> None:
    """Wait until the client has hung up. What is left of the request is passed over."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _parameters(request: Request) -> dict[str, Any]:
    """Of the query string, and of a body that is a form or a JSON object."""
    parameters: dict[str, Any] = dict(request.query_params)
    if request.method != "POST":
        return parameters
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BYTES:
                raise _Refused(400, "badRequest", f"the body has more than {_MOST_BYTES:,} bytes")
    except ClientDisconnect as error:
        raise _Refused(400, "badRequest", "the body has no end") from error  # which nobody reads
    try:
        if "json" in request.headers.get("Content-Type", ""):
            told = json.loads(body or b"{}")
        else:
            told = dict(parse_qsl(body.decode(), keep_blank_values=True))
    except (ValueError, RecursionError) as error:
        raise _Refused(400, "badRequest", f"the body cannot be read: {error}") from error
    if not isinstance(told, dict):
        raise _Refused(400, "badRequest", "the body is no JSON object")
    return parameters | told


def create_app(
    data: DataDirectory, vocabulary: Vocabulary, keys: Sequence[str] = (), *, local: bool = False
) -> Starlette:
    """The ASGI application. `keys` are PARTNER=KEY; `local` answers only requests that name this machine as their host,
    so that no page of another site can read what this one shows.
    """
    memory = int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * _MEMORY / _AT_A_TIME)
    reports = Reports(data, vocabulary, memory=memory, seconds=_SECONDS, text_bytes=_MOST_ANSWER)
    access = _Access(keys)
    turns = _Turns(_AT_A_TIME - 1 if keys else _AT_A_TIME)
    counted = _Counted(data)

    def answer(query: Query, form: str, stop: threading.Event) -> Response:
        result = reports.run(query, stop)
        body = bytearray()
        for part in csv_lines(result) if form == "csv" else json_parts(result):
            body += part.encode()
            if len(body) > _MOST_ANSWER:
                raise too_large(_MOST_ANSWER)
        return Response(bytes(body), media_type="text/csv" if form == "csv" else "application/json")

    async def action(request: Request) -> Response:
        _refuse_other_pages(request)
        parameters = await _parameters(request)
        named = parameters.get("service"), parameters.get("action")
        if named == ("analytics", "waiting"):
            # How much is sent to all partners together is not for one of them.
            is_shown = access.of(request, parameters) == EVERYBODY
            return JSONResponse({"requests": await counted.get() if is_shown else None})
        if named != ("analytics", "query"):
            raise _Refused(404, "notFound", f"there is no action {named[1]!r} of a service {named[0]!r} here")
        partner = access.of(request, parameters)
        query = _restricted(read_action(parameters), partner)
        form = str(parameters.get("format", "json"))
        if form not in ("json", "csv"):
            raise _Refused(400, "badRequest", f"format is {form!r}", hint="it must be json or csv")
        stop = threading.Event()
        gone = asyncio.create_task(_gone(request))
        gone.add_done_callback(lambda _: stop.set())
        try:
            async with turns.turn(partner, gone):
                return await to_thread.run_sync(answer, query, form, stop)
        except (ClientDisconnect, Stopped):
            return Response(status_code=499)  # which nobody reads
        finally:
            gone.cancel()

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in _PAGE:
            raise HTTPException(404)
        return Response(_PAGE[name].read_bytes(), media_type=_TYPES["." + name.rpartition(".")[2]])

    hosts = ["127.0.0.1", "localhost", "[::1]"] if local else ["*"]
    app = Starlette(
        routes=[
            Route("/", page),
            Route("/static/{name}", page),
            Route("/api_v3/index.php", action, methods=["GET", "POST"]),
        ],
        middleware=[Middleware(_Headers), Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
        exception_handlers={Exception: _told, KanalonyError: _told, _Refused: _told, HTTPException: _told},
    )
    app.router.redirect_slashes = False
    return app


class _Headers:
    """Adds headers to every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_more(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        await self._app(scope, receive, send_more)


def _told(_: Request, error: Exception) -> Response:
    """An error as JSON: its kind, and what there is to say about it."""
    headers: Mapping[str, str] | None = None
    if isinstance(error, _Refused):
        status, kind, data = error.status, error.kind, error.data
    elif isinstance(error, UnknownName):
        kind = f"unknown{error.kind.capitalize()}"
        status, data = 400, {"message": str(error), "hint": error.hint, "name": error.name, "near": error.near}
    elif isinstance(error, WrongUse):
        status, kind, data = 400, "badRequest", {"message": str(error), "hint": error.hint}
    elif isinstance(error, HTTPException):
        kind = "notFound" if error.status_code == 404 else "badRequest"
        status, data, headers = error.status_code, {"message": error.detail}, error.headers
    elif isinstance(error, KanalonyError):
        log.error("a query failed: %s", error)
        status, kind, data = 503, "unavailable", {"message": str(error), "hint": error.hint}
    else:  # a mistake of ours, which the server logs
        status, kind, data = 500, "failed", {"message": "the query failed; the log says why"}
    if status == 503:
        headers = {"Retry-After": "10"}
    return JSONResponse({"kind": kind, "data": data}, status, headers)


def serve(data: DataDirectory, vocabulary: Vocabulary, host: str, port: int, keys: Sequence[str]) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises WrongUse for an address that others reach when there is no key, and
    StorageError when it is taken.
    """
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise WrongUse(f"there is no host {host!r}", "name an address of this machine with --host") from error
    is_local = ip_address(address[4][0]).is_loopback
    if not is_local and not keys:
        raise WrongUse(
            f"on {host} others would see everything", "name keys with --api-key PARTNER_ID=KEY, or *=KEY for all"
        )
    try:
        listening = socket.create_server(address[4][:2], family=address[0])
    except OSError as error:
        raise StorageError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}",
            "is another one running? Name another --port",
        ) from error
    app = create_app(data, vocabulary, keys, local=is_local and not keys)
    log.info("dashboard on http://%s:%d", f"[{host}]" if ":" in host else host, listening.getsockname()[1])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn stops by them, and then would have the process die of them
    # Not whatever else happens to be installed: these two are tested.
    config = uvicorn.Config(app, loop="asyncio", http="h11", log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listening])
