"""The browser of the end-to-end tests, and a page that is logged in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.support.browser import browser, context
from tests.support.embedded import Embedded

__all__ = ["browser", "context", "page"]


@pytest.fixture
def page(server: Embedded, context: BrowserContext) -> Iterator[Page]:
    """Yield a page that is logged in to the module's `server`, and fail its test on an error in the console."""
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{server.url}/?token={server.token}")
    yield page
    assert [text for text in wrong if not text.startswith("SET_PROPS: Component")] == []
