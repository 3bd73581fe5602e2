"""Cross-origin resource sharing: which pages may read responses, and which preflights are granted."""

import re
from typing import Any, TypeGuard

from kanalony.collector.responses import Headers

_ANY_ORIGIN = [("Access-Control-Allow-Origin", "*")]
_VARY = ("Vary", "Origin")
_ORIGIN = re.compile(r"[\x21-\x7e]{1,256}")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, \t-]+")


class Cors:
    """The origins whose pages may read responses and send requests that need a preflight.

    Source: the Fetch standard, section 3.2. A simple request is stored whatever its page may read.
    """

    def __init__(self, allowed: tuple[str, ...]) -> None:
        """Args: `allowed` are origins as browsers send them; empty allows every origin."""
        self._allowed = frozenset(allowed)

    @property
    def deciding_headers(self) -> tuple[str, ...]:
        """Names in the WSGI environment without which every GET gets the same CORS headers."""
        return ("HTTP_ORIGIN",) if self._allowed else ("HTTP_COOKIE",)

    def origin(self, environ: dict[str, Any]) -> str | None:
        """Returns the origin that the response to a request has to name; None when `*` is enough."""
        # Browsers accept no `*` when a page sends cookies, or may send them (sendBeacon does without being asked).
        if self._allowed or environ["REQUEST_METHOD"] == "POST" or "HTTP_COOKIE" in environ:
            origin: str | None = environ.get("HTTP_ORIGIN")
            return origin
        return None

    def response_headers(self, origin: str | None) -> Headers:
        """Returns the CORS headers of a response.

        Args:
            origin: What `origin` returned for the request.
        """
        if self._is_granted(origin):
            return [("Access-Control-Allow-Origin", origin), ("Access-Control-Allow-Credentials", "true"), _VARY]
        return [_VARY] if self._allowed else _ANY_ORIGIN

    def preflight(self, environ: dict[str, Any]) -> Headers | None:
        """Returns the headers that grant a preflight, without methods and Vary; None when its origin is not allowed."""
        origin = environ.get("HTTP_ORIGIN")
        if self._allowed and origin is not None and not self._is_granted(origin):
            return None
        granted = [header for header in self.response_headers(origin) if header != _VARY]
        requested = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS")
        if requested and _HEADER_NAMES.fullmatch(requested):
            granted.append(("Access-Control-Allow-Headers", requested))
        return granted

    def _is_granted(self, origin: str | None) -> TypeGuard[str]:
        """Whether an origin is allowed, and safe to repeat in a header."""
        return bool(origin and _ORIGIN.fullmatch(origin) and (not self._allowed or origin in self._allowed))
