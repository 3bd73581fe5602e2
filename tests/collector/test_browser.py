"""A real browser on pages of another origin: players work unmodified, and their parameters are read as sent."""

import functools
import http.server
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xstatic.pkg.jquery
from selenium import webdriver
from selenium.webdriver.support.expected_conditions import alert_is_present
from selenium.webdriver.support.wait import WebDriverWait

from harness.load import cat
from harness.server import Server, serving
from tests.collector.chromium import WAIT, chromium
from tests.files import COLLECT_QUERY

PAGES = Path(__file__).parent / "pages"

# What pages/player.html sends.
VALUES = {
    "scripts": "日本語 Ελληνικά עברית العربية",
    "signs": "a&b=c%d+e f#g?h/i;j,k",
    "escapes": "100%25 %41 %zz",
    "emoji": "👩\u200d🚀🏳️\u200d🌈 𝄞",
    "quotes": "\"'\\ \n\t",
    "empty": "",
}


class PageHandler(http.server.SimpleHTTPRequestHandler):
    """Serves pages. Those under /isolated/ have the headers of a page that isolates itself."""

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.removeprefix("/isolated"))

    def end_headers(self) -> None:
        if self.path.startswith("/isolated/"):
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serves the pages, and returns the address of the site."""
    directory = tmp_path_factory.mktemp("pages") / "site"
    shutil.copytree(PAGES, directory)
    shutil.copy(Path(xstatic.pkg.jquery.BASE_DIR) / "jquery.js", directory)
    handler = functools.partial(PageHandler, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{site.server_port}"
        site.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("browser") / "data") as server:
        yield server


@pytest.fixture(scope="module")
def browser(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Starts Chromium, which resolves the host name of the examples to the collector."""
    rules = f"--host-resolver-rules=MAP tbd.kaltura.com:80 {server.host}:{server.port}"
    with chromium(tmp_path_factory.mktemp("profile"), rules) as browser:
        yield browser


def events_with(server: Server, part: str, count: int = 1) -> list[dict[str, Any]]:
    """Returns the events with this part in their query, as soon as there are `count`."""

    def found() -> list[dict[str, Any]] | None:
        events = [event for event in cat(server.data) if part in event["query"]]
        return events if len(events) >= count else None

    events: list[dict[str, Any]] = server.wait_for(found)
    assert len(events) == count
    return events


def call(browser: webdriver.Chrome, page: str, script: str) -> str:
    """Opens a page, runs one of its functions, and returns the outcome."""
    browser.get(page)
    browser.execute_script(script)
    WebDriverWait(browser, WAIT).until(lambda driver: driver.title != "waiting")
    return browser.title


def assert_is_the_time(text: str) -> None:
    assert abs(int(text) - time.time()) < 60


def test_the_examples_of_the_api_run_unmodified(server: Server, browser: webdriver.Chrome, pages: str) -> None:
    for number, page in enumerate(["xhr.html", "jquery.html"], 1):
        browser.get(f"{pages}/{page}")
        alert = WebDriverWait(browser, WAIT).until(alert_is_present())
        assert alert
        if page == "xhr.html":
            assert_is_the_time(alert.text)
        else:
            assert alert.text == "tracked!"
        alert.accept()
        event = events_with(server, COLLECT_QUERY.decode(), number)[-1]
        assert event["query"] == COLLECT_QUERY.decode()
        assert event["referer"].startswith(pages)
        assert "Chrome" in event["user_agent"]


def test_jquery_hands_the_number_to_its_caller(server: Server, browser: webdriver.Chrome, pages: str) -> None:
    browser.get(f"{pages}/jquery.html")
    WebDriverWait(browser, WAIT).until(alert_is_present()).accept()
    url = "http://tbd.kaltura.com/collect?key=number"
    browser.execute_script(f"$.ajax({{url: '{url}', context: document.body, success: (text) => alert(text)}})")
    alert = WebDriverWait(browser, WAIT).until(alert_is_present())
    assert_is_the_time(alert.text)
    alert.accept()
    events_with(server, "key=number")


@pytest.mark.parametrize("function", ["get", "post", "postWithCookies", "form", "compressed"])
def test_parameters_sent_with_fetch_are_read_as_they_were_sent(
    server: Server, browser: webdriver.Chrome, pages: str, function: str
) -> None:
    assert_is_the_time(call(browser, f"{pages}/player.html", f"{function}('{function}')"))
    (event,) = events_with(server, f"key={function}")
    assert event["method"] == ("GET" if function == "get" else "POST")
    assert {name: event["params"][name] for name in VALUES} == VALUES


def test_a_batch_of_100_arrives_as_100_events(server: Server, browser: webdriver.Chrome, pages: str) -> None:
    assert_is_the_time(call(browser, f"{pages}/player.html", "post('batch', 100)"))
    events = events_with(server, "key=batch", 100)
    assert [event["params"]["eventIndex"] for event in events] == [str(number) for number in range(1, 101)]
    for event in events:
        assert {name: event["params"][name] for name in VALUES} == VALUES
        assert event["params"]["eventType"] == "3"


def test_a_page_reads_the_json_answer(server: Server, browser: webdriver.Chrome, pages: str) -> None:
    answered, enabled = call(browser, f"{pages}/player.html", "getJson('json')").split()
    assert_is_the_time(answered)
    assert enabled == "true"


@pytest.mark.parametrize("site", ["", "/isolated"])
def test_an_image_arrives_and_loads_even_where_a_page_isolates_itself(
    server: Server, browser: webdriver.Chrome, pages: str, site: str
) -> None:
    key = "pixel" + site.strip("/")
    assert call(browser, f"{pages}{site}/player.html", f"pixel('{key}')") == "1x1"
    assert browser.execute_script("return crossOriginIsolated") == bool(site)
    (event,) = events_with(server, f"key={key}&")
    assert {name: event["params"][name] for name in VALUES} == VALUES


def test_beacons_of_a_page_that_goes_away_arrive(server: Server, browser: webdriver.Chrome, pages: str) -> None:
    assert call(browser, f"{pages}/player.html", "beaconOnUnload('beacon')") == "ready"
    browser.get("about:blank")
    for kind in ("text", "form", "json"):
        (event,) = events_with(server, f"key=beacon-{kind}")
        assert event["method"] == "POST"
        assert {name: event["params"][name] for name in VALUES} == VALUES
