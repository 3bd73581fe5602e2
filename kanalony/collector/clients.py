"""Who sent a request."""

from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

from kanalony._peer import peer_address

Networks = tuple[IPv4Network | IPv6Network, ...]


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


def client_address(trusted: Networks) -> Callable[[dict[str, Any]], bytes | None]:
    """A function from a request to its client's address: the connection's, unless that is a trusted proxy.

    Then X-Forwarded-For is read from the right, as each proxy appends whom it heard from, and the first address that
    is not a trusted proxy's is the client's: whatever stands left of it, the client may have made up.
    """
    if not trusted:
        return remote_address

    @lru_cache(maxsize=1 << 10)  # a chain is up to 8 KB of a client's choice
    def resolve(peer: bytes, chain: str) -> bytes:
        client = ip_address(peer)
        for hop in reversed(chain.split(",")):
            if not any(client in network for network in trusted):
                break
            try:
                client = ip_address(hop.strip())
            except ValueError:
                break  # not an address: what is known ends here
        return client.packed

    def address(environ: dict[str, Any]) -> bytes | None:
        peer = remote_address(environ)
        chain = environ.get("HTTP_X_FORWARDED_FOR")
        return resolve(peer, chain) if peer and chain else peer

    return address
