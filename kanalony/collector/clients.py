"""Who sent a request."""

from ipaddress import ip_address
from typing import Any

from kanalony._peer import peer_address


def remote_address(environ: dict[str, Any]) -> bytes | None:
    """The address the request's connection comes from: 4 bytes (IPv4) or 16 (IPv6), network order; None when there is
    none.

    meinheld's own REMOTE_ADDR is a static buffer that holds whatever connection was accepted last, and 0.0.0.0 for
    IPv6, so the socket is asked instead. Other servers are believed.
    """
    client = environ.get("meinheld.client")
    if client is not None:
        return peer_address(client.get_fd())
    try:
        return ip_address(environ.get("REMOTE_ADDR", "")).packed
    except ValueError:
        return None  # a Unix socket, say
