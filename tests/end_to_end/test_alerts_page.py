"""The page of all alerts on real trainings: searched, filtered, and grouped by incident."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from server.evaluation.evaluate import SHIPPED
from tests.support.embedded import Embedded, embedded
from tests.support.recorded import recording
from tests.support.small_training import SmallTraining

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Yield a server with a recorded training whose spikes were predicted, and one that was kicked."""
    home = tmp_path_factory.mktemp("alerts")
    with embedded(home) as started, recording(started, SHIPPED / "regression-tanh.npz", "foretold"):
        SmallTraining(started, home / "kicked", name="kicked", run_id="kicked").advance(140, kick_at=80).finish()
        yield started


def test_alerts_are_grouped_by_incident_searched_and_filtered(server: Embedded, page: Page) -> None:
    page.goto(f"{server.url}/alerts")
    rows = page.locator(".alert-row:not(.skeletons)")
    expect(rows.locator(".alert-run", has_text="kicked")).not_to_have_count(0)
    expect(rows.locator(".alert-result", has_text="run ended so")).not_to_have_count(0)  # all of it has been read
    opening = page.locator(".incident > .alert-row", has_text="Spike predicted")
    expect(opening).not_to_have_count(0)
    expect(page.locator(".incident .followed .alert-row", has_text="Loss spike")).not_to_have_count(0)
    of_foretold = page.locator(".alert-row .alert-run", has_text="foretold")
    page.locator("#alert-search").fill("kicked spike")
    expect(of_foretold).to_have_count(0)
    expect(rows.first.locator(".alert-run")).to_have_text("kicked")
    page.wait_for_url("**/alerts?q=kicked*spike")
    page.reload()
    expect(page.locator("#alert-search")).to_have_value("kicked spike")
    expect(of_foretold).to_have_count(0)
    page.locator("#alert-search").fill("")
    expect(of_foretold).not_to_have_count(0)
    page.locator("[data-query=kind]").select_option("spike-predicted")
    page.locator("[data-query=level]").select_option("critical")
    expect(page.locator(".incident").first).to_be_visible()
    page.locator("[data-query=state]").select_option("open")
    expect(page.locator(".alert-list")).to_contain_text("No alert matches.")
    page.go_back()
    expect(page.locator(".incident").first).to_be_visible()
    first = page.locator(".incident .alert-link", has=page.locator(".alert-run", has_text="foretold")).first
    target = first.get_attribute("href") or ""
    assert "?step=" in target
    first.click()
    expect(page.locator(".run-top h1")).to_have_text("foretold")
    assert page.url == server.url + target
