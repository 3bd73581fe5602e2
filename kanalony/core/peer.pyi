from typing import Any

def remote_address(environ: dict[str, Any]) -> bytes | None:
    """Returns the address of the other end of a request's connection, or None when it has none.

    4 bytes for IPv4, also when it is mapped into IPv6, or 16 for IPv6, in network order. meinheld's REMOTE_ADDR is a
    static buffer with the address of the connection accepted last, and 0.0.0.0 for IPv6, so with meinheld the address
    comes from the socket (getpeername). Other servers' REMOTE_ADDR is used.
    """
