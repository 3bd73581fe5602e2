"""Who may query: keys of partners, and pages of other sites."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request

from kanalony.reports.api.errors import Refused
from kanalony.reports.query import Query

EVERYBODY = "*"
"""The partner of a key that shows all partners."""

_OWN_PAGES = ("same-origin", "none")  # Sec-Fetch-Site of this server's own pages, and of the address bar


class Keys:
    """Keys of partners."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Takes keys as the settings have them, PARTNER=KEY; without any, everybody sees everything."""
        self._keys = [(partner, key) for partner, _, key in (text.partition("=") for text in keys)]

    def partner(self, request: Request, parameters: Mapping[str, Any]) -> str:
        """Returns the partner of a request's key, or EVERYBODY. Raises Refused for a missing or unknown key."""
        if not self._keys:
            return EVERYBODY
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        key = token if scheme.lower() == "bearer" else str(parameters.get("apiKey", ""))
        # Every key is compared, in constant time, so that the time of the answer reveals nothing.
        encoded = key.encode(errors="replace")
        found = [partner for partner, known in self._keys if hmac.compare_digest(known.encode(), encoded)]
        if not found:
            hint = "send it as `Authorization: Bearer KEY`, or as the parameter apiKey"
            raise Refused(401, "unauthorized", "the key is unknown" if key else "a key is required", hint=hint)
        return found[0]


def restrict(query: Query, partner: str) -> Query:
    """Restricts a query to the rows of a partner. Raises Refused when it asks for those of another."""
    if partner == EVERYBODY:
        return query
    partners = query.filters.get("partner", (partner,))
    if any(value != partner for value in partners):
        raise Refused(404, "unknownPartner", "this key does not show that partner")
    return replace(query, filters={**query.filters, "partner": partners}, latest_of=partner)


def refuse_other_sites(request: Request) -> None:
    """Raises Refused for a request that a page of another site sends.

    The browser would not let that page read the answer, but the query would run.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        is_own = site in _OWN_PAGES
    else:  # browsers send it only over https, and to localhost
        is_own = origin is None or origin.partition("://")[2] == request.headers.get("Host")
    if not is_own:
        hint = "open the dashboard's own page; a proxy in front must pass on the Host header"
        raise Refused(403, "forbidden", "requests from pages of other sites are not allowed", hint=hint)
