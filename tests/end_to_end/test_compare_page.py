"""The page that compares runs, on real trainings, a real server and a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.support.embedded import Embedded, embedded
from tests.support.small_training import SmallTraining

pytestmark = pytest.mark.browser
HEALTHY = ("calm-0", "calm-1", "calm-2")
DRAWN = "document.querySelectorAll('#compare-curves .js-plotly-plot .scatterlayer .trace').length > 0"
NAMES = """() => [...document.querySelectorAll('#compare-curves .annotation-text')].map(note => note.textContent)"""
RANGE = "() => document.querySelector('#compare-curves .js-plotly-plot').layout.xaxis.range.map(Math.round)"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Embedded]:
    """Yield a server with three calm runs and two of the same name that were kicked at steps 60 and 90."""
    with embedded(home) as started:
        for seed, name in enumerate(HEALTHY):
            SmallTraining(started, home / name, name=name, run_id=name, seed=seed).advance(140).finish()
        for run_id, at, lr in (("kick-60", 60, 0.003), ("kick-90", 90, 0.01)):
            training = SmallTraining(started, home / run_id, name="kicked", run_id=run_id, lr=lr, tags=("kick",))
            training.advance(140, kick_at=at).finish()
        yield started


def open_comparison(server: Embedded, page: Page, query: str) -> None:
    page.goto(f"{server.url}/compare?{query}")
    page.wait_for_function(DRAWN)


def test_runs_are_overlaid_with_their_differences_first(server: Embedded, page: Page) -> None:
    open_comparison(server, page, "runs=calm-0,kick-60,kick-90")
    expect(page.locator(".compare-runs li")).to_have_count(3)
    names = page.evaluate(NAMES)
    assert {"calm-0", "kicked · kick-6", "kicked · kick-9"} <= set(names), "runs of the same name can be told apart"
    table = page.locator(".differences")
    rate = table.locator("tbody tr", has=page.get_by_role("rowheader", name="lr", exact=True))
    expect(rate.locator("td")).to_have_text(["0.003", "0.003", "0.01"])
    expect(table).not_to_contain_text("model.width")
    expect(page.locator("#compare-table .note")).to_contain_text("other keys are equal")
    expect(page.locator("#compare-ratio .js-plotly-plot")).to_contain_text("limit")
    maps = "document.querySelector('#compare-maps .js-plotly-plot').data.filter(trace => trace.type === 'heatmap')"
    ends = page.evaluate(f"{maps}.map(trace => [trace.zmin, trace.zmax])")
    assert len(ends) == 3
    assert ends[0] == ends[1] == ends[2], "all heatmaps have one scale"
    order = [page.locator(box).bounding_box() for box in ("#compare-table", "#compare-curves", "#compare-maps")]
    tops = [box["y"] for box in order if box is not None]
    assert tops == sorted(tops)
    assert len(tops) == 3


def test_the_address_holds_the_comparison_for_reload_and_back(server: Embedded, page: Page) -> None:
    page.goto(f"{server.url}/compare")
    expect(page.locator("#compare-empty")).to_contain_text("No run is chosen")
    page.locator("#compare-add").select_option("kick-60")
    expect(page.locator(".compare-runs li")).to_have_count(1)
    page.locator("#compare-add").select_option("kick-90")
    expect(page.locator(".compare-runs li")).to_have_count(2)
    page.wait_for_function(DRAWN)
    metric = page.locator("#compare-metric")
    metric.select_option("grad_norm")
    expect(page.locator("#compare-title")).to_have_text("grad_norm")
    page.locator("[data-query=start]").select_option("spike")
    page.wait_for_function(f"({RANGE})()[0] < 0")
    assert page.url.endswith("/compare?runs=kick-60,kick-90&metric=grad_norm&start=spike")
    page.reload()
    page.wait_for_function(DRAWN)
    expect(metric).to_have_value("grad_norm")
    expect(page.locator("[data-query=start]")).to_have_value("spike")
    page.go_back()
    page.wait_for_function(f"({RANGE})()[0] === 0")
    expect(page.locator("[data-query=start]")).to_have_value("logged")
    page.go_back()
    expect(page.locator("#compare-title")).to_have_text("Loss")
    expect(metric).to_have_value("loss")
    page.locator(".compare-runs li", has_text="kick-9").locator(".remove").click()
    expect(page.locator(".compare-runs li")).to_have_count(1)
    assert page.url.endswith("/compare?runs=kick-60")


def test_spikes_meet_at_zero_and_time_and_tokens_are_axes(server: Embedded, page: Page) -> None:
    open_comparison(server, page, "runs=calm-0,kick-60,kick-90&start=spike")
    expect(page.locator(".compare-runs li", has_text="calm-0")).to_contain_text("has had no spike")
    lines = "document.querySelector('#compare-curves .js-plotly-plot')._fullData.filter(trace => trace.customdata)"
    first = page.evaluate(f"{lines}.map(trace => Math.round(trace.x[0]))")
    assert len(first) == 2
    assert -66 <= first[0] <= -58
    assert -96 <= first[1] <= -88
    page.locator("[data-query=start]").select_option("lr-jump")
    expect(page.locator(".compare-runs li", has_text="calm-0")).to_contain_text("has had no jump of the learning rate")
    page.locator("[data-query=start]").select_option("logged")
    page.locator("[data-query=axis]").select_option("tokens")
    page.wait_for_function(f"Math.max(...{lines}.map(trace => trace.x.at(-1))) === 64 * 140")
    page.locator("[data-query=axis]").select_option("time")
    page.wait_for_function(f"Math.max(...{lines}.map(trace => trace.x.at(-1))) < 10")
    assert page.locator("#compare-curves .xtitle").text_content() == "minutes of training"


def test_a_zoom_is_in_the_address_and_a_double_click_ends_it(server: Embedded, page: Page) -> None:
    open_comparison(server, page, "runs=calm-0,kick-60")
    box = page.locator("#compare-curves .nsewdrag").first.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.3 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], y, steps=5)
    page.mouse.up()
    expect(page.get_by_role("link", name="Show everything")).to_be_visible()
    low, high = page.evaluate(RANGE)
    assert 30 < low < 55
    assert 75 < high < 95
    page.reload()
    page.wait_for_function(DRAWN)
    assert page.evaluate(RANGE) == [low, high]
    page.locator("#compare-curves .nsewdrag").first.dblclick()
    expect(page.get_by_role("link", name="Show everything")).to_have_count(0)
    assert "from=" not in page.url


def test_a_live_run_is_compared_with_healthy_ones_as_it_goes(server: Embedded, page: Page, home: Path) -> None:
    training = SmallTraining(server, home / "live", name="live", run_id="live", lr=0.02).advance(60)
    try:
        open_comparison(server, page, "runs=live&reference=healthy")
        note = page.locator("#compare-note")
        expect(note).to_contain_text("lowest to highest of 3 finished healthy runs")
        expect(note).not_to_contain_text("is above them")
        end = "document.querySelector('#compare-curves .js-plotly-plot')._fullData.at(-1).x.at(-1)"
        assert page.evaluate(end) == 59
        training.advance(10, kick_at=62)
        page.wait_for_function(f"{end} === 69")
        expect(note).to_contain_text("live is above them since step 6")
    finally:
        training.finish()


def test_a_comparison_fits_a_phone(server: Embedded, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    open_comparison(server, page, "runs=calm-0,kick-60,gone")
    expect(page.locator(".compare-runs li", has_text="gone")).to_contain_text("no such run")
    page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")
