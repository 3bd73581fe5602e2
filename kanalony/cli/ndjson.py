"""The JSON of `kanalony cat`: one object for each event of a request.

Keys keep their names and order; new ones may follow the headers.
"""

from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from kanalony.bodies import Parameters, read_events
from kanalony.core.frames import FIELD_NAMES
from kanalony.segments.names import worker_name
from kanalony.segments.reader import Request
from kanalony.segments.times import to_iso

_FIRST_FIELDS = ("method", "path", "query", "body", "content_type", "content_encoding", "remote_addr", "address_token")
"""The order in the output; other fields follow in the order of FIELD_NAMES."""


def event_objects(request: Request) -> Iterator[dict[str, Any]]:
    """Yields the events of a request.

    Only the first event of a batch has the body: with each of them, the output would grow with the square of their
    number.
    """
    fields = _field_objects(request, request.body or b"")
    for index, parameters in enumerate(read_events(request).parameters):
        if index == 1:
            fields = _field_objects(request, None)
        yield {
            "received_at": to_iso(request.received_at),
            **fields,
            "worker": worker_name(request.worker_id),
            "sequence": request.sequence,
            "index": index,
            "params": _by_name(parameters),
        }


def _field_objects(request: Request, body: bytes | None) -> dict[str, str | None]:
    """Returns the fields of a request, with this body, by name."""
    objects: dict[str, str | None] = {}
    for name in dict.fromkeys((*_FIRST_FIELDS, *FIELD_NAMES)):
        value = getattr(request, name)
        if name == "remote_addr":
            objects[name] = request.address
        elif name == "address_token":
            objects |= {name: value.hex()} if value else {}
        elif name == "query":
            objects |= _text(name, value or b"")
        else:
            objects |= _text(name, body if name == "body" else value)
    return objects


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
