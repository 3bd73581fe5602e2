"""Storing a request: its parts are read from the WSGI environment and appended to the journal."""

from collections.abc import Callable
from typing import Any

from kanalony.collector.refusals import body_too_large, length_required, refusal
from kanalony.core.frames import FIELD_NAMES

Environ = dict[str, Any]
Append = Callable[..., int]
"""`Blocks.append`, or a wrapper of it: the parts of a request to the time of receipt in µs since 1970; 0 when full."""


_MAX_DISCARDED = 16 << 20  # bytes of a refused body that are still received
_DISCARD_STEP = 64 << 10  # bytes


_MISSING = (None,) * len(FIELD_NAMES)


def all_fields(values: tuple[Any, ...]) -> list[Any]:
    """Returns the arguments of `append` with None for fields without a value.

    Wrappers replace values by index, `FIELD_NAMES.index("query")`: a dict by name takes 1 µs more per event.
    """
    return [*values, *_MISSING[len(values) :]]


class Intake:
    """Appends requests to the journal.

    Attributes:
        append: Stores a request. A child of a fork replaces it.
        address: Finds the address of a request's client, from the WSGI environment.
    """

    def __init__(self, append: Append, address: Callable[[Environ], bytes | None], *, max_body: int) -> None:
        self.append = append
        self.address = address
        self._max_body = max_body

    def store(self, environ: Environ) -> int:
        """Stores a request.

        Returns:
            The time of receipt in µs since 1970.

        Raises:
            RefusedError: The request is not stored, or not known to be.
        """
        get = environ.get
        try:
            body = content_type = encoding = None
            if get("CONTENT_LENGTH") or get("HTTP_TRANSFER_ENCODING"):
                body, content_type, encoding = self._body(environ), get("CONTENT_TYPE"), get("HTTP_CONTENT_ENCODING")
            elif "HTTP_CONTENT_LENGTH " in environ or "HTTP_TRANSFER_ENCODING " in environ:
                raise ValueError("white space behind a header's name")  # meinheld passes such a request, body and all
            received_at = self.append(
                environ["REQUEST_METHOD"],
                environ["PATH_INFO"],
                self.address(environ),
                get("HTTP_X_FORWARDED_FOR"),
                get("HTTP_USER_AGENT"),
                get("HTTP_REFERER"),
                get("QUERY_STRING"),
                body,
                content_type,
                encoding,
            )
        except (OverflowError, ValueError, OSError) as error:
            raise refusal(error) from error
        if not received_at:
            raise refusal(None)
        return received_at

    def _body(self, environ: Environ) -> bytes | None:
        limit = self._max_body
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length < 0:
            raise ValueError("negative Content-Length")
        stream = environ["wsgi.input"]
        if length > limit:
            _discard(stream, length)
            raise body_too_large(f"the body of {length:,} bytes exceeds {limit:,}")
        if "HTTP_TRANSFER_ENCODING" not in environ:
            body = _read(stream, length)
            if len(body) < length:  # granian passes on a body that broke off, and its sender may still be listening
                raise ValueError("the body ended early")
            return body
        body = _read(stream, limit + 1) if environ.get("wsgi.input_terminated") else b""
        if len(body) > limit:
            _discard(stream, _MAX_DISCARDED)
            raise body_too_large(f"the body exceeds {limit:,} bytes")
        if not body and ("meinheld.client" in environ or not environ.get("wsgi.input_terminated")):
            # meinheld recognizes `Transfer-Encoding: chunked` in this spelling only, and reads no body for any other;
            # other servers may not support chunks at all. A 200 could be a lie, so an empty body is refused as well.
            raise length_required()
        return body


def _read(stream: Any, size: int) -> bytes:
    """Reads `size` bytes, or fewer at the end: one call of `read` may return less than there is."""
    parts = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _discard(stream: Any, size: int) -> None:
    """Reads a refused body up to a limit: a server that closes instead makes its client miss the response."""
    left = min(size, _MAX_DISCARDED)
    while left > 0 and (part := stream.read(min(left, _DISCARD_STEP))):
        left -= len(part)
