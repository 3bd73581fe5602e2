from typing import Any

def remote_address(environ: dict[str, Any]) -> bytes | None:
    """The address a request's connection comes from: 4 bytes (IPv4, also when mapped into IPv6) or 16 (IPv6), network
    order; None when there is none.

    meinheld's own REMOTE_ADDR is a static buffer that holds whatever connection was accepted last, and 0.0.0.0 for
    IPv6, so the socket is asked instead (getpeername). Other servers are believed.
    """
