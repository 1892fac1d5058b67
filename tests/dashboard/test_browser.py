"""Tests of the pages in a real Chromium over the fixture API: their contents and their live updates."""

from __future__ import annotations

import re
from functools import partial

import pytest
from playwright.sync_api import BrowserContext, FloatRect, Page, expect

from tests.dashboard.conftest import Visit
from tests.dashboard.fixture_api import FixtureApi, serve
from tests.dashboard.synthetic import SyntheticRun

pytestmark = pytest.mark.browser

PLOTTED = "document.querySelectorAll('.panels .graph-box .subplot.xy').length >= 3"
RANGES = """() => [...document.querySelectorAll('.panels .panel:not(.hidden) .graph-box .js-plotly-plot')]
    .map(plot => plot._fullLayout.xaxis.range.map(x => Math.round(x)))"""
PLOT_EDGES = """() => [...document.querySelectorAll('.panels .graph-box .js-plotly-plot')].map(plot => {
    const box = plot.getBoundingClientRect(), size = plot._fullLayout._size;
    return [Math.round(box.left + size.l), Math.round(box.right - size.r)]; })"""


def wide_enough(page: Page) -> bool:
    """Return whether the page does not scroll horizontally."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def plot_area(page: Page, panel: str) -> FloatRect:
    """Return the place of a panel's plot area once it can be seen, which is after the panel's first drawing."""
    area = page.locator(f".panel.{panel} .nsewdrag").first
    expect(area).to_be_visible()
    box = area.bounding_box()
    assert box is not None
    return box


def drag_across(page: Page, panel: str, start: float, end: float) -> None:
    """Drag the mouse across a part of a panel's plot area, given as shares of its width."""
    box = plot_area(page, panel)
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], y, steps=6)
    page.mouse.up()


def test_fleet_shows_every_run_and_the_riskiest_first(visit: Visit, api: FixtureApi) -> None:
    page = visit.open("/")
    expect(page.locator(".fleet-row:not(.skeletons)")).to_have_count(len(api.runs))
    first = page.locator("a.fleet-row").first
    expect(first.locator(".name")).to_have_text("tanh-net")
    expect(first.locator(".spike .in")).to_have_text("113 steps")
    expect(first.locator(".spike .left")).to_have_text("about 6.1 s")
    expect(first.locator(".ratio .number")).to_have_text("0.97")
    expect(page.locator("#fleet-counts")).to_contain_text("1 about to spike")
    expect(page.locator(".status .state")).to_have_text("live")
    spark = page.locator("a.fleet-row", has_text="gpt-124m-bad-shard").locator(".spark path")
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", spark.get_attribute("d") or "")]
    assert min(heights) == 2.0, "the single-step spike reaches the top of the sparkline"
    assert wide_enough(page)


def test_fleet_moves_without_a_reload(visit: Visit, api: FixtureApi) -> None:
    page = visit.open("/")
    row = page.locator("a.fleet-row", has_text="tanh-net")
    expect(row.locator(".sub")).to_contain_text("599 steps")
    api.call(lambda: api.advance("tanh-net", 50))
    expect(row.locator(".sub")).to_contain_text("649 steps")
    expect(row.locator(".stage")).to_have_text("Unstable")
    expect(page.locator(".status .detail")).to_contain_text("s behind")


def test_fleet_search_and_filters_answer_at_once(visit: Visit) -> None:
    page = visit.open("/")
    rows = page.locator("a.fleet-row")
    expect(rows).to_have_count(10)
    page.keyboard.press("/")
    page.keyboard.type("gpt")
    expect(rows).to_have_count(2)
    page.locator("#fleet-search").fill("")
    page.locator("#fleet-state").select_option("crashed")
    expect(rows).to_have_count(1)
    page.locator("#fleet-project").select_option("clip")
    expect(page.locator("#fleet-none")).to_be_visible()


def test_fleet_shows_instructions_before_the_first_run(context: BrowserContext) -> None:
    with serve(FixtureApi([])) as url:
        page = context.new_page()
        page.goto(url)
        expect(page.locator("#fleet-empty")).to_contain_text("client_sdk.log")
        expect(page.locator(".fleet")).to_be_hidden()


def test_fleet_stays_quick_with_hundreds_of_runs(context: BrowserContext) -> None:
    runs = [
        SyntheticRun(id=f"r{i}", name=f"run {i}", length=200, total=400, healthy=True, seed=i, layers=("w",))
        for i in range(300)
    ]
    api = FixtureApi(runs)
    with serve(api) as url:
        page = context.new_page()
        page.goto(url)
        expect(page.locator("a.fleet-row")).to_have_count(300)
        for run in runs:
            api.call(partial(api.advance, run.id, 5))
        expect(page.locator(".sub", has_text="204 steps")).to_have_count(300)


def test_fleet_asks_anew_when_an_update_was_overtaken(visit: Visit, api: FixtureApi) -> None:
    page = visit.open("/")
    row = page.locator("a.fleet-row", has_text="tanh-net")
    expect(row.locator(".sub")).to_contain_text("599 steps")
    # A store keeps one value, so the browser receives only the second of two updates at once.
    page.evaluate("""() => {
        const own = window.dash_clientside.spikewatch, draw = own.fleet;
        own.fleet = (update) => { if (update) { own.fleet = draw; document.body.dataset.overtaken = "yes"; } };
    }""")
    api.call(lambda: api.advance("tanh-net", 50))
    expect(page.locator("body[data-overtaken]")).to_have_count(1)
    api.call(lambda: api.advance("calm", 20))
    expect(row.locator(".sub")).to_contain_text("649 steps")


def test_run_page_shows_its_panels_on_one_axis(visit: Visit) -> None:
    page = visit.open("/")
    page.locator("a.fleet-row", has_text="tanh-net").click()
    page.wait_for_function(PLOTTED)
    assert page.url.endswith("/runs/tanh-net")
    expect(page.locator("h1")).to_have_text("tanh-net")
    expect(page.locator(".about")).to_contain_text("Adam lr 0.01, β 0.9 / 0.999 · 7,489 parameters in 6 layers")
    expect(page.locator(".kpis")).to_contain_text("113 steps")
    expect(page.locator(".panel.loss")).to_contain_text("predicted 712")
    expect(page.locator(".panel.curvature")).to_contain_text("2/η = 200")
    expect(page.locator(".panel.layers")).to_contain_text("0.weight")
    expect(page.locator(".alert .headline")).to_have_text("Step 712 between 698 and 730")
    expect(page.locator(".advice li")).to_have_count(4)
    edges = page.evaluate(PLOT_EDGES)
    assert len(edges) == 3
    assert len({tuple(edge) for edge in edges}) == 1, "the panels line up to the pixel"
    ranges = page.evaluate(RANGES)
    assert ranges[0] == ranges[1] == ranges[2]
    assert ranges[0][1] > 730, "the prediction is in view"
    assert wide_enough(page)


def test_a_notifications_link_shows_the_steps_around_its_own(visit: Visit) -> None:
    page = visit.open("/runs/tanh-net?step=400")
    page.wait_for_function(PLOTTED)
    expect(page.locator("#follow")).to_be_visible()
    assert page.evaluate(RANGES)[0] == [250, 550]


def test_a_notifications_buttons_lead_to_one_alert(visit: Visit) -> None:
    page = visit.open("/alerts/tanh-net-prediction?do=acknowledge")
    expect(page.locator(".alert .headline")).to_have_text("Step 712 between 698 and 730")
    expect(page.get_by_role("link", name="Open the run tanh-net")).to_be_visible()
    page.get_by_role("button", name="Acknowledge").click()
    expect(page.locator(".done")).to_have_text("Acknowledged")
    assert wide_enough(page)


def test_run_page_advances_without_a_reload(visit: Visit, api: FixtureApi) -> None:
    page = visit.open("/runs/tanh-net")
    page.wait_for_function(PLOTTED)
    expect(page.locator(".status .detail")).to_contain_text("step 599")
    api.call(lambda: api.advance("tanh-net", 150))
    expect(page.locator(".status .detail")).to_contain_text("step 749")
    expect(page.locator(".panel.loss")).to_contain_text("spike 718")
    expect(page.locator(".history")).to_contain_text("hit, lead 158")
    page.wait_for_function("document.querySelector('.panel.loss .js-plotly-plot').calcdata.at(-1).at(-1).x === 749")


def test_zooming_one_panel_zooms_all_and_asks_for_finer_data(visit: Visit, api: FixtureApi) -> None:
    page = visit.open("/runs/calm")
    page.wait_for_function(PLOTTED)
    buckets = "document.querySelector('.panel.loss .js-plotly-plot').calcdata.at(-1).length"
    page.wait_for_function(f"{buckets} === 550")
    drag_across(page, "loss", 0.3, 0.6)
    page.wait_for_function(f"({RANGES})().every(r => r[0] > 300 && r[1] < 720)")
    ranges = page.evaluate(RANGES)
    assert ranges[0] == ranges[1] == ranges[2]
    page.wait_for_function(f"{buckets} > 300 && {buckets} < 400")
    api.call(lambda: api.advance("calm", 20))
    expect(page.locator(".status .detail")).to_contain_text("step 1,119")
    assert page.evaluate(RANGES)[0] == ranges[0], "a live update does not move what the user chose"
    page.locator("#follow").click()
    page.wait_for_function(f"({RANGES})().every(r => r[0] <= 0 && r[1] > 1100)")
    expect(page.locator("#follow")).to_be_hidden()


def test_what_the_pointer_shows_survives_live_updates(visit: Visit, api: FixtureApi) -> None:
    page = visit.open("/runs/tanh-net")
    page.wait_for_function(PLOTTED)
    page.locator(".panel.curvature .nsewdrag").first.hover(position={"x": 300, "y": 60})
    label = page.locator(".panel.curvature .hoverlayer")
    expect(label).to_contain_text("2/η 200")
    page.mouse.move(0, 0)
    page.locator(".panel.curvature .nsewdrag").first.hover(position={"x": 300, "y": 60})
    for step in (604, 609, 614):
        api.call(lambda: api.advance("tanh-net", 5))
        expect(page.locator(".status .detail")).to_contain_text(f"step {step}")
        expect(label).to_contain_text("2/η 200")


def test_a_drag_survives_live_updates(visit: Visit, api: FixtureApi) -> None:
    page = visit.open("/runs/tanh-net")
    page.wait_for_function(PLOTTED)
    box = plot_area(page, "loss")
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.2 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], y, steps=4)
    api.call(lambda: api.advance("tanh-net", 5))
    expect(page.locator(".status .detail")).to_contain_text("step 604")
    page.mouse.move(box["x"] + 0.6 * box["width"], y, steps=4)
    page.mouse.up()
    page.wait_for_function(f"({RANGES})().every(r => r[0] > 100 && r[1] < 500)")


def test_keys_and_history_rows_move_to_the_events_of_a_run(visit: Visit, api: FixtureApi) -> None:
    page = visit.open("/runs/tanh-net")
    page.wait_for_function(PLOTTED)
    api.call(lambda: api.advance("tanh-net", 150))
    row = page.locator(".history a.to-step").first
    step = int((row.get_attribute("href") or "").partition("?step=")[2])
    row.click()
    expect(page.locator("#follow")).to_be_visible()
    page.wait_for_function(f"({RANGES})()[0][0] === {max(step - 150, 0)}")
    assert page.url.endswith(f"?step={step}"), "the address can be passed on"
    page.keyboard.press("f")
    expect(page.locator("#follow")).to_be_hidden()
    page.keyboard.press("[")
    expect(page.locator("#follow")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("previous and next event")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_double_click_ends_a_zoom(visit: Visit) -> None:
    page = visit.open("/runs/tanh-net?step=400")
    page.wait_for_function(PLOTTED)
    expect(page.locator("#follow")).to_be_visible()
    page.mouse.move(300, 300)
    page.locator(".panel.loss .nsewdrag").first.dblclick()
    expect(page.locator("#follow")).to_be_hidden()


def test_keys_move_through_the_runs(visit: Visit) -> None:
    page = visit.open("/")
    expect(page.locator("a.fleet-row").first).to_be_visible()
    for key in ("j", "j", "k"):
        page.keyboard.press(key)
    expect(page.locator("a.fleet-row").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".run-top h1")).to_have_text("tanh-net")
    page.wait_for_function("document.title.endsWith('tanh-net · Spikewatch')")


def test_pickers_change_the_heatmap(visit: Visit) -> None:
    page = visit.open("/runs/llama")
    page.wait_for_function(PLOTTED)
    page.locator("#stat-pick").select_option("grad_momentum_cosine")
    expect(page.locator("#layers-note")).to_contain_text("overshoots")
    page.wait_for_function("document.querySelector('.panel.layers .js-plotly-plot').data[0].zmin === -1")
    page.locator("#stat-pick").select_option("grad_norm")
    expect(page.locator("#layers-note")).to_contain_text("each layer against its own recent level")
    page.locator("#scale-pick").select_option("linear")
    expect(page.locator("#layers-note")).not_to_contain_text("its own recent level")
    page.wait_for_function("document.querySelector('.panel.layers .js-plotly-plot').data[0].zmin === 0")


def test_a_click_on_a_layer_shows_its_distribution(visit: Visit) -> None:
    page = visit.open("/runs/tanh-net")
    page.wait_for_function(PLOTTED)
    cells = page.locator(".panel.layers .nsewdrag").first
    cells.hover(position={"x": 100, "y": 10})
    expect(page.locator(".panel.layers .hoverlayer")).to_contain_text("0.weight")
    cells.click(position={"x": 100, "y": 10})
    expect(page.locator("#histogram-title")).to_contain_text("0.weight at step")
    expect(page.locator(".histogram .js-plotly-plot")).to_have_count(2)


def test_acknowledging_an_alert_works(visit: Visit, api: FixtureApi) -> None:
    page = visit.open("/runs/tanh-net")
    page.locator(".buttons .button", has_text="Acknowledge").click()
    expect(page.locator(".buttons .done")).to_have_text("Acknowledged")
    assert api.runs["tanh-net"].acknowledged
    page.locator(".buttons .button", has_text="Silence").click()
    expect(page.locator(".buttons .done").last).to_have_text("Silenced")
    assert api.silenced == {"tanh-net-prediction": 60}


def test_theme_is_toggled_and_remembered_without_a_flash(visit: Visit) -> None:
    page = visit.open("/runs/tanh-net")
    page.wait_for_function(PLOTTED)
    background = "getComputedStyle(document.documentElement).backgroundColor"
    assert page.evaluate(background) == "rgb(13, 15, 19)"
    page.locator("button.theme").click()
    assert page.evaluate(background) == "rgb(247, 247, 245)"
    page.wait_for_function("document.querySelector('.panel.loss .js-plotly-plot').data.at(-1).line.color === '#2f6fde'")
    early = "addEventListener('DOMContentLoaded', () => { window.early = document.documentElement.dataset.theme; })"
    page.add_init_script(early)
    page.reload()
    assert page.evaluate("window.early") == "light"


@pytest.mark.parametrize("path", ["/", "/runs/tanh-net", "/runs/llama", "/alerts", "/runs/new"])
def test_nothing_scrolls_sideways_on_a_phone(visit: Visit, path: str) -> None:
    visit.page.set_viewport_size({"width": 390, "height": 844})
    page = visit.open(path)
    expect(page.locator(".status .state")).to_have_text("live")
    if path in ("/runs/tanh-net", "/runs/llama"):
        page.wait_for_function(PLOTTED)
    assert wide_enough(page)
    if path == "/runs/tanh-net":
        alert, loss = page.locator(".alert").bounding_box(), page.locator(".panel.loss").bounding_box()
        assert alert is not None
        assert loss is not None
        assert alert["y"] < loss["y"], "the alert comes first"


def test_a_run_without_steps_shows_instructions(visit: Visit, api: FixtureApi) -> None:
    page = visit.open("/runs/new")
    expect(page.locator("#run-empty")).to_contain_text("The run is connected")
    expect(page.locator("#run-panels")).to_be_hidden()
    api.call(lambda: api.advance("new", 30))
    page.wait_for_function(PLOTTED)
    expect(page.locator("#run-empty")).to_be_hidden()


def test_what_an_author_typed_is_text(context: BrowserContext) -> None:
    """Every name of the run is an attack with 256 characters."""
    evil = ("<img src=x onerror=window.hacked=1><b>bold</b>" + "x" * 256)[:256]
    run = SyntheticRun(id="evil", name=evil, project=evil, length=650, layers=(evil, evil[:-1] + "y", "w"))
    with serve(FixtureApi([run])) as url:
        page = context.new_page()
        page.goto(url)
        expect(page.locator("a.fleet-row .name")).to_have_text(evil)
        assert wide_enough(page)
        page.locator("a.fleet-row").click()
        page.wait_for_function(PLOTTED)
        expect(page.locator("h1")).to_have_text(evil)
        page.locator(".panel.layers .nsewdrag").first.hover(position={"x": 300, "y": 20})
        expect(page.locator(".panel.layers .hoverlayer")).to_contain_text("<img src=x")
        assert page.evaluate("window.hacked") is None
        assert page.locator(".app img, .app b:has-text('bold')").count() == 0
        assert wide_enough(page)


def test_a_page_shows_that_it_is_offline_and_recovers(context: BrowserContext) -> None:
    """The server stops and starts again on the same port; the page needs no reload and shows the steps in between."""
    api = FixtureApi([SyntheticRun(id="tanh-net", name="tanh-net", length=600)])
    page = context.new_page()
    with serve(api) as url:
        port = int(url.rsplit(":", 1)[1])
        page.goto(url + "/runs/tanh-net")
        page.wait_for_function(PLOTTED)
    expect(page.locator(".offline")).to_contain_text("offline since")
    api.runs["tanh-net"].length = 660
    with serve(api, port):
        expect(page.locator(".status .detail")).to_contain_text("step 659")
        expect(page.locator(".offline")).to_be_hidden()
        api.call(lambda: api.advance("tanh-net", 11))
        expect(page.locator(".status .detail")).to_contain_text("step 670")


def test_closing_the_page_ends_its_callback(visit: Visit, api: FixtureApi) -> None:
    page = visit.open("/runs/tanh-net")
    page.wait_for_function(PLOTTED)
    assert len(api.listeners) == 1
    page.goto("about:blank")
    assert api.gone.wait(10), "the feed closes its connection when the last page is closed"


def test_two_pages_share_one_upstream_connection(context: BrowserContext, visit: Visit, api: FixtureApi) -> None:
    first = visit.open("/runs/tanh-net")
    second = context.new_page()
    second.goto(visit.url + "/")
    first.wait_for_function(PLOTTED)
    expect(second.locator("a.fleet-row")).to_have_count(10)
    assert len(api.listeners) == 1


def test_alerts_page_lists_and_leads_to_the_run(visit: Visit) -> None:
    page = visit.open("/alerts")
    expect(page.locator(".alert-row a")).to_have_count(3)
    expect(page.locator(".precision")).to_contain_text("2 of 3 predictions came true")
    page.locator(".alert-row a", has_text="tanh-net").click()
    page.wait_for_function(PLOTTED)
    expect(page.locator("h1")).to_have_text("tanh-net")
