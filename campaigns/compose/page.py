"""The run page in Chromium, which stays open during all faults as it would for a user."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.support.browser import CHROMIUM_FLAGS, CHROMIUM_NAMES

PAGE_TIMEOUT = 60_000.0  # milliseconds
LAST_STEP = """step => {
  const graph = document.querySelector('#loss-box .js-plotly-plot');
  return graph && graph._fullData.some(trace => Array.from(trace.x || []).some(x => x >= step));
}"""


class RunPage:
    """An open run page."""

    def __init__(self, page: Page) -> None:
        """Use ``page`` of a browser."""
        self._page = page

    def open(self, login_url: str, run_id: str) -> None:
        """Log in with the address that the stack printed, and open the page of the run."""
        self._page.goto(login_url)
        self._page.goto(f"{login_url.partition('/?')[0]}/runs/{run_id}")
        self._page.wait_for_selector("#loss-box .js-plotly-plot")

    def wait_for_step(self, step: int) -> None:
        """Wait until the page, without a reload, draws ``step``."""
        self._page.wait_for_function(LAST_STEP, arg=step)

    def wait_for_prediction(self) -> str:
        """Wait for the predicted spike on the page and return its text."""
        line = self._page.locator("#alert-column").get_by_text("Spike predicted at step").first
        line.wait_for()
        return line.locator("xpath=..").inner_text().replace("\n", " · ")

    def take_screenshot(self, path: Path) -> None:
        """Save a screenshot of the page."""
        self._page.screenshot(path=str(path))


@contextlib.contextmanager
def run_page() -> Iterator[RunPage]:
    """Open a browser for a run page. Raises `FileNotFoundError` if Chromium is not installed."""
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        raise FileNotFoundError("Chromium is not on PATH: install the package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(CHROMIUM_FLAGS))
        page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="dark")
        page.set_default_timeout(PAGE_TIMEOUT)
        try:
            yield RunPage(page)
        finally:
            browser.close()
