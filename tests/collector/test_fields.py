"""Both paths of the collector supply the value of every field of a request."""

import io
from pathlib import Path
from typing import Any

import pytest

from kanalony.collector.app import create_app
from kanalony.core.frames import FIELD_NAMES
from kanalony.settings.serving import ServeSettings
from tests.collector.wsgi import SMALL, call, stored

# A field is the request header of its name, unless it is one of these.
OTHERS = {"method", "path", "remote_addr", "forwarded_for", "query", "body", "content_type", "address_token"}
HEADERS = {name: f"HTTP_{name.upper()}" for name in FIELD_NAMES if name not in OTHERS}
ENVIRON = {variable: f"the {name}" for name, variable in HEADERS.items()} | {
    "QUERY_STRING": "eventType=3",
    "REMOTE_ADDR": "192.0.2.7",
    "HTTP_X_FORWARDED_FOR": "203.0.113.9",
}
OF_EVERY_REQUEST: dict[str, bytes | None] = {
    "path": b"/collect",
    "remote_addr": bytes([192, 0, 2, 7]),
    "forwarded_for": b"203.0.113.9",
    "query": b"eventType=3",
    "address_token": None,
    **{name: ENVIRON[variable].encode() for name, variable in HEADERS.items()},
}
OF_GET: dict[str, bytes | None] = {"method": b"GET", "body": None, "content_type": None, "content_encoding": None}
OF_POST: dict[str, bytes | None] = {"method": b"POST", "body": b"a=1", "content_type": b"text/plain"}


@pytest.mark.parametrize("path_taken", ["fast path", "general path", "general path with a body"])
def test_every_field_is_stored(tmp_path: Path, path_taken: str) -> None:
    app = create_app(ServeSettings(data=tmp_path / "data", **SMALL))
    environ: dict[str, Any] = {**ENVIRON, "REQUEST_METHOD": "GET"}
    expected = OF_EVERY_REQUEST | OF_GET
    if path_taken == "general path with a body":
        environ |= {"REQUEST_METHOD": "POST", "CONTENT_TYPE": "text/plain", "CONTENT_LENGTH": "3"}
        environ["wsgi.input"] = io.BytesIO(b"a=1")
        expected = OF_EVERY_REQUEST | OF_POST
    status, _, _ = call(app.respond_generally if path_taken.startswith("general") else app, **environ)
    app.close()
    assert status == "200 OK"
    (request,) = stored(app.settings)
    assert dict(zip(FIELD_NAMES, request.fields, strict=True)) == expected
