"""The JSON of `kanalony cat`: one object for each event of a request. Names and order of the keys are a contract."""

from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from kanalony.bodies import Parameters, read_events
from kanalony.segments.names import worker_name
from kanalony.segments.reader import Request
from kanalony.segments.times import to_iso


def event_objects(request: Request) -> Iterator[dict[str, Any]]:
    """Yields the events of a request.

    Only the first event of a batch has the body: with each of them, the output would grow with the square of their
    number.
    """
    body: bytes | None = request.body or b""
    for index, parameters in enumerate(read_events(request).parameters):
        yield {
            "received_at": to_iso(request.received_at),
            **_text("method", request.method),
            **_text("path", request.path),
            **_text("query", request.query or b""),
            **_text("body", body),
            **_text("content_type", request.content_type),
            **_text("content_encoding", request.content_encoding),
            "remote_addr": request.address,
            **({"address_token": request.address_token.hex()} if request.address_token else {}),
            **_text("forwarded_for", request.forwarded_for),
            **_text("user_agent", request.user_agent),
            **_text("referer", request.referer),
            "worker": worker_name(request.worker_id),
            "sequence": request.sequence,
            "index": index,
            "params": _by_name(parameters),
        }
        body = None


def _by_name(parameters: Parameters) -> dict[str, Any]:
    """Returns parameters by name, in order; a repeated name has a list."""
    found: dict[str, list[str]] = {}
    for name, value in parameters:
        found.setdefault(name.decode(errors="replace"), []).append(value.decode(errors="replace"))
    return {name: values if len(values) > 1 else values[0] for name, values in found.items()}


def _text(name: str, value: bytes | None) -> dict[str, str | None]:
    """Returns a field without loss of bytes: as text when it is UTF-8, else as base64 under another name."""
    try:
        return {name: None if value is None else value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(value or b"").decode()}
