"""The fixture server of the dashboard's tests, and a page that records its errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect

from tests.dashboard.fixture_api import FixtureApi, example_runs, serve
from tests.support.browser import PATIENCE, browser

__all__ = ["api", "browser", "context", "served", "url", "visit", "warm_context"]


@dataclass
class Visit:
    """One page of a browser, with its errors and the hosts that it contacted."""

    page: Page
    url: str
    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def record_message(self, message: ConsoleMessage) -> None:
        # Dash warns about a frame that arrives after its page was left, which is expected.
        is_late = message.text.startswith("SET_PROPS: Component")
        if message.type in ("error", "warning") and not is_late:
            self.errors.append(f"{message.type}: {message.text}")

    def record_request(self, request: Request) -> None:
        host = urlsplit(request.url).netloc
        if host:
            self.hosts.add(host)


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[FixtureApi, str]]:
    """Serve one fixture API for all tests."""
    api = FixtureApi([])
    with serve(api) as address:
        yield api, address


@pytest.fixture
def api(served: tuple[FixtureApi, str]) -> FixtureApi:
    """Return the fixture API with its example runs in their initial state."""
    api, _ = served
    runs = example_runs()
    api.call(lambda: api.reset(runs))
    return api


@pytest.fixture
def url(served: tuple[FixtureApi, str], api: FixtureApi) -> str:
    return served[1]


@pytest.fixture(scope="module")
def warm_context(browser: Browser) -> Iterator[BrowserContext]:
    """Yield a browser profile for all tests of a module, because a fresh one loads and compiles all scripts again."""
    # Playwright evaluates strings to wait for conditions, which the pages' policy forbids; test_isolation enforces it.
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="dark", bypass_csp=True)
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    yield context
    context.close()


@pytest.fixture
def context(warm_context: BrowserContext) -> Iterator[BrowserContext]:
    """Yield the shared profile, and remove the pages and choices of the test afterwards."""
    yield warm_context
    for page in warm_context.pages:
        if page.url.startswith("http"):
            page.evaluate("localStorage.clear()")
        page.close()


@pytest.fixture
def visit(context: BrowserContext, url: str) -> Iterator[Visit]:
    """Yield a page that fails its test on a console error or a request to another host."""
    visit = Visit(page=context.new_page(), url=url)
    visit.page.on("console", visit.record_message)
    visit.page.on("pageerror", lambda error: visit.errors.append(f"uncaught: {error}"))
    visit.page.on("request", visit.record_request)
    yield visit
    assert visit.errors == []
    assert visit.hosts <= {urlsplit(url).netloc}
