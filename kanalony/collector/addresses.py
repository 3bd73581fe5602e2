"""The address of a request's client, also behind trusted proxies."""

from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from kanalony.core.peer import remote_address

Networks = tuple[IPv4Network | IPv6Network, ...]

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052


def parse_address(address: str | bytes) -> IPv4Address | IPv6Address:
    """Parses an address.

    Args:
        address: Its text, or its 4 or 16 bytes in network order.

    Returns:
        The address: IPv4 also when it is mapped into IPv6, as dual-stack sockets report it.

    Raises:
        ValueError: It is not an address.
    """
    parsed = ip_address(address)
    return (parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None) or parsed


def embedded_ipv4(address: bytes) -> bytes | None:
    """Extracts the client's IPv4 address from an IPv6 address: mapped, 6to4, Teredo or NAT64.

    Args:
        address: 16 bytes in network order.

    Returns:
        4 bytes; None when the address embeds none.
    """
    six = IPv6Address(address)
    four = six.ipv4_mapped or six.sixtofour or (six.teredo[1] if six.teredo else None)
    if four:
        return four.packed
    return address[12:] if six in _NAT64 else None


def client_address(trusted: Networks) -> Callable[[dict[str, Any]], bytes | None]:
    """Makes a function from a WSGI environment to the client's address: the peer's, unless the peer is a trusted proxy.

    X-Forwarded-For of a trusted proxy is read from the right, as each proxy appends the address of its own peer. The
    first address that is not a trusted proxy's is the client's; the client may have invented everything left of it.

    Args:
        trusted: Networks of the trusted proxies.

    Returns:
        A function that returns 4 or 16 bytes in network order, or None when the peer has no IP address.
    """
    if not trusted:
        return remote_address

    @lru_cache(maxsize=1 << 10)  # bounded: a chain is up to 8 KB of the client's choice
    def resolve(peer: bytes, chain: str) -> bytes:
        client = parse_address(peer)
        for hop in reversed(chain.split(",")):
            if not any(client in network for network in trusted):
                break
            try:
                client = parse_address(hop.strip())
            except ValueError:
                break  # not an address: the proxies vouch for nothing beyond this hop
        return client.packed

    def address(environ: dict[str, Any]) -> bytes | None:
        peer = remote_address(environ)
        chain = environ.get("HTTP_X_FORWARDED_FOR")
        return resolve(peer, chain) if peer and chain else peer

    return address
