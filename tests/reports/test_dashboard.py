"""Chromium opens the dashboard: its numbers equal those of `kanalony report`, its controls work, and it calls no other
server.
"""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from kanalony.cli import main
from kanalony.segments.directory import DataDirectory
from tests.aggregate.lakes import seal
from tests.collector.chromium import WAIT, chromium
from tests.reports.asking import event, store
from tests.reports.conftest import dashboard

TILES = ("play", "minutesWatched", "peakView", "playRatio", "uniqueSessions")
QUALITY = ("averageJoinTime", "joinTimeP95", "rebufferRatio", "averageActualBitrate", "errorRate", "lossRate")
FUNNEL = ("playerImpression", "play", *(f"playThrough{share}" for share in (25, 50, 75, 90, 100)))

_T = TypeVar("_T")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    logging = {"goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
    with chromium(tmp_path_factory.mktemp("profile"), "--window-size=1440,1600", **logging) as browser:
        yield browser


def wait_for(condition: Callable[[], _T]) -> _T:
    end = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return found


def state(browser: webdriver.Chrome) -> str:
    return str(browser.execute_script("return document.body.dataset.state"))


def opened(browser: webdriver.Chrome, address: str, expected: str = "ready") -> None:
    """Opens the page from a blank one, whatever it showed."""
    browser.get("about:blank")
    browser.get(address)
    wait_for(lambda: state(browser) == expected)


def changed(browser: webdriver.Chrome, change: Callable[[], object], expected: str = "ready") -> None:
    """Changes a filter, and waits for the numbers."""
    browser.execute_script("document.body.dataset.state = 'before'")
    change()
    wait_for(lambda: state(browser) == expected)


def value_of(browser: webdriver.Chrome, selector: str) -> float | None:
    text = browser.find_element(By.CSS_SELECTOR, selector).get_attribute("data-value")
    return float(text) if text else None


def metric(browser: webdriver.Chrome, name: str) -> float | None:
    return value_of(browser, f'.value[data-metric="{name}"]')


def report(lake: DataDirectory, metrics: tuple[str, ...], *arguments: str) -> list[dict[str, Any]]:
    """Returns the command's rows for the last day, the period of the page."""
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=24)
    command = ["report", "--data", str(lake.root), "--format", "json", "--from", start.isoformat()]
    done = CliRunner().invoke(main, [*command, "--metrics", ",".join(metrics), *arguments])
    assert done.exit_code == 0, done.output
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


def assert_same(browser: webdriver.Chrome, lake: DataDirectory, *filters: str) -> None:
    """Asserts that the numbers on the page are those of `kanalony report`."""
    (expected,) = report(lake, (*TILES, *QUALITY), *filters)
    assert {name: metric(browser, name) for name in expected} == pytest.approx(expected, abs=0)
    (funnel,) = report(lake, FUNNEL, *filters)
    found = {name: value_of(browser, f'#funnel li[data-metric="{name}"]') for name in FUNNEL}
    assert found == funnel
    for dimension in ("country", "device", "browser"):
        for row in report(lake, ("play",), "--dimensions", dimension, *filters):
            selector = f'li[data-dimension="{dimension}"][data-name="{row[dimension]}"]'
            assert value_of(browser, selector) == row["play"]


def test_the_numbers_are_those_of_the_report(browser: webdriver.Chrome, address: str, lake: DataDirectory) -> None:
    opened(browser, address)
    assert_same(browser, lake)
    rows = browser.find_elements(By.CSS_SELECTOR, "#top-rows tr[data-entry]")
    expected = report(lake, ("play",), "--dimensions", "entry", "--limit", "10")
    assert [row.get_attribute("data-entry") for row in rows] == [row["entry"] for row in expected]
    assert [row.find_element(By.CSS_SELECTOR, '[data-column="play"]').text for row in rows] == [
        str(row["play"]) for row in expected
    ]


def test_filters_change_the_numbers(browser: webdriver.Chrome, address: str, lake: DataDirectory) -> None:
    opened(browser, address)
    partner = Select(browser.find_element(By.ID, "partner"))
    changed(browser, lambda: partner.select_by_value("2"))
    assert_same(browser, lake, "--filter", "partner=2")
    button = browser.find_element(By.CSS_SELECTOR, '#top-rows tr[data-entry="1_0"] button')
    changed(browser, lambda: button.send_keys(Keys.ENTER))  # by keyboard
    assert_same(browser, lake, "--filter", "partner=2", "--filter", "entry=1_0")
    assert "entry=1_0" in browser.current_url
    changed(browser, browser.refresh)
    assert_same(browser, lake, "--filter", "partner=2", "--filter", "entry=1_0")


def test_a_period_without_events_is_reported(browser: webdriver.Chrome, address: str) -> None:
    opened(browser, f"{address}/#period=custom&from=2020-01-01T00:00&to=2020-01-02T00:00", "empty")
    assert "No events" in browser.find_element(By.ID, "empty").text


def text_of(browser: webdriver.Chrome, name: str) -> str:
    return str(browser.find_element(By.ID, name).text)


COMPACT = "to be compacted: keep “kanalony compact --every 60s” running"


def test_without_events_the_page_shows_whether_any_wait_to_be_compacted(
    browser: webdriver.Chrome, data: DataDirectory
) -> None:
    with dashboard(data.root) as address:
        opened(browser, address, "empty")
        assert "Nothing has arrived yet." in text_of(browser, "empty")
    now = time.time_ns() // 1000
    seal(data, [[event(now - number, 3, eventIndex=number) for number in range(1, 1201)]])
    with dashboard(data.root) as address:
        opened(browser, address, "empty")
        shown = text_of(browser, "empty")
        assert "Events have arrived and are stored." in shown
        assert f"1,200 requests wait {COMPACT}" in shown
        assert "Nothing has arrived" not in shown
        store(data)
        changed(browser, browser.refresh)
        assert metric(browser, "play") == 1200
        assert not browser.find_element(By.ID, "notice").is_displayed()


def test_old_numbers_come_with_the_count_of_waiting_requests(browser: webdriver.Chrome, data: DataDirectory) -> None:
    hour_ago = time.time_ns() // 1000 - 3_600_000_000
    store(data, event(hour_ago, 3))
    seal(data, [[event(hour_ago, 3), event(hour_ago, 3)]])
    with dashboard(data.root) as address:
        opened(browser, address)
        assert metric(browser, "play") == 1
        assert text_of(browser, "notice").startswith(f"2 requests wait {COMPACT}")
        changed(browser, lambda: browser.execute_script("location.hash = '#period=24h&entry=none'"), "empty")
        assert "No events match entry none." in text_of(browser, "empty")
        assert f"2 requests wait {COMPACT}" in text_of(browser, "empty")


def test_a_partner_without_events_learns_nothing_about_others(browser: webdriver.Chrome, data: DataDirectory) -> None:
    now = time.time_ns() // 1000
    store(data, event(now, 3, partnerId=2))
    seal(data, [[event(now, 3, partnerId=2)]])
    with dashboard(data.root, "--api-key", "1=the-first-key") as address:
        opened(browser, address, "error")
        field = browser.find_element(By.ID, "key")
        changed(browser, lambda: field.send_keys("the-first-key", Keys.ENTER), "empty")
        assert text_of(browser, "empty") == "No events yet\nNone of your events have been compacted yet."


@pytest.mark.parametrize("period", ["__proto__", "constructor", "toString", "nonsense"])
def test_an_invalid_period_is_replaced_by_the_default(browser: webdriver.Chrome, address: str, period: str) -> None:
    opened(browser, f"{address}/#period={period}")
    assert Select(browser.find_element(By.ID, "period")).first_selected_option.text == "Last 24 hours"
    assert "Invalid" not in text_of(browser, "scope")


def test_names_that_players_send_are_shown_as_text_only(browser: webdriver.Chrome, address: str) -> None:
    opened(browser, address)
    entries = [row.get_attribute("data-entry") for row in browser.find_elements(By.CSS_SELECTOR, "tr[data-entry]")]
    shown = browser.find_element(By.ID, "top-rows").text
    if "<b>&amp;'\"</b>" in entries:
        assert "<b>&amp;'\"</b>" in shown
    changed(
        browser, lambda: browser.execute_script("location.hash = '#period=24h&entry=%3Cb%3E%26amp%3B%27%22%3C%2Fb%3E'")
    )
    assert metric(browser, "play") == 1
    assert browser.find_elements(By.CSS_SELECTOR, "main b b, tr b") == []


def test_no_request_leaves_the_machine_and_no_error_is_logged(browser: webdriver.Chrome, address: str) -> None:
    def logged(kind: str) -> list[dict[str, Any]]:
        return list(browser.get_log(kind))  # type: ignore[no-untyped-call]

    logged("performance")
    logged("browser")
    opened(browser, address)
    messages = [json.loads(entry["message"])["message"] for entry in logged("performance")]
    urls = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert len(urls) > 10
    assert [url for url in urls if not url.startswith((address, "data:", "about:"))] == []
    assert [entry for entry in logged("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(browser: webdriver.Chrome, address: str, scheme: str) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        opened(browser, address)
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in background.strip("rgba()").split(",")[:3])
        assert (brightness > 380) is (scheme == "light")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.slow
def test_the_page_refreshes_by_itself_and_survives_its_server(
    browser: webdriver.Chrome, lake: DataDirectory, tmp_path: Path
) -> None:
    with dashboard(lake.root) as address:
        opened(browser, f"{address}/#period=1h")
        first = browser.find_element(By.ID, "updated").text
        wait_for(lambda: browser.find_element(By.ID, "updated").text not in ("", first))
        before = metric(browser, "play")
    wait_for(lambda: browser.find_element(By.ID, "notice").is_displayed())
    assert metric(browser, "play") == before, "the last numbers stay"


def test_a_key_is_asked_for_and_kept_for_the_session(browser: webdriver.Chrome, lake: DataDirectory) -> None:
    with dashboard(lake.root, "--api-key", "1=the-first-key") as address:
        opened(browser, address, "error")
        field = browser.find_element(By.ID, "key")
        field.send_keys("wrong", Keys.ENTER)
        wait_for(lambda: browser.find_element(By.ID, "key-problem").text)
        field.clear()
        changed(browser, lambda: field.send_keys("the-first-key", Keys.ENTER))
        assert_same(browser, lake, "--filter", "partner=1")
        changed(browser, browser.refresh)
        assert_same(browser, lake, "--filter", "partner=1")
