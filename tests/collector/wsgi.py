"""Calls the application without a server, one request at a time, and reads the stored events."""

from typing import Any
from wsgiref.util import setup_testing_defaults

from kanalony.segments.directory import DataDirectory
from kanalony.segments.reader import Request
from kanalony.segments.requests import read_data
from kanalony.settings.serving import ServeSettings

SMALL: dict[str, Any] = {"journal_block_size": 128 << 10, "max_body": 32 << 10, "journal_blocks": 2, "host_id": "test"}


def stored(settings: ServeSettings) -> list[Request]:
    damaged: list[object] = []
    found = list(read_data(DataDirectory.existing(settings.data), damaged.append))
    assert damaged == []
    return found


def call(app: Any, path: str = "/collect", **environ: Any) -> tuple[str, dict[str, str], bytes]:
    """Sends one request to a WSGI application. Returns status, headers by lower-case name, and body."""
    environ = {"PATH_INFO": path, "SCRIPT_NAME": "", "REMOTE_ADDR": "192.0.2.7", "QUERY_STRING": "", **environ}
    setup_testing_defaults(environ)
    started: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Any:
        started[:] = [status, headers]

    answer = app(environ, start_response)
    body = b"".join(answer)
    if hasattr(answer, "close"):
        answer.close()
    status, headers = started
    return status, {name.lower(): value for name, value in headers}, body
