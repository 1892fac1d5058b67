"""axe, the checker of accessibility, finds nothing serious on any page in either theme."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from server.evaluation.evaluate import SHIPPED
from tests.support.browser import PATIENCE
from tests.support.embedded import Embedded, embedded
from tests.support.recorded import recording

pytestmark = pytest.mark.browser

BEFORE_THE_SPIKE = 368
"""Step of the recording at which its spike at about step 378 is predicted and has not come."""
GRAVE = ("serious", "critical")
PAGES = {
    "fleet": ("/", "a.fleet-row"),
    "run": ("/runs/whole", ".panel.layers .subplot.xy"),
    "endangered run": ("/runs/live", ".danger-band"),
    "run with its layer": ("/runs/whole?layer=0.weight&at=600&from=400&to=800", ".panel.layers .subplot.xy"),
    "compare": ("/compare?runs=whole,live", ".js-plotly-plot .subplot.xy"),
    "alerts": ("/alerts", "main h1"),
    "alert": ("/alerts/{alert}", "main .alert"),
    "rules": ("/rules", "main h1"),
    "settings": ("/settings", "main form"),
    "no such page": ("/nothing-here", "main h1"),
    "no such run": ("/runs/nothing", "main h1"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Yield a server with one run that has ended and one whose spike is predicted."""
    path = SHIPPED / "regression-tanh.npz"
    with (
        embedded(tmp_path_factory.mktemp("server")) as started,
        recording(started, path, "whole"),
        recording(started, path, "live", until=BEFORE_THE_SPIKE),
    ):
        yield started


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    """Yield one page for all tests, because a fresh profile compiles all scripts again."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="dark", bypass_csp=True)
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    yield context.new_page()
    context.close()


def findings(page: Page) -> list[str]:
    """Return what axe finds serious or critical, each with its first elements."""
    options = {"resultTypes": ["violations"]}
    response: dict[str, Any] = Axe().run(page, options=options).response
    return [
        f"{found['id']}: {found['help']}: {node['html'][:160]} {node['any'][0]['message'] if node['any'] else ''}"
        for found in response["violations"]
        if found["impact"] in GRAVE
        for node in found["nodes"][:4]
    ]


def in_both_themes(page: Page) -> dict[str, list[str]]:
    """Return the findings in the theme of the page and in the other one, without those themes that have none."""
    found = {}
    for _ in range(2):
        theme = page.evaluate("document.documentElement.dataset.theme")
        found[theme] = findings(page)
        page.locator("button.theme").click()
    assert len(found) == 2
    return {theme: words for theme, words in found.items() if words}


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_login_is_accessible(server: Embedded, page: Page, theme: Literal["dark", "light"]) -> None:
    page.emulate_media(color_scheme=theme)
    page.goto(f"{server.url}/login")
    page.locator("#secret").fill("a token that does not exist")
    page.locator("button").click()
    page.locator("[role=alert]").wait_for()
    assert findings(page) == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_accessible(server: Embedded, page: Page, name: str) -> None:
    path, drawn = PAGES[name]
    page.goto(f"{server.url}/?token={server.token}")
    with server.api() as api:
        path = path.format(alert=api.get("/alerts", params={"run": "whole"}).json()[0]["id"])
    page.goto(server.url + path)
    page.locator(drawn).first.wait_for()
    assert in_both_themes(page) == {}
