"""One fixture server for all tests of the dashboard, and a page that notices what goes wrong in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect

from tests.dashboard.fixture_api import FixtureApi, example_runs, serve
from tests.support.browser import browser

__all__ = ["api", "browser", "context", "served", "url", "visit", "warm_context"]


@dataclass
class Visit:
    """One page of a browser, with everything that went wrong in it."""

    page: Page
    url: str
    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def heard(self, message: ConsoleMessage) -> None:
        # A frame that was on its way when the reader left for another page finds nobody: Dash says so, and all is well.
        overtaken = message.text.startswith("SET_PROPS: Component")
        if message.type in ("error", "warning") and not overtaken:
            self.errors.append(f"{message.type}: {message.text}")

    def asked(self, request: Request) -> None:
        host = urlsplit(request.url).netloc
        if host:
            self.hosts.add(host)


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[FixtureApi, str]]:
    """One server for all tests."""
    api = FixtureApi([])
    with serve(api) as address:
        yield api, address


@pytest.fixture
def api(served: tuple[FixtureApi, str]) -> FixtureApi:
    """The fixture API with its example runs, as they are at the start."""
    api, _ = served
    runs = example_runs()
    api.call(lambda: api.reset(runs))
    return api


@pytest.fixture
def url(served: tuple[FixtureApi, str], api: FixtureApi) -> str:
    return served[1]


PATIENCE = 25_000  # milliseconds; a busy machine is slow, not wrong


@pytest.fixture(scope="module")
def warm_context(browser: Browser) -> Iterator[BrowserContext]:
    """One browser profile for all tests of a module: a fresh one would load and compile the scripts again each time."""
    # Playwright waits for conditions by evaluating strings, which the pages' policy forbids; test_isolation keeps it.
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="dark", bypass_csp=True)
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    yield context
    context.close()


@pytest.fixture
def context(warm_context: BrowserContext) -> Iterator[BrowserContext]:
    """The shared profile, without the pages and choices of the test before."""
    yield warm_context
    for page in warm_context.pages:
        if page.url.startswith("http"):
            page.evaluate("localStorage.clear()")
        page.close()


@pytest.fixture
def visit(context: BrowserContext, url: str) -> Iterator[Visit]:
    """A page that fails its test on a console error or a request to another host."""
    visit = Visit(page=context.new_page(), url=url)
    visit.page.on("console", visit.heard)
    visit.page.on("pageerror", lambda error: visit.errors.append(f"uncaught: {error}"))
    visit.page.on("request", visit.asked)
    yield visit
    assert visit.errors == []
    assert visit.hosts <= {urlsplit(url).netloc}
