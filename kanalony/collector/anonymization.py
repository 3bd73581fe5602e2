"""Anonymized client addresses: truncated, hashed with a key of the day, or dropped."""

import contextlib
import hmac
import logging
import os
import secrets
import time
from pathlib import Path

from kanalony import durable
from kanalony.collector.addresses import embedded_ipv4, parse_address
from kanalony.collector.intake import Append, all_fields
from kanalony.core.frames import FIELD_NAMES

log = logging.getLogger(__name__)

_KEY_SIZE = 32  # bytes
_TOKEN_SIZE = 16  # bytes; the record format has as many
_DAY = 86400  # seconds

_REMOTE_ADDR, _FORWARDED_FOR, _ADDRESS_TOKEN = map(FIELD_NAMES.index, ("remote_addr", "forwarded_for", "address_token"))


def truncated(address: bytes) -> bytes:
    """Truncates an address to its network: the first 24 bits of IPv4, 48 of IPv6, then zeros.

    An IPv6 address that embeds the client's IPv4 address becomes that one, truncated: the first 48 bits of a 6to4
    address hold all of it.

    Args:
        address: 4 or 16 bytes in network order.
    """
    if len(address) == 16:
        address = embedded_ipv4(address) or address
    return address[:3] + bytes(1) if len(address) == 4 else address[:6] + bytes(10)


def _truncated_hop(hop: str) -> str:
    """Truncates one hop of X-Forwarded-For; text that is not an address may identify anybody, and is not kept."""
    try:
        return str(parse_address(truncated(parse_address(hop.strip()).packed)))
    except ValueError:
        return "unknown"


def truncating(append: Append) -> Append:
    """Wraps `append` so that it stores truncated addresses."""

    def store(*values: object) -> int:
        request = all_fields(values)
        address, hops = request[_REMOTE_ADDR], request[_FORWARDED_FOR]
        request[_REMOTE_ADDR] = truncated(address) if address else None
        request[_FORWARDED_FOR] = ", ".join(map(_truncated_hop, hops.split(","))) if hops else None
        return append(*request)

    return store


def dropping(append: Append) -> Append:
    """Wraps `append` so that it stores no addresses."""

    def store(*values: object) -> int:
        request = all_fields(values)
        request[_REMOTE_ADDR] = request[_FORWARDED_FOR] = None
        return append(*request)

    return store


def hashing(append: Append, keys: "AddressKeys") -> Append:
    """Wraps `append` so that it stores tokens instead of addresses: HMAC-SHA-256 with the key of the day."""

    def store(*values: object) -> int:
        request = all_fields(values)
        address = request[_REMOTE_ADDR]
        request[_ADDRESS_TOKEN] = hmac.digest(keys.today(), address, "sha256")[:_TOKEN_SIZE] if address else None
        request[_REMOTE_ADDR] = request[_FORWARDED_FOR] = None
        return append(*request)

    return store


class AddressKeys:
    """The random key of each day (UTC) with which addresses are hashed.

    All workers of a data directory share the key. The first worker that starts or needs a key on a later day deletes
    it; from then on nobody can find out whose a token was.

    When the disk fails, a worker uses a key of its own: storing the event matters more than equal tokens in all
    workers.
    """

    def __init__(self, directory: Path) -> None:
        """Deletes the keys of past days."""
        self._directory = directory
        self._day = -1
        self._key = b""
        with contextlib.suppress(OSError):
            self._delete_before(_date(int(time.time()) // _DAY))

    def today(self) -> bytes:
        """Returns the key of this day."""
        day = int(time.time()) // _DAY
        if day != self._day:
            try:
                self._key = self._find_or_create(_date(day))
            except OSError as error:
                log.error(
                    "cannot store a key for addresses in %s: %s; this worker uses its own", self._directory, error
                )
                self._key = secrets.token_bytes(_KEY_SIZE)
            self._day = day
        return self._key

    def _find_or_create(self, date: str) -> bytes:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        path = self._directory / f"{date}.key"
        with contextlib.suppress(FileExistsError):  # another worker was first; its key is everybody's
            durable.publish(path, secrets.token_bytes(_KEY_SIZE), rename=os.link, mode=0o600)
        self._delete_before(date)
        durable.sync_directory(self._directory)
        return path.read_bytes()

    def _delete_before(self, date: str) -> None:
        """Deletes the keys from before a day, also those that a crash left incomplete."""
        for path in self._directory.glob("[0-9]*"):
            if path.name[: len(date)] < date:
                path.unlink(missing_ok=True)


def _date(day: int) -> str:
    return time.strftime("%Y%m%d", time.gmtime(day * _DAY))
