"""A real browser in front of the console: a Chromium of this machine, headless, driven by Playwright.

Whatever it would do besides showing our pages is switched off. Knows nothing of the console but how one logs in.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browsing import PASSWORD

FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "no browser is installed, so nothing was proved about the pages in one: `apt-get install chromium`"
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)
PATIENCE = 20_000.0
"""Milliseconds for what takes a few, on a machine that has something else to do."""

Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}


@contextmanager
def chromium() -> Iterator[Browser]:
    """One browser; what it opens is closed with it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=FOUND, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visitor(browser: Browser, url: str, **settings: Any) -> Iterator[Page]:
    """Somebody with a browser of their own, in front of the console at that address, who has not logged in."""
    wanted = {"viewport": DESKTOP, "reduced_motion": "reduce", "locale": "en-GB", **settings}
    context = browser.new_context(base_url=url, **wanted)
    context.set_default_timeout(PATIENCE)
    try:
        yield context.new_page()
    finally:
        context.close()


def log_in(page: Page) -> None:
    """With the password of `tests.browsing`."""
    page.goto("/login")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/")
