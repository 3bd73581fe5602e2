"""A headless Chromium for tests, which connects only to hosts that its pages name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver

from tests.tools import tool

WAIT = 60  # seconds, for a page


@contextmanager
def chromium(profile: Path, *arguments: str, **capabilities: Any) -> Iterator[webdriver.Chrome]:
    """Starts a browser with a profile of its own, further arguments, and capabilities."""
    options = webdriver.ChromeOptions()
    options.binary_location = tool("chromium")
    for name, value in capabilities.items():
        options.set_capability(name, value)
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--no-proxy-server",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        *arguments,
    ):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(tool("chromedriver")))
    try:
        browser.set_page_load_timeout(WAIT)
        yield browser
    finally:
        browser.quit()
