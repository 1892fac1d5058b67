"""A real Chromium on PATH. Without one, the tests that need it are skipped with a message, and fail in CI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

PATIENCE = 45_000
"""Milliseconds for which a test waits for a page. The browser's first start of Plotly takes many on a busy machine."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Yield a browser for one module.

    It cannot last for the session, because no async test can start an event loop while Playwright runs in its thread.
    """
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        words = "no Chromium on PATH: the browser tests cannot run; install the package chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(words)
        pytest.skip(f"!!! {words} !!!")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Yield a new profile of the browser."""
    # Playwright evaluates strings to wait for conditions, which the pages' policy forbids.
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="dark", bypass_csp=True)
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    yield context
    context.close()
