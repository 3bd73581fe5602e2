def peer_address(fd: int) -> bytes | None:
    """The address the socket is connected to: 4 bytes (IPv4, also when mapped into IPv6) or 16 (IPv6); None when there
    is none."""
