"""The list of runs on real trainings: what is found, grouped, pinned, saved and picked for a comparison."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from server.evaluation.evaluate import SHIPPED
from tests.support.embedded import Embedded, embedded
from tests.support.recorded import recording
from tests.support.small_training import SmallTraining

pytestmark = pytest.mark.browser
ALARM = 745  # records of the recorded training, shortly before the first of its spikes, which is predicted
RATES = {"slow": 0.0003, "fast": 0.003, "faster": 0.01}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Yield a server with three trainings that have ended, one that goes on, and a recorded one before its spike."""
    home = tmp_path_factory.mktemp("fleet")
    with embedded(home) as started, recording(started, SHIPPED / "regression-tanh.npz", "endangered", until=ALARM):
        for name, lr in RATES.items():
            tags = ("baseline",) if name == "slow" else ()
            SmallTraining(started, home / name, name=name, run_id=name, lr=lr, tags=tags).advance(60).finish()
        training = SmallTraining(started, home / "live", name="live", run_id="live", lr=0.001).advance(60)
        yield started
        training.finish()


@pytest.fixture
def fleet(server: Embedded, page: Page) -> Page:
    """Return the page with its rows."""
    page.goto(server.url)
    expect(page.locator("a.fleet-row")).to_have_count(5)
    return page


def row(page: Page, name: str) -> Locator:
    return page.locator("a.fleet-row", has=page.locator(".name").get_by_text(name, exact=True))


def names(page: Page) -> list[str]:
    return page.locator("a.fleet-row:visible .name").all_inner_texts()


def test_live_runs_are_seen_first_and_ended_ones_are_folded(fleet: Page) -> None:
    heading = fleet.get_by_role("button", name="Ended · 3")
    expect(heading).to_have_attribute("aria-expanded", "false")
    assert set(names(fleet)) == {"endangered", "live"}
    heading.press("Enter")
    expect(heading).to_have_attribute("aria-expanded", "true")
    expect(fleet.locator("a.fleet-row:visible")).to_have_count(5)


def test_an_endangered_run_has_its_line_on_top_and_names_its_leading_layer(fleet: Page) -> None:
    band = fleet.locator("#fleet-danger .danger-band")
    expect(band).to_have_count(1)
    expect(band).to_contain_text("endangered")
    layer = row(fleet, "endangered").locator(".layer")
    expect(layer).not_to_have_text("–")
    full = layer.get_attribute("title") or ""
    assert full.endswith(layer.inner_text().lstrip("…"))
    assert full in band.inner_text()


def test_search_reads_tags_and_the_configuration_and_the_address_holds_it(server: Embedded, fleet: Page) -> None:
    search = fleet.locator("#fleet-search")
    search.fill("lr>1e-3")
    expect(row(fleet, "live")).to_have_count(0)
    assert set(names(fleet)) == {"fast", "faster", "endangered"}, "the last one has the rate of its optimizer"
    search.fill("tag:baseline")
    expect(fleet.locator("a.fleet-row:visible .name")).to_have_text(["slow"])
    fleet.wait_for_url("**/?q=tag*baseline")
    fleet.reload()
    expect(fleet.locator("a.fleet-row:visible .name")).to_have_text(["slow"])
    expect(search).to_have_value("tag:baseline")
    fleet.locator("a.fleet-row:visible").click()
    expect(fleet.locator(".run-top h1")).to_have_text("slow")
    assert fleet.url == f"{server.url}/runs/slow"
    fleet.go_back()
    expect(search).to_have_value("tag:baseline")
    search.fill("no such thing")
    expect(fleet.locator("#fleet-none")).to_be_visible()


def test_runs_are_grouped_by_a_key_of_their_configuration(fleet: Page) -> None:
    fleet.locator("#fleet-group").select_option("lr")
    expect(fleet.locator(".fleet-group button", has_text="lr = 0.003 · 1")).to_be_visible()
    expect(fleet.locator("a.fleet-row:visible")).to_have_count(5)
    fleet.go_back()
    expect(fleet.get_by_role("button", name="Ended · 3")).to_be_visible()


def test_a_pinned_run_stands_on_top_also_after_a_reload(fleet: Page) -> None:
    row(fleet, "live").locator(".pin").click()
    expect(fleet.locator(".fleet-group").first).to_have_text("Pinned · 1")
    expect(fleet.locator("a.fleet-row .name").first).to_have_text("live")
    fleet.reload()
    expect(fleet.locator(".fleet-group").first).to_have_text("Pinned · 1")
    fleet.locator("a.fleet-row").first.focus()
    fleet.keyboard.press("p")
    expect(fleet.locator(".fleet-group", has_text="Pinned")).to_have_count(0)


def test_a_view_is_saved_under_a_name_and_comes_back(fleet: Page) -> None:
    fleet.locator("#fleet-state").select_option("finished")
    expect(fleet.locator("a.fleet-row:visible")).to_have_count(3)
    fleet.locator(".views summary").click()
    fleet.get_by_label("Name of this view").fill("ended well")
    fleet.get_by_role("button", name="Save").click()
    fleet.locator("#fleet-state").select_option("")
    expect(fleet.get_by_role("button", name="Ended · 3")).to_be_visible()
    fleet.reload()
    fleet.locator(".views summary").click()
    fleet.get_by_role("button", name="ended well", exact=True).click()
    expect(fleet.locator("#fleet-state")).to_have_value("finished")
    expect(fleet.locator("a.fleet-row:visible")).to_have_count(3)
    fleet.locator(".views summary").click()
    fleet.get_by_role("button", name="Remove the view ended well").click()
    expect(fleet.get_by_role("button", name="ended well", exact=True)).to_have_count(0)


def test_picked_runs_are_compared(server: Embedded, fleet: Page) -> None:
    row(fleet, "live").get_by_role("checkbox").click()
    row(fleet, "endangered").focus()
    fleet.keyboard.press("x")
    link = fleet.get_by_role("link", name="Compare 2 runs")
    expect(link).to_be_visible()
    fleet.get_by_role("button", name="Clear").click()
    expect(fleet.locator("#fleet-picked")).to_be_hidden()
    fleet.get_by_role("button", name="Ended · 3").click()
    for name in ("slow", "faster"):
        row(fleet, name).get_by_role("checkbox").click()
    link.click()
    expect(fleet.locator(".compare-runs li")).to_have_count(2)
    assert fleet.url == f"{server.url}/compare?runs=slow,faster"
