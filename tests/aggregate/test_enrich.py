"""Derived columns: correct for known values, and never an error for any value."""

import base64
import hashlib
import sys
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from kanalony.aggregate.columns import SCHEMA as COLUMNS
from kanalony.aggregate.enrich import (
    SCHEMA,
    Agent,
    Enricher,
    Page,
    Place,
    Session,
    open_geoip,
    read_agent,
    read_ks,
    read_place,
    read_referrer,
    read_secrets,
)
from kanalony.errors import UsageError

SECRETS = {585231: "0123456789abcdef0123456789abcdef"}
URL = "https://News.example:8080/Path/a?x=1#f"
PAGE = Page("news.example", "news.example:8080/path/a")


@pytest.mark.parametrize(
    ("user_agent", "expected"),
    [
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Version/17.5 Mobile/15E148 "
            "Safari/604.1",
            Agent("Mobile Safari", "iOS", "iPhone", None),
        ),
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/126.0.0.0 Safari/537.36",
            Agent("Chrome", "Windows", "Desktop", None),
        ),
        (
            "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
            Agent("Googlebot", None, "Spider", "crawler: Googlebot"),
        ),
        ("curl/7.88.1", Agent("curl", None, None, "tool: curl")),
        ("python-requests/2.32", Agent("Python Requests", None, None, "tool: python-requests")),
        ("", Agent(None, None, None, "no user agent")),
        (None, Agent(None, None, None, "no user agent")),
        ("\x00 nonsense", Agent(None, None, None, None)),
    ],
)
def test_user_agents(user_agent: str | None, expected: Agent) -> None:
    assert read_agent(user_agent) == expected


def test_a_headless_browser_is_a_bot() -> None:
    agent = read_agent("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 HeadlessChrome/120.0.0.0 Safari/537.36")
    assert (agent.operating_system, agent.bot_reason) == ("Linux", "headless browser")


APPS_AND_BROWSERS = [
    "okhttp/4.12.0",
    "Example/7.1 (Android 14; Pixel 8) okhttp/5.0.0-alpha.14",
    "Dalvik/2.1.0 (Linux; U; Android 13; SM-A536B Build/TP1A.220624.014)",
    "Apache-HttpClient/UNAVAILABLE (java 1.4)",
    "MyTV/5.3.1 CFNetwork/1410.0.3 Darwin/22.6.0",
    "Example/3.2 (com.example.app; build:17; iOS 17.5.1) Alamofire/5.9.1",
    "ExoPlayerDemo/2.18.1 (Linux;Android 12) ExoPlayerLib/2.18.1",
    "Example/1.4 (Linux;Android 14) AndroidXMedia3/1.3.1",
    "stagefright/1.2 (Linux;Android 7.1.1)",
    "Dart/3.4 (dart:io)",
    "AppleCoreMedia/1.0.0.21F79 (iPhone; U; CPU OS 17_5 like Mac OS X; en_us)",
    "AppleCoreMedia/1.0.0.21L6040 (Apple TV; U; CPU OS 17_6 like Mac OS X; en_us)",
    "AppleTV14,1/17.6 (21M71)",
    "Roku/DVP-12.0 (12.0.0.4182-88)",
    "Mozilla/5.0 (SMART-TV; LINUX; Tizen 6.5) AppleWebKit/537.36 (KHTML, like Gecko) 85.0.4183.93/6.5 TV Safari/537.36",
    "Mozilla/5.0 (Web0S; Linux/SmartTV) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/87.0.4280.88 Safari/537.36",
    "Mozilla/5.0 (PlayStation; PlayStation 5/8.20) AppleWebKit/605.1.15 Version/15.4 Safari/605.1.15",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; Xbox; Xbox Series X) AppleWebKit/537.36 Chrome/125.0.0.0 Edg/125.0.0.0",
    "Mozilla/5.0 (X11; Linux armv7l) AppleWebKit/537.36 Chrome/90.0 Safari/537.36 CrKey/1.56.500000",
    "Mozilla/5.0 (Linux; Android 9; AFTKA Build/PS7633) Version/4.0 Chrome/98.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Linux; armv7l) Chrome/79.0 Safari/537.36 HbbTV/1.5.1 (+DRM; Hisense; SmartTV_2020)",
    "Kodi/20.2 (Linux; Android 11.0; Chromecast Build/STTL.240206.002) Android/11.0.0 Sys_CPU/armv8l Version/20.2",
    "VLC/3.0.20 LibVLC/3.0.20",
    "Lavf/60.16.100",
    "NSPlayer/12.00.19041.3636 WMFSDK/12.00.19041.3636",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 Example/2.1.0 Chrome/120.0 Electron/28.3.1",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 [FBAN/FBIOS;FBAV/465.0]",
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/126.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Linux; Android 12; CUBOT X70 Build/SP1A) AppleWebKit/537.36 Chrome/120.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Linux; U; Android 15; zh-CN; PKH120 Build/AP3A.240617.008) AppleWebKit/537.36 UCBrowser/17.1.8.1371",
    "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/17.5 Safari/605.1.15",
]

BOTS = {
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)": "crawler: Googlebot",
    "Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X Build/MMB29P) AppleWebKit/537.36 Chrome/125.0 Mobile Safari/537.36 "
    "(compatible; Googlebot/2.1; +http://www.google.com/bot.html)": "crawler: Googlebot",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)": "crawler: bingbot",
    "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)": "crawler: AhrefsBot",
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko); compatible; GPTBot/1.1; +https://openai.com/gptbot": (
        "crawler: GPTBot"
    ),
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; ClaudeBot/1.0)": "crawler: ClaudeBot",
    "Mozilla/5.0 (compatible; Bytespider; spider-feedback@bytedance.com)": "crawler: Bytespider",
    "Sogou web spider/4.0(+http://www.sogou.com/docs/help/webmasters.htm#07)": "crawler: Sogou web spider",
    "Pingdom.com_bot_version_1.4_(http://www.pingdom.com/)": "crawler: PingdomBot",
    "Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)": "crawler: UptimeRobot",
    "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)": "crawler: FacebookBot",
    "Mozilla/5.0 (Unknown; Linux x86_64) AppleWebKit/538.1 (KHTML, like Gecko) PhantomJS/2.1.1": "crawler: PhantomJS",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 HeadlessChrome/120.0 Safari/537.36": "headless browser",
    "curl/8.9.1": "tool: curl",
    "Wget/1.21.3": "tool: Wget",
    "python-httpx/0.27.0": "tool: httpx",
    "Go-http-client/2.0": "tool: Go-http-client",
    "axios/1.7.2": "tool: axios",
}


@pytest.mark.parametrize("user_agent", APPS_AND_BROWSERS)
def test_no_app_or_browser_is_a_bot(user_agent: str) -> None:
    assert read_agent(user_agent).bot_reason is None


@pytest.mark.parametrize(("user_agent", "reason"), BOTS.items(), ids=BOTS.values())
def test_every_bot_is_one_and_the_reason_is_kept(user_agent: str, reason: str) -> None:
    assert read_agent(user_agent).bot_reason == reason


@pytest.mark.parametrize(
    ("referrer", "page"),
    [
        (URL, PAGE),
        (quote(URL, safe=""), PAGE),
        (quote(quote(URL, safe=""), safe=""), PAGE),
        (base64.b64encode(URL.encode()).decode(), PAGE),
        (base64.urlsafe_b64encode(URL.encode()).decode().rstrip("="), PAGE),
        (f" {URL} ", PAGE),
        ("//news.example:8080/Path/a", PAGE),
        ("news.example:8080/path/a", PAGE),
        ("http://a.example", Page("a.example", "a.example/")),
        ("http://user:password@a.example/x", Page("a.example", "a.example/x")),
        ("http://[2001:DB8::1]:81/x", Page("2001:db8::1", "[2001:db8::1]:81/x")),
        ("https://news.example.org/élections/", Page("news.example.org", "news.example.org/élections/")),
        ("android-app://com.example.app/", Page("com.example.app", "com.example.app/")),
        ("null", Page(None, None)),
        ("", Page(None, None)),
        (None, Page(None, None)),
        ("file:///home/x", Page(None, None)),
        ("nonsense", Page(None, None)),
        ("http://[::1", Page(None, None)),
        ("http://a:port/", Page(None, None)),
        (f"http://{'a' * 250}.example/", Page(None, None)),  # longer than a name can be
        ("aHR0c///", Page(None, None)),
    ],
)
def test_referrers_in_the_forms_that_occur(referrer: str | None, page: Page) -> None:
    assert read_referrer(referrer) == page


def ks_1(info: str, secret: str = SECRETS[585231]) -> str:
    signature = hashlib.sha1(secret.encode() + info.encode()).hexdigest()
    return base64.b64encode(f"{signature}|{info}".encode()).decode()


def ks_2(content: str, partner: int = 585231, secret: str = SECRETS[585231]) -> str:
    plain = bytes(16) + hashlib.sha1(content.encode()).digest() + content.encode()
    plain += bytes(-len(plain) % 16)
    key = hashlib.sha1(secret.encode()).digest()[:16]
    encryptor = Cipher(algorithms.AES(key), modes.CBC(bytes(16))).encryptor()
    ciphertext = encryptor.update(plain) + encryptor.finalize()
    return base64.urlsafe_b64encode(b"v2|%d|" % partner + ciphertext).decode()


INFO = "585231;585231;1735160676;0;1435074276.7619;jane@example.com;view:*,widget:1;;"


@pytest.mark.parametrize(
    ("ks", "session"),
    [
        (ks_1(INFO), Session(585231, "jane@example.com")),
        (ks_1(INFO).rstrip("="), Session(585231, "jane@example.com")),
        (ks_1(INFO, "another secret"), Session(585231, None)),
        (ks_1(INFO.replace("585231", "7")), Session(7, None)),  # in clear, but there is no secret to check it with
        (ks_1("585231;585231;1;0;1.1;;"), Session(585231, None)),
        (ks_1(INFO.replace("jane@example.com", "0")), Session(585231, None)),  # a widget's anonymous viewer
        (ks_1(INFO.replace("jane@example.com", "00")), Session(585231, "00")),
        (ks_2("_e=1735160676&_t=0&_u=0"), Session(585231, None)),
        (ks_1("585231"), Session(585231, None)),
        (ks_2("_e=1735160676&_t=0&_u=jane%40example.com&view=*"), Session(585231, "jane@example.com")),
        (ks_2("_e=1735160676&_t=0"), Session(585231, None)),
        (ks_2("_u=jane", secret="another secret"), Session(585231, None)),
        (ks_2("_u=jane", partner=7), Session(7, None)),
        (base64.b64encode(b"v2|585231|short").decode(), Session(585231, None)),
        (base64.b64encode(b"v2|x|").decode(), Session(None, None)),
        (base64.b64encode(b"no session").decode(), Session(None, None)),
        ("redacted", Session(None, None)),
        ("é!", Session(None, None)),
        ("", Session(None, None)),
        (None, Session(None, None)),
    ],
)
def test_sessions_of_both_versions(ks: str | None, session: Session) -> None:
    assert read_ks(ks, SECRETS) == session


def test_without_any_secrets_a_session_in_clear_is_read_as_it_stands() -> None:
    assert read_ks(ks_1(INFO, "whatever"), None) == Session(585231, "jane@example.com")
    assert read_ks(ks_2("_u=jane"), None) == Session(585231, None)


def test_flat_databases_of_places_are_read_as_well(tmp_path: Path) -> None:
    writer = MMDBWriter()
    writer.insert_network(IPSet(["203.0.113.0/24"]), {"country": "Germany", "region": "Berlin", "city": "Berlin"})
    writer.insert_network(IPSet(["198.51.100.0/24"]), {"country": 7, "city": ["x"], "subdivisions": []})
    writer.to_db_file(str(tmp_path / "flat.mmdb"))
    with open_geoip(tmp_path / "flat.mmdb") as reader:
        assert read_place("203.0.113.9", reader) == Place("Germany", "Berlin", "Berlin")
        assert read_place("198.51.100.9", reader) == Place(None, None, None)


def test_the_lookup_cache_is_bounded() -> None:
    cache = Enricher(None, None)._referrer
    for number in range(100_000):
        cache[f"http://{number}.example/{'é' * (number % 400)}"]
        if number % 1000 == 0:
            assert sum(sys.getsizeof(text) for item in cache.items() for text in (item[0], *item[1])) < 8 << 20
    assert "http://99999.example/" + "é" * 399 in cache
    cache["x" * 10_000]
    assert "x" * 10_000 not in cache


@pytest.mark.parametrize("name", ["userAgent", "referrer", "ks"])
def test_a_value_longer_than_any_browser_sends_is_not_read_and_costs_no_other(name: str) -> None:
    readable = {"userAgent": "curl/7.88.1", "referrer": URL, "ks": ks_1(INFO)}[name]
    values = [readable, readable + "/" * (16 << 10), None, readable]
    columns = [pa.array(values if field.name == name else [None] * 4, field.type) for field in COLUMNS]
    first, long, unknown, last = Enricher(SECRETS, None).add(pa.table(columns, schema=COLUMNS)).to_pylist()
    assert long[name] == values[1]
    read = {"userAgent": "browser", "referrer": "referrerPage", "ks": "ksUserId"}[name]
    assert [bool(row[read]) for row in (first, long, unknown, last)] == [True, False, False, True]
    if name == "userAgent":
        assert [row["botReason"] for row in (long, unknown)] == [None, "no user agent"]


def test_more_distinct_values_than_are_looked_up_at_once_keep_their_rows() -> None:
    values = [f"http://{number % 1700}.example/" for number in range(5000)]
    columns = [pa.array(values if field.name == "referrer" else [None] * 5000, field.type) for field in COLUMNS]
    enriched = Enricher(None, None).add(pa.table(columns, schema=COLUMNS))
    assert enriched["syndicationDomain"].to_pylist() == [f"{number % 1700}.example" for number in range(5000)]


@given(st.text() | st.binary().map(lambda data: base64.b64encode(data).decode()))
def test_nothing_that_can_be_sent_is_an_error(text: str) -> None:
    read_agent(text)
    read_referrer(text)
    read_ks(text, SECRETS)
    read_ks(base64.b64encode(b"v2|585231|" + text.encode("utf-8", "replace")).decode(), SECRETS)


def test_secrets_come_from_a_file_and_are_never_printed(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text("# partners\n585231 abc # ours\n\n7\tdef\n")
    assert read_secrets(path) == {585231: "abc", 7: "def"}
    for text in ("585231\n", "x abc\n", "1 two words\n"):
        path.write_text(f"7 def\n{text}")
        with pytest.raises(UsageError, match="line 2") as caught:
            read_secrets(path)
        assert "abc" not in str(caught.value)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, languages=["en"])
    place = {
        "country": {"iso_code": "FR", "names": {"en": "France", "fr": "France"}},
        "subdivisions": [{"iso_code": "IDF", "names": {"en": "Île-de-France"}}],
        "city": {"names": {"en": "Paris"}},
    }
    writer.insert_network(IPSet([str(ip_network("203.0.113.0/24"))]), place)
    writer.insert_network(IPSet(["2001:db8::/32"]), {"country": {"iso_code": "XK"}})
    writer.to_db_file(str(tmp_path / "places.mmdb"))
    return tmp_path / "places.mmdb"


def test_places_of_addresses(database: Path) -> None:
    with open_geoip(database) as reader:
        assert read_place("203.0.113.0", reader) == Place("France", "Île-de-France", "Paris")  # as truncated ones are
        assert read_place("2001:db8::1", reader) == Place("XK", None, None)
        for address in ("192.0.2.1", "", None, "nowhere"):
            assert read_place(address, reader) == Place(None, None, None)


def test_columns_are_added_for_every_event_and_unknown_is_null(database: Path) -> None:
    values = {
        "userAgent": ["curl/7.88.1", None, "curl/7.88.1"],
        "referrer": [None, "null", URL],
        "ks": [ks_1(INFO), None, "x"],
        "remoteAddr": [None, "203.0.113.9", "192.0.2.1"],
    }
    columns = [pa.array(values.get(field.name, [None] * 3), field.type) for field in COLUMNS]
    with open_geoip(database) as reader:
        enriched = Enricher(SECRETS, reader).add(pa.table(columns, schema=COLUMNS))
    assert enriched.schema.names == [*COLUMNS.names, *SCHEMA.names]
    first, second, third = enriched.select(SCHEMA.names).to_pylist()
    unknown = dict.fromkeys(SCHEMA.names)
    bot = {"browser": "curl", "isBot": True, "botReason": "tool: curl"}
    page = {"syndicationDomain": PAGE.domain, "referrerPage": PAGE.url}
    assert first == unknown | bot | {"ksPartnerId": 585231, "ksUserId": "jane@example.com"}
    place = {"country": "France", "region": "Île-de-France", "city": "Paris"}
    assert second == unknown | {"isBot": True, "botReason": "no user agent"} | place
    assert third == unknown | bot | page
    plain = Enricher({}, None).add(pa.table(columns, schema=COLUMNS)).to_pylist()
    assert [row["country"] for row in plain] == [None] * 3


def test_a_file_that_is_no_database_of_places_is_named_in_plain_text(tmp_path: Path) -> None:
    alien = tmp_path / "alien.mmdb"
    alien.write_bytes(b"nothing" * 100)
    for path, problem in ((alien, "is not a MaxMind database"), (tmp_path / "none", "No such file or directory")):
        with pytest.raises(UsageError) as caught:
            open_geoip(path)
        assert str(caught.value).startswith(f"{path} ")
        assert problem in str(caught.value)
        assert "b'" not in str(caught.value)
