"""Requests that are not stored: status, text and reason of every 4xx and 503 on a tracking path.

Servers refuse some requests before the application sees them; docs/requests.md lists these.
"""

from kanalony.collector.responses import TEXT, Headers, Response, compose

_RETRY = ("Retry-After", "1")


class RefusedError(Exception):
    """A request that is not stored, or not known to be. Its text is the reason in the counts."""

    def __init__(self, status: str, text: str, reason: str, *headers: tuple[str, str]) -> None:
        super().__init__(reason)
        self._status = status
        self._body = f"{status[:3]}: {text}\n".encode("latin-1", "replace")
        self._headers = headers

    def response(self, cors: Headers) -> Response:
        """Returns the response, with the headers from `Cors.response_headers`."""
        return compose(self._status, TEXT, self._body, cors, *self._headers)


def malformed() -> RefusedError:
    """400: the request contradicts itself, or breaks off."""
    return RefusedError(
        "400 Bad Request", "the request is malformed; nothing was stored.", "malformed requests answered with 400"
    )


def length_required() -> RefusedError:
    """411: a chunked body is empty, or the server did not read it."""
    return RefusedError(
        "411 Length Required",
        "send the body with a Content-Length; nothing was stored.",
        "bodies without Content-Length that are empty or that the server did not read, answered with 411",
    )


def body_too_large(problem: str) -> RefusedError:
    """413: the body exceeds `max_body`. `problem` is the first half of the text."""
    return RefusedError(
        "413 Content Too Large", f"{problem}; nothing was stored.", "bodies above max_body answered with 413"
    )


def request_too_large(error: OverflowError) -> RefusedError:
    """413: URL, headers and body together exceed a journal block. The error names both sizes."""
    return RefusedError(
        "413 Content Too Large", f"{error}; nothing was stored.", "requests above journal_block_size answered with 413"
    )


def disk_failed(error: Exception) -> RefusedError:
    """503: the disk failed, so the event may be stored or not."""
    return RefusedError(
        "503 Service Unavailable",
        "the disk failed; this event is not known to be stored.",
        f"events not stored and answered with 503: {error}",
        _RETRY,
    )


def journal_full() -> RefusedError:
    """503: the journal has no free block, because the disk does not keep up."""
    return RefusedError(
        "503 Service Unavailable",
        "there is no room to store this event.",
        "events not stored and answered with 503: the journal is full",
        _RETRY,
    )


def refusal(error: Exception | None) -> RefusedError:
    """Maps an error of `append` to its refusal. None means that the journal is full."""
    if isinstance(error, OverflowError):
        return request_too_large(error)
    if isinstance(error, ValueError):
        return malformed()
    return disk_failed(error) if error else journal_full()
