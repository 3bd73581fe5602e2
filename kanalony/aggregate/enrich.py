"""Derived columns of events: browser, page, user, country. No event is dropped for its values.

Each distinct value is looked up once: a batch has few user agents and many events.
"""

import base64
import hashlib
import re
import sys
from collections.abc import Callable
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import maxminddb
import pyarrow as pa
import pyarrow.compute as pc
import ua_parser
from crawleruseragents import CRAWLER_USER_AGENTS_DATA as CRAWLERS
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from ua_parser_rs import UserAgentExtractor

from kanalony.errors import UsageError

SCHEMA = pa.schema(
    [
        ("browser", pa.string()),
        ("operatingSystem", pa.string()),
        ("device", pa.string()),
        ("isBot", pa.bool_()),
        ("botReason", pa.string()),
        ("syndicationDomain", pa.string()),
        ("referrerPage", pa.string()),
        ("ksPartnerId", pa.int64()),
        ("ksUserId", pa.string()),
        ("country", pa.string()),
        ("region", pa.string()),
        ("city", pa.string()),
    ]
)
"""The derived columns. Unknown is null."""

Secrets = dict[int, str]
"""The secrets of partners, by partner id."""

_CACHE_SIZE = 8 << 20  # bytes of the lookup cache of one column
_CACHE_ENTRY_SIZE = 128  # bytes of an entry, besides its texts
_CACHED_LENGTH = 512  # characters of a value in a cache, at most: longer ones are forged, or looked up each time
_LONGEST = 16 << 10  # bytes of a value that is looked up, at most: no browser sends more, and the time grows with them
_LONGEST_HOST = 253  # characters (RFC 1035)
_AT_ONCE = 512  # values that are Python objects at a time
_DESKTOPS = {"Windows", "Mac OS X", "Linux", "Ubuntu", "Fedora", "Chrome OS", "FreeBSD"}
# The list of crawlers contains libraries and devices of apps: patterns that match these user agents are left out.
_NO_CRAWLERS = (
    "okhttp/4.12.0",
    "Jersey/2.25.1 (HttpUrlConnection 1.8.0_141)",
    "Apache-HttpClient/UNAVAILABLE (java 1.4)",
    "Dalvik/2.1.0 (Linux; U; Android 15; PKH120 Build/AP3A.240617.008)",
    "Mozilla/5.0 (Linux; Android 5.1.1; SM-A520F) Chrome/68.0.3440.106 Mobile Safari/537.36 SogouMobileBrowser/5.22.8",
    "Mozilla/5.0 (X11; Linux x86_64) Code/1.96.2 Chrome/128.0.6613.186 Electron/32.2.6 Safari/537.36",
)
_NOTHING = {"", "null", "undefined", "none", "about:blank"}
_ENCODED_URL = re.compile(r"[a-z][a-z0-9+.-]*%(25)*3a", re.I)
_BASE64_URL = re.compile(r"(aHR0c|SFRUU)[A-Za-z0-9+/_-]*={0,2}")  # begins with http or HTTP
_BARE_HOST = re.compile(r"[\w-]+(\.[\w-]+)+(:\d+)?(/|$)")
_KS_PARTNER, _KS_USER = 0, 5  # fields of version 1: partner;pattern;expiry;type;random;user;privileges
_KS_OVERHEAD = 36  # bytes of random and hash before the fields of version 2


class Agent(NamedTuple):
    """The parts of a user agent. `bot_reason` is None for a person, else the reason to take it for a bot."""

    browser: str | None
    operating_system: str | None
    device: str | None
    bot_reason: str | None


class Page(NamedTuple):
    """The page of a player: host, and host[:port]/path in lower case."""

    domain: str | None
    url: str | None


class Session(NamedTuple):
    """Partner and user of a ks, not validated, as nothing of an event is: it may have been tampered with."""

    partner_id: int | None
    user_id: str | None


class Place(NamedTuple):
    """Names of a place, in English."""

    country: str | None
    region: str | None
    city: str | None


@cache
def _crawlers() -> tuple[UserAgentExtractor, list[tuple[str, str]]]:
    """Returns an extractor that finds the number of the first crawler in a user agent, and (kind, pattern) of each."""
    chosen = [
        ("tool" if "http-library" in crawler["tags"] else "crawler", crawler["pattern"])
        for crawler in CRAWLERS
        if not any(re.search(crawler["pattern"], agent) for agent in _NO_CRAWLERS)
    ]
    # ua-parser's engine takes 2 µs for 1,500 patterns; a regular expression of Python's re takes 900 µs.
    rules = ((pattern, str(number), None, None, None, None) for number, (_, pattern) in enumerate(chosen))
    return UserAgentExtractor(rules), chosen


def read_agent(user_agent: str | None) -> Agent:
    """Parses a user agent.

    Sources: ua-parser, and for crawlers and tools its list and that of crawler-user-agents.
    """
    if not user_agent:
        return Agent(None, None, None, "no user agent")
    parsed = ua_parser.parse(user_agent)
    browser = parsed.user_agent.family if parsed.user_agent else None
    system = parsed.os.family if parsed.os else None
    device = parsed.device.family if parsed.device else None
    reason = None
    if "Headless" in user_agent:
        reason = "headless browser"
    elif device == "Spider":
        reason = f"crawler: {browser}"
    elif found := _crawlers()[0].extract(user_agent):
        kind, pattern = _crawlers()[1][int(found.family)]
        name = re.search(pattern, user_agent)
        reason = f"{kind}: {name[0] if name else pattern}"
    if device is None and system in _DESKTOPS:
        device = "Desktop"
    return Agent(browser, system, device, reason)


def read_referrer(referrer: str | None) -> Page:
    """Parses a referrer as players send it: a URL, maybe percent-encoded up to twice more, or in base64.

    An unreadable referrer is an unknown page.
    """
    text = (referrer or "").strip()
    if text.lower() in _NOTHING:
        return Page(None, None)
    if _BASE64_URL.fullmatch(text):
        text = _from_base64(text.rstrip("="))
    for _ in range(3):
        if not _ENCODED_URL.match(text):
            break
        text = unquote(text)
    if "://" not in text and not text.startswith("//") and _BARE_HOST.match(text):
        text = f"//{text}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return Page(None, None)
    if not host or len(host) > _LONGEST_HOST:
        return Page(None, None)
    name = f"[{host}]" if ":" in host else host
    return Page(host, (f"{name}:{port}" if port is not None else name) + (parts.path.lower() or "/"))


def _from_base64(text: str) -> str:
    text = text.replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4)).decode()
    except ValueError:
        return ""


def read_ks(ks: str | None, secrets: Secrets | None) -> Session:
    """Parses a Kaltura session (ks), of version 1 (signed) or 2 (encrypted).

    Never raises: an unreadable ks has neither partner nor user, and one that does not fit the secret has no user.

    Args:
        ks: The text that was sent.
        secrets: The secrets of partners. Without them (None) a ks of version 1 is not verified.
    """
    text = (ks or "").replace("-", "+").replace("_", "/").rstrip("=")
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:  # not base64, or not even ASCII
        return Session(None, None)
    if content.startswith(b"v2|"):
        return _read_encrypted(content, secrets or {})
    signature, _, info = content.partition(b"|")
    fields = info.decode(errors="replace").split(";")
    if not re.fullmatch(r"[0-9]{1,18}", fields[_KS_PARTNER]):
        return Session(None, None)
    partner = int(fields[_KS_PARTNER])
    user = fields[_KS_USER] if len(fields) > _KS_USER else ""
    if secrets is not None:
        signed = hashlib.sha1(secrets.get(partner, "").encode() + info).hexdigest().encode()
        user = user if partner in secrets and signed == signature.lower() else ""
    return Session(partner, _known_user(user))


def _read_encrypted(content: bytes, secrets: Secrets) -> Session:
    _, partner_id, ciphertext = (*content.split(b"|", 2), b"", b"")[:3]
    if not re.fullmatch(rb"[0-9]{1,18}", partner_id):
        return Session(None, None)
    partner = int(partner_id)
    if partner not in secrets or not ciphertext or len(ciphertext) % 16:
        return Session(partner, None)
    key = hashlib.sha1(secrets[partner].encode()).digest()[:16]
    decryptor = Cipher(algorithms.AES(key), modes.CBC(bytes(16))).decryptor()
    plain = (decryptor.update(ciphertext) + decryptor.finalize())[_KS_OVERHEAD:].rstrip(b"\0")
    # A wrong secret decrypts to noise, which is not text.
    if not plain or not all(0x20 <= byte < 0x7F for byte in plain):
        return Session(partner, None)
    return Session(partner, _known_user(parse_qs(plain.decode()).get("_u", [""])[0]))


def _known_user(user: str) -> str | None:
    """Returns None for user 0, that of a widget's session: an anonymous viewer."""
    return None if user in ("", "0") else user


def read_secrets(path: Path) -> Secrets:
    """Reads the secrets of partners from a file with a line `PARTNER_ID SECRET` for each.

    Raises:
        UsageError: The file cannot be read, or a line has another form. The message names the line, and does not quote
            it.
    """
    secrets: Secrets = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "name a text file with --ks-secrets") from error
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not re.fullmatch(r"[0-9]{1,18}", words[0]):
            raise UsageError(f"{path}, line {number} is not of the form PARTNER_ID SECRET", "fix that line")
        secrets[int(words[0])] = words[1]
    return secrets


def open_geoip(path: Path) -> maxminddb.Reader:
    """Opens a MaxMind database of places.

    Raises:
        UsageError: The file cannot be read, or is not one.
    """
    hint = "name a MaxMind database (.mmdb) with --geoip"
    try:
        return maxminddb.open_database(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint) from error
    except maxminddb.InvalidDatabaseError as error:
        raise UsageError(f"{path} is not a MaxMind database", hint) from error


def read_place(address: str | None, database: maxminddb.Reader) -> Place:
    """Looks up the place of an IP address. An address that the database does not know has an unknown place."""
    try:
        found: Any = database.get(ip_address(address or ""))
    except (ValueError, maxminddb.InvalidDatabaseError):  # not an address, IPv6 in a database of IPv4, or damage
        return Place(None, None, None)
    if not isinstance(found, dict):
        return Place(None, None, None)
    regions = found.get("subdivisions") or found.get("region")
    region = regions[0] if isinstance(regions, list) else regions
    return Place(_name(found.get("country")), _name(region), _name(found.get("city")))


def _name(place: Any) -> str | None:
    """Returns the name of a place in MaxMind's layout (names by language, and a code), or in a flat one (the name)."""
    if isinstance(place, dict):
        names = place.get("names")
        place = (names.get("en") if isinstance(names, dict) else None) or place.get("iso_code")
    return place if isinstance(place, str) else None


class Enricher:
    """Adds the derived columns (SCHEMA) to events."""

    def __init__(self, secrets: Secrets | None, geoip: maxminddb.Reader | None) -> None:
        """Creates an enricher with empty lookup caches.

        Args:
            secrets: The secrets of partners. Without them (None) a ks of version 1 is believed, and the user of one of
                version 2 is unknown.
            geoip: The database of places. Without it, places are unknown.
        """
        self._agent = _LookupCache(read_agent)
        self._referrer = _LookupCache(read_referrer)
        self._ks = _LookupCache(lambda ks: read_ks(ks, secrets))
        self._place = _LookupCache(lambda address: read_place(address, geoip)) if geoip else None

    def add(self, events: pa.Table) -> pa.Table:
        """Returns events with the derived columns after theirs, text dictionary-encoded.

        Args:
            events: Rows with the columns of kanalony.aggregate.columns.SCHEMA.
        """
        columns = dict(zip(events.schema.names, events.columns, strict=True))
        added = _looked_up(columns, "userAgent", self._agent, 4)
        added.insert(3, added[3].is_valid())  # isBot: whether there is a botReason
        added += _looked_up(columns, "referrer", self._referrer, 2)
        added += _looked_up(columns, "ks", self._ks, 2, pa.int64())
        if self._place is not None:  # the cache is a dict, and false while it is empty
            added += _looked_up(columns, "remoteAddr", self._place, 3)
        else:
            added += [pa.nulls(len(events), pa.string())] * 3
        return pa.table([*columns.values(), *added], [*columns, *SCHEMA.names])


class _LookupCache(dict[Any, tuple[Any, ...]]):
    """Results by value. When full, the cache is emptied."""

    def __init__(self, read: Callable[[Any], tuple[Any, ...]]) -> None:
        super().__init__()
        self._read = read
        self._size = 0

    def __missing__(self, value: Any) -> tuple[Any, ...]:
        found = self._read(value)
        if value is None or len(value) <= _CACHED_LENGTH:
            size = sum(map(sys.getsizeof, (value, *found)), _CACHE_ENTRY_SIZE)
            if self._size + size > _CACHE_SIZE:
                self.clear()
                self._size = 0
            self._size += size
            self[value] = found
        return found


def _looked_up(
    columns: dict[str, pa.ChunkedArray], name: str, read: _LookupCache, parts: int, first: pa.DataType | None = None
) -> list[pa.Array]:
    """Looks up the values of a column, and returns a column for each part of the results.

    Values longer than _LONGEST are not looked up; all their parts are null.

    Args:
        columns: The columns of events.
        name: The column to look up.
        read: Returns the parts of a value.
        parts: Their number.
        first: The type of the first part; text, as all others, when None.
    """
    encoded = columns[name].combine_chunks().dictionary_encode()
    kinds = [first or pa.string(), *[pa.string()] * (parts - 1)]
    unread = (None,) * parts
    chunks: list[list[pa.Array]] = [[pa.array([part], kind)] for part, kind in zip(read[None], kinds, strict=True)]
    for start in range(0, len(encoded.dictionary), _AT_ONCE):
        texts = encoded.dictionary.slice(start, _AT_ONCE)
        fits = pc.less_equal(pc.binary_length(texts), _LONGEST)
        readable = iter(texts.filter(fits).to_pylist())
        found = [read[next(readable)] if fit else unread for fit in fits.to_pylist()]
        for chunk, values, kind in zip(chunks, zip(*found, strict=True), kinds, strict=True):
            chunk.append(pa.array(values, kind))
    at = pc.add(encoded.indices, 1).fill_null(0)  # the parts of null are at 0
    arrays = []
    for chunk, kind in zip(chunks, kinds, strict=True):
        values = pa.concat_arrays(chunk)
        if pa.types.is_string(kind):
            words = values.dictionary_encode()
            arrays.append(pa.DictionaryArray.from_arrays(words.indices.take(at), words.dictionary))
        else:
            arrays.append(values.take(at))
    return arrays
