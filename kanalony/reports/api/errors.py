"""Errors as JSON: `{"kind": ..., "data": {"message": ..., "hint": ...}}`, with the status that fits."""

import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kanalony.errors import KanalonyError, UsageError
from kanalony.reports.vocabulary import UnknownName

log = logging.getLogger(__name__)

_RETRY_SECONDS = "10"


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, kind: str, message: str, **data: Any) -> None:
        """Describes the answer.

        Args:
            status: HTTP status.
            kind: Kind of the error, for programs.
            message: What is wrong.
            data: Further values beside the message, for example a hint.
        """
        super().__init__(message)
        self.status, self.kind, self.data = status, kind, {"message": message, **data}


def error_response(_: Request, error: Exception) -> Response:
    """Maps an exception to the answer."""
    headers: Mapping[str, str] | None = None
    data: dict[str, Any]
    match error:
        case Refused():
            status, kind, data = error.status, error.kind, error.data
        case UnknownName():
            status, kind = 400, f"unknown{error.kind.capitalize()}"
            data = {"message": str(error), "hint": error.hint, "name": error.name, "near": error.near}
        case UsageError():
            status, kind, data = 400, "badRequest", {"message": str(error), "hint": error.hint}
        case HTTPException():
            kind = "notFound" if error.status_code == 404 else "badRequest"
            status, data, headers = error.status_code, {"message": error.detail}, error.headers
        case KanalonyError():
            log.error("a query failed: %s", error)
            status, kind, data = 503, "unavailable", {"message": str(error), "hint": error.hint}
        case _:  # a bug; the server logs it with its traceback
            status, kind, data = 500, "failed", {"message": "the query failed; see the server's log"}
    if status == 503:
        headers = {"Retry-After": _RETRY_SECONDS}
    return JSONResponse({"kind": kind, "data": data}, status, headers)


HANDLERS = dict.fromkeys((Exception, KanalonyError, Refused, HTTPException), error_response)
"""Starlette's exception handlers."""
