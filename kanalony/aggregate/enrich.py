"""What an event says between the lines: browser, page, user, country. Nothing is dropped for what it says.

Everything is looked up once for each distinct value: a batch has few user agents and many events.
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

from kanalony.errors import WrongUse

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
"""The columns added here. Unknown is null."""

Secrets = dict[int, str]

_CACHED_SIZE = 8 << 20  # bytes of the cache for one column
_CACHED_ENTRY = 128  # bytes of an entry beyond its texts
_CACHED_LENGTH = 512  # characters of a value in a cache: longer ones are made up, or read again each time
_LONGEST = 16 << 10  # bytes of a value that is read: no browser sends longer ones, and each costs time for its length
_LONGEST_HOST = 253  # characters (RFC 1035)
_AT_ONCE = 512  # values that are Python objects at a time
_DESKTOPS = {"Windows", "Mac OS X", "Linux", "Ubuntu", "Fedora", "Chrome OS", "FreeBSD"}
# The list of crawlers has libraries and devices that apps name too: patterns that match these are left out.
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
_BASE64_URL = re.compile(r"(aHR0c|SFRUU)[A-Za-z0-9+/_-]*={0,2}")  # of what begins with http or HTTP
_BARE_HOST = re.compile(r"[\w-]+(\.[\w-]+)+(:\d+)?(/|$)")
_KS_OVERHEAD = 36  # bytes of random and hash before what a version 2 says


class Agent(NamedTuple):
    """What a user agent is. `bot_reason` says why it is taken for no person, if it is."""

    browser: str | None
    operating_system: str | None
    device: str | None
    bot_reason: str | None


class Page(NamedTuple):
    """Where a player stands: host, and host[:port]/path in lower case."""

    domain: str | None
    url: str | None


class Session(NamedTuple):
    """Whose a ks is, as it says: whether it was tampered with is not looked at, as nothing of an event is validated."""

    partner_id: int | None
    user_id: str | None


class Place(NamedTuple):
    country: str | None
    region: str | None
    city: str | None


@cache
def _crawlers() -> tuple[UserAgentExtractor, list[tuple[str, str]]]:
    """Finds in a user agent the number of the first crawler that it names; and of each the kind and the pattern."""
    chosen = [
        ("tool" if "http-library" in crawler["tags"] else "crawler", crawler["pattern"])
        for crawler in CRAWLERS
        if not any(re.search(crawler["pattern"], agent) for agent in _NO_CRAWLERS)
    ]
    # ua-parser's engine takes 2 µs for 1,500 patterns, where a regular expression of Python's takes 900.
    rules = ((pattern, str(number), None, None, None, None) for number, (_, pattern) in enumerate(chosen))
    return UserAgentExtractor(rules), chosen


def read_agent(user_agent: str | None) -> Agent:
    """What ua-parser makes of a user agent; crawlers and tools by its list and that of crawler-user-agents."""
    if not user_agent:
        return Agent(None, None, None, "no user agent")
    told = ua_parser.parse(user_agent)
    browser = told.user_agent.family if told.user_agent else None
    system = told.os.family if told.os else None
    device = told.device.family if told.device else None
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
    """The page of a referrer as players send it: a URL, maybe percent-encoded once more or twice, or in base64."""
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
    """Whose a Kaltura session is, of version 1 (signed) or 2 (encrypted). Never raises: what cannot be read is
    nobody's, and a secret that does not fit leaves the partner.
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
    if not re.fullmatch(r"[0-9]{1,18}", fields[0]):
        return Session(None, None)
    partner = int(fields[0])
    user = fields[5] if len(fields) > 5 else ""
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
    # Of a wrong secret comes noise, which is no text.
    if not plain or not all(0x20 <= byte < 0x7F for byte in plain):
        return Session(partner, None)
    return Session(partner, _known_user(parse_qs(plain.decode()).get("_u", [""])[0]))


def _known_user(user: str) -> str | None:
    """None for the user 0, which a widget's session has: an anonymous viewer."""
    return None if user in ("", "0") else user


def read_secrets(path: Path) -> Secrets:
    """Partners' secrets from a file with a line `PARTNER_ID SECRET` for each. Raises WrongUse, naming the line but not
    what stands there.
    """
    secrets: Secrets = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUse(f"{path} cannot be read: {error}", "name a text file with --ks-secrets") from error
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not re.fullmatch(r"[0-9]{1,18}", words[0]):
            raise WrongUse(f"{path}, line {number} is not of the form PARTNER_ID SECRET", "mend that line")
        secrets[int(words[0])] = words[1]
    return secrets


def open_geoip(path: Path) -> maxminddb.Reader:
    """A database of places. Raises WrongUse when it is none."""
    hint = "name a MaxMind database (.mmdb) with --geoip"
    try:
        return maxminddb.open_database(path)
    except OSError as error:
        raise WrongUse(f"{path} cannot be read: {error.strerror}", hint) from error
    except maxminddb.InvalidDatabaseError as error:
        raise WrongUse(f"{path} is not a MaxMind database", hint) from error


def read_place(address: str | None, database: maxminddb.Reader) -> Place:
    """Where an address is, in English."""
    try:
        told: Any = database.get(ip_address(address or ""))
    except (ValueError, maxminddb.InvalidDatabaseError):  # no address, IPv6 in a database of IPv4; damaged
        return Place(None, None, None)
    if not isinstance(told, dict):
        return Place(None, None, None)
    regions = told.get("subdivisions") or told.get("region")
    region = regions[0] if isinstance(regions, list) else regions
    return Place(_name(told.get("country")), _name(region), _name(told.get("city")))


def _name(place: Any) -> str | None:
    """Of MaxMind's layout, names by language and a code; or of a flat one, where the name itself stands."""
    if isinstance(place, dict):
        names = place.get("names")
        place = (names.get("en") if isinstance(names, dict) else None) or place.get("iso_code")
    return place if isinstance(place, str) else None


class Enricher:
    """Adds the columns of SCHEMA to events."""

    def __init__(self, secrets: Secrets | None, geoip: maxminddb.Reader | None) -> None:
        """Without secrets (None) a ks of version 1 is believed, and one of version 2 tells no user."""
        self._agent = _Remembered(read_agent)
        self._referrer = _Remembered(read_referrer)
        self._ks = _Remembered(lambda ks: read_ks(ks, secrets))
        self._place = _Remembered(lambda address: read_place(address, geoip)) if geoip else None

    def add(self, events: pa.Table) -> pa.Table:
        """Events, columns.SCHEMA, with the columns of SCHEMA behind theirs, text dictionary-encoded where there is
        any.
        """
        columns = dict(zip(events.schema.names, events.columns, strict=True))
        added = _looked_up(columns, "userAgent", self._agent, 4)
        added.insert(3, added[3].is_valid())
        added += _looked_up(columns, "referrer", self._referrer, 2)
        added += _looked_up(columns, "ks", self._ks, 2, pa.int64())
        if self._place is not None:  # empty at first
            added += _looked_up(columns, "remoteAddr", self._place, 3)
        else:
            added += [pa.nulls(len(events), pa.string())] * 3
        return pa.table([*columns.values(), *added], [*columns, *SCHEMA.names])


class _Remembered(dict[Any, tuple[Any, ...]]):
    def __init__(self, read: Callable[[Any], tuple[Any, ...]]) -> None:
        super().__init__()
        self._read = read
        self._size = 0

    def __missing__(self, value: Any) -> tuple[Any, ...]:
        found = self._read(value)
        if value is None or len(value) <= _CACHED_LENGTH:
            size = sum(map(sys.getsizeof, (value, *found)), _CACHED_ENTRY)
            if self._size + size > _CACHED_SIZE:
                self.clear()
                self._size = 0
            self._size += size
            self[value] = found
        return found


def _looked_up(
    columns: dict[str, pa.ChunkedArray], name: str, read: _Remembered, parts: int, first: pa.DataType | None = None
) -> list[pa.Array]:
    """For each part of what `read` finds in a value of a column, a column: of text, or the first of another type.
    Values longer than _LONGEST are not read, and all parts of them are null.
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
    at = pc.add(encoded.indices, 1).fill_null(0)  # of what is null comes first
    arrays = []
    for chunk, kind in zip(chunks, kinds, strict=True):
        values = pa.concat_arrays(chunk)
        if pa.types.is_string(kind):
            words = values.dictionary_encode()
            arrays.append(pa.DictionaryArray.from_arrays(words.indices.take(at), words.dictionary))
        else:
            arrays.append(values.take(at))
    return arrays
