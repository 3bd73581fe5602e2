"""Who sent a request: the address behind proxies, the origin of the page."""

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, TypeGuard

from kanalony.core.peer import remote_address

Networks = tuple[IPv4Network | IPv6Network, ...]

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052


def parse_address(told: str | bytes) -> IPv4Address | IPv6Address:
    """An address of text, or of 4 or 16 bytes; IPv4 also when it is mapped into IPv6, as dual-stack sockets tell it.
    Raises ValueError when it is none.
    """
    address = ip_address(told)
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def held_ipv4(address: bytes) -> bytes | None:
    """The IPv4 address of the client that an IPv6 address of 16 bytes holds: mapped, 6to4, Teredo or NAT64."""
    six = IPv6Address(address)
    four = six.ipv4_mapped or six.sixtofour or (six.teredo[1] if six.teredo else None)
    if four:
        return four.packed
    return address[12:] if six in _NAT64 else None


def client_address(trusted: Networks) -> Callable[[dict[str, Any]], bytes | None]:
    """A function from a request to its client's address: the connection's, unless that is a trusted proxy.

    Then X-Forwarded-For is read from the right, as each proxy appends whom it heard from, and the first address that
    is not a trusted proxy's is the client's: whatever stands left of it, the client may have made up.
    """
    if not trusted:
        return remote_address

    @lru_cache(maxsize=1 << 10)  # a chain is up to 8 KB of a client's choice
    def resolve(peer: bytes, chain: str) -> bytes:
        client = parse_address(peer)
        for hop in reversed(chain.split(",")):
            if not any(client in network for network in trusted):
                break
            try:
                client = parse_address(hop.strip())
            except ValueError:
                break  # not an address: what is known ends here
        return client.packed

    def address(environ: dict[str, Any]) -> bytes | None:
        peer = remote_address(environ)
        chain = environ.get("HTTP_X_FORWARDED_FOR")
        return resolve(peer, chain) if peer and chain else peer

    return address


Headers = list[tuple[str, str]]

_ANY_ORIGIN = [("Access-Control-Allow-Origin", "*")]
_VARY = ("Vary", "Origin")
_ORIGIN = re.compile(r"[\x21-\x7e]{1,256}")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, \t-]+")


class Cors:
    """Which pages may read the answers, and send what needs to be asked for first (the Fetch standard, section 3.2).

    Browsers store nothing differently for it: a simple request arrives whatever its page may read.
    """

    def __init__(self, allowed: tuple[str, ...]) -> None:
        """`allowed` are origins as browsers send them; none means that any is."""
        self._allowed = frozenset(allowed)

    @property
    def decides_by(self) -> tuple[str, ...]:
        """Headers of a GET, as in its environ, without which the answer to it is the same for everybody."""
        return ("HTTP_ORIGIN",) if self._allowed else ("HTTP_COOKIE",)

    def origin(self, environ: dict[str, Any]) -> str | None:
        """The origin that the answer to a request has to name; None when `*` does."""
        # To a page that sends cookies, or may (sendBeacon does, unasked), the browser shows no answer for `*`.
        if self._allowed or environ["REQUEST_METHOD"] == "POST" or "HTTP_COOKIE" in environ:
            origin: str | None = environ.get("HTTP_ORIGIN")
            return origin
        return None

    def answer(self, origin: str | None) -> Headers:
        """Headers for an answer that names this origin, or none."""
        if self._is_granted(origin):
            return [("Access-Control-Allow-Origin", origin), ("Access-Control-Allow-Credentials", "true"), _VARY]
        return [_VARY] if self._allowed else _ANY_ORIGIN

    def preflight(self, environ: dict[str, Any]) -> Headers | None:
        """Headers that allow what a preflight asks for, the methods left out; None when its origin is not allowed."""
        origin = environ.get("HTTP_ORIGIN")
        if self._allowed and origin is not None and not self._is_granted(origin):
            return None
        granted = [header for header in self.answer(origin) if header != _VARY]
        asked = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS")
        if asked and _HEADER_NAMES.fullmatch(asked):
            granted.append(("Access-Control-Allow-Headers", asked))
        return granted

    def _is_granted(self, origin: str | None) -> TypeGuard[str]:
        """Whether it is an origin, and allowed. It is echoed, so it must be fit for a header."""
        return bool(origin and _ORIGIN.fullmatch(origin) and (not self._allowed or origin in self._allowed))
