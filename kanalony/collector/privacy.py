"""What is left out before anything reaches the disk, when the operator wants it so: addresses, named parameters.

Off by default. With it the promise of byte-for-byte storage no longer holds for what is named here, and for nothing
else; docs/requests.md says it to people.
"""

import contextlib
import ctypes
import gzip
import hmac
import logging
import os
import resource
import secrets
import time
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

from kanalony.bodies import is_plain_form, read_body
from kanalony.collector.clients import held_ipv4, parse_address
from kanalony.collector.counts import Counts
from kanalony.core.frames import FIELD_NAMES
from kanalony.core.querystring import bare_name
from kanalony.core.redact import Redactor
from kanalony.segments.names import DataDirectory, sync_directory
from kanalony.settings import Settings

log = logging.getLogger("kanalony")

REPLACEMENT = b"redacted"
_UNREADABLE = (
    b"{redacted}"  # neither JSON nor a form, whatever the body's type: it still counts as one that cannot be read
)

_KEY_SIZE = 32
_TOKEN_SIZE = 16
_DAY = 86400
_LEAST_EVENT = 64  # bytes of max_body for each event that is redacted while a player waits
_COMPRESSION = 4  # bytes of max_body for each byte that is decompressed: blocks that hold nothing take the longest
_PR_SET_DUMPABLE = 4

Append = Callable[..., int]


def forbid_core_dumps() -> None:
    """Keep the memory of this process off the disk: it holds addresses and parameters before they are replaced. The
    limit covers core files; a core_pattern that pipes to a program ignores it, and needs a process not dumpable.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def private(append: Append, data: DataDirectory, settings: Settings, counts: Counts) -> Append:
    """Wrap `append` so that it stores nothing the settings want left out. `counts` gets the bodies that are not stored
    whole for it.
    """
    if settings.redact:
        redactor = Redactor((bare_name(name) for name in settings.redact), REPLACEMENT)
        append = _redacting(append, redactor, settings.max_body, counts)
    keys = AddressKeys(data)
    if settings.anonymize_ip == "truncate":
        append = _truncating(append)
    elif settings.anonymize_ip == "hmac":
        append = _hashing(append, keys)
    elif settings.anonymize_ip == "drop":
        append = _dropping(append)
    return append


def truncated(address: bytes) -> bytes:
    """An address's network: the first 24 bits of IPv4, 48 of IPv6, zeros behind. Of an IPv6 address that holds the
    client's IPv4 address, that one's: the first 48 bits of a 6to4 address are all of it.
    """
    if len(address) == 16:
        address = held_ipv4(address) or address
    return address[:3] + bytes(1) if len(address) == 4 else address[:6] + bytes(10)


def _truncated_hop(hop: str) -> str:
    """The same for one hop of X-Forwarded-For; what is no plain address may be anybody's, and is not kept."""
    try:
        return str(parse_address(truncated(parse_address(hop.strip()).packed)))
    except ValueError:
        return "unknown"


def _by_name(values: tuple[Any, ...]) -> dict[str, Any]:
    """The values of a request by the names of their fields, in the order in which `append` takes them."""
    return dict(zip_longest(FIELD_NAMES, values))


def _truncating(append: Append) -> Append:
    def store(*values: object) -> int:
        request = _by_name(values)
        address, hops = request["remote_addr"], request["forwarded_for"]
        request["remote_addr"] = truncated(address) if address else None
        request["forwarded_for"] = ", ".join(map(_truncated_hop, hops.split(","))) if hops else None
        return append(*request.values())

    return store


def _dropping(append: Append) -> Append:
    def store(*values: object) -> int:
        return append(*(_by_name(values) | {"remote_addr": None, "forwarded_for": None}).values())

    return store


def _hashing(append: Append, keys: "AddressKeys") -> Append:
    def store(*values: object) -> int:
        request = _by_name(values)
        address = request["remote_addr"]
        token = hmac.digest(keys.today(), address, "sha256")[:_TOKEN_SIZE] if address else None
        request |= {"remote_addr": None, "forwarded_for": None, "address_token": token}
        return append(*request.values())

    return store


class AddressKeys:
    """The key of the day (UTC) with which addresses are hashed: random, shared by all workers of a data directory, and
    deleted by the first of them that starts or needs a key after it. Then nobody can tell whose a token was.

    When the disk refuses, a worker goes on with a key of its own: an event is worth more than that another worker gives
    its address the same token.
    """

    def __init__(self, data: DataDirectory) -> None:
        self._directory = data.address_keys
        self._day = -1
        self._key = b""
        with contextlib.suppress(OSError):
            self._forget(_date(int(time.time()) // _DAY))

    def today(self) -> bytes:
        """The key of this day."""
        day = int(time.time()) // _DAY
        if day != self._day:
            try:
                self._key = self._find_or_make(day)
            except OSError as error:
                log.error("no key for addresses in %s: %s; this worker has one of its own", self._directory, error)
                self._key = secrets.token_bytes(_KEY_SIZE)
            self._day = day
        return self._key

    def _find_or_make(self, day: int) -> bytes:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        date = _date(day)
        path = self._directory / f"{date}.key"
        # Whole or not at all, and one for all: whoever links first has made it.
        young = self._directory / f"{date}-{os.getpid()}-{secrets.token_hex(4)}.young"
        try:
            young.touch(mode=0o600, exist_ok=False)
            with young.open("wb") as file:
                file.write(secrets.token_bytes(_KEY_SIZE))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another worker was first
                os.link(young, path)
        finally:
            young.unlink(missing_ok=True)
        self._forget(date)
        sync_directory(self._directory)
        return path.read_bytes()

    def _forget(self, date: str) -> None:
        """Delete the keys from before that day, those too that a crash left half made."""
        for path in self._directory.glob("[0-9]*"):
            if path.name[: len(date)] < date:
                path.unlink(missing_ok=True)


def _date(day: int) -> str:
    return time.strftime("%Y%m%d", time.gmtime(day * _DAY))


def _redacting(append: Append, redactor: Redactor, max_body: int, counts: Counts) -> Append:
    def store(*values: object) -> int:
        request = _by_name(values)
        query, referer, body = request["query"], request["referer"], request["body"]
        request["query"] = redactor.query(query.encode("latin-1")) if query else None
        request["referer"] = _redact_url(referer, redactor) if referer else None
        if body:
            request["body"], request["content_encoding"], is_whole = _redact_body(
                body, request["content_type"] or "", request["content_encoding"], redactor, max_body
            )
            if not is_whole:
                counts.add("bodies that could not be read to be redacted, and are not stored, or not all of them")
        return append(*request.values())

    return store


def _redact_url(url: str, redactor: Redactor) -> bytes:
    raw = url.encode("latin-1")
    start = min((place for mark in b"?#" if (place := raw.find(mark)) >= 0), default=len(raw))
    return raw[:start] + redactor.query(raw[start:])


def _redact_body(
    body: bytes, content_type: str, content_encoding: str | None, redactor: Redactor, max_body: int
) -> tuple[bytes, str | None, bool]:
    """(body, content encoding) without secret values, and whether nothing else is missing. Whatever holds none stays as
    it was sent. Of a body that cannot be read to its end only the events that can be are kept: nobody can tell what the
    rest says. A compressed body may be as large as one that is not, so that it costs no more to redact.
    """
    found = read_body(
        body,
        content_type.encode("latin-1"),
        (content_encoding or "").encode("latin-1"),
        max_events=1 + max_body // _LEAST_EVENT,
        max_expanded=max_body,
        max_compressed=max_body // _COMPRESSION,
    )
    text = found.text
    if not text and found.problem:
        # It still does not keep to its content encoding, so readers find the same problem.
        return REPLACEMENT, content_encoding, False
    is_whole = found.problem is None
    if found.form:
        start, end = found.form
        pairs = text[start:end]
        # Pairs in name only may hold anything.
        is_whole = is_plain_form(pairs)
        redacted = text[:start] + (redactor.query(pairs) if is_whole else REPLACEMENT) + text[end:]
    elif found.problem:
        redacted = b"\n".join([*(redactor.json(text, start, end) for start, end in found.objects), _UNREADABLE])
    else:
        redacted = redactor.json(text, 0, len(text))
    if redacted == text:
        return body, content_encoding, is_whole
    is_compressed = text is not body
    if is_compressed or len(redacted) > max_body:  # many short values may become longer than a journal block
        compressed = gzip.compress(redacted, 1, mtime=0)
        if len(compressed) <= max_body:
            return compressed, "gzip", is_whole
        if len(redacted) > max_body:
            return REPLACEMENT, "gzip", False  # which it is not, so readers count it as one that cannot be read
        content_encoding = None
    return redacted, content_encoding, is_whole
