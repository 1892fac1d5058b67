"""The page of a run on two trainings: a recorded one that spikes, and a small transformer without curvature."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page, expect
from torch import nn

import client_sdk
from server.evaluation.evaluate import SHIPPED
from tests.support.browser import PATIENCE
from tests.support.embedded import Embedded, embedded
from tests.support.recorded import recording

pytestmark = pytest.mark.browser

BLOCKS, STEPS, FAULT = 12, 80, 50
DELIVERY = 60.0  # seconds until the server has every record, on a machine that other tests keep busy
DRAWN = "document.querySelectorAll('.panels .panel:not(.hidden) .graph-box .subplot.xy').length >= 3"

META = "document.querySelector('#layers-box .js-plotly-plot').layout.meta"


class Block(nn.Module):
    """A block of a transformer, reduced to its linear layers and with their usual names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, width), "c_proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, width), "c_proj": nn.Linear(width, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + torch.as_tensor(self.attn["c_proj"](torch.tanh(self.attn["c_attn"](x))))
        return x + torch.as_tensor(self.mlp["c_proj"](torch.tanh(self.mlp["c_fc"](x))))


class Transformer(nn.Module):
    """Twelve blocks under the names of GPT-2."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict({"h": nn.Sequential(*(Block(width) for _ in range(BLOCKS)))})
        self.lm_head = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.lm_head(self.transformer["h"](x)))


def train(server: Embedded, directory: Path) -> None:
    """Train without a closure, and so without curvature. From step `FAULT` on, one layer is far too large."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    inputs, targets = torch.randn(32, 8), torch.randn(32, 1)
    model = Transformer()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    client_sdk.init("transformers", "gpt", url=server.url, token=server.token, directory=directory, run_id="gpt")
    client_sdk.watch(model, optimizer, every=1, histogram_every=10)
    for step in range(STEPS):
        if step == FAULT:
            with torch.no_grad():
                model.get_parameter("transformer.h.3.mlp.c_proj.weight").mul_(40)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        client_sdk.log({"loss": loss, "accuracy": 1 / (1 + loss.detach())}, step=step)
    assert client_sdk.flush(DELIVERY), client_sdk.status()
    client_sdk.finish(DELIVERY)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Yield a server with both trainings."""
    with (
        embedded(tmp_path_factory.mktemp("server")) as started,
        recording(started, SHIPPED / "regression-tanh.npz", "tanh"),
    ):
        train(started, tmp_path_factory.mktemp("spool"))
        yield started


@pytest.fixture(scope="module")
def page(server: Embedded, browser: Browser) -> Iterator[Page]:
    """Yield one page for all tests, because a fresh profile compiles all scripts again, and fail on its errors."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="dark", bypass_csp=True)
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{server.url}/?token={server.token}")
    yield page
    context.close()
    assert [text for text in wrong if not text.startswith("SET_PROPS: Component")] == []


def opened(page: Page, server: Embedded, address: str) -> Page:
    """Open an address of the dashboard and wait until its panels are drawn."""
    page.goto(server.url + address)
    page.wait_for_function(DRAWN)
    return page


def test_the_path_of_the_forecasts_is_drawn_over_the_spikes_that_came(server: Embedded, page: Page) -> None:
    opened(page, server, "/runs/tanh")
    expect(page.locator("#forecast-card")).to_be_visible()
    with server.api() as api:
        alerts = api.get("/alerts", params={"run": "tanh"}).json()
        spikes = [event["step"] for event in api.get("/runs/tanh/events").json() if event["kind"] == "spike"]
    said = {forecast["step"] for alert in alerts for forecast in alert["forecasts"]}
    plot = "document.querySelector('#forecast-box .js-plotly-plot')"
    dots = page.evaluate(f"{plot}._fullData.filter(t => t.mode === 'markers').flatMap(t => Array.from(t.x))")
    lines = page.evaluate(f"{plot}.layout.shapes.map(shape => shape.x0)")
    assert said & set(dots), "each dot is a step at which something was said"
    assert set(lines) == set(spikes)


def test_the_history_names_the_spikes_by_their_numbers_in_the_panels(server: Embedded, page: Page) -> None:
    opened(page, server, "/runs/tanh")
    numbers = page.locator(".history .number").all_inner_texts()
    assert sorted(map(int, numbers)) == list(range(1, len(numbers) + 1))
    label = page.locator(".panel.loss .annotation-text", has_text="· spike").first
    number, step = re.findall(r"\d+", (label.text_content() or "").replace(",", ""))
    row = page.locator(".history li", has_text=f"Loss spike at step {step}")
    expect(row.locator(".number")).to_have_text(number)


def test_a_run_without_curvature_shows_a_second_metric_in_its_place(server: Embedded, page: Page) -> None:
    opened(page, server, "/runs/gpt")
    expect(page.locator("#curvature-note")).to_contain_text("no curvature: pass closure=")
    strip, second = page.locator("#curvature-box").bounding_box(), page.locator("#more-0-box").bounding_box()
    assert strip is not None
    assert second is not None
    assert strip["height"] < 40 < second["height"]
    expect(page.locator("#more-0-title")).to_have_text("grad_norm")


def test_further_metrics_are_added_changed_and_removed(server: Embedded, page: Page) -> None:
    opened(page, server, "/runs/tanh")
    expect(page.locator("#more-0-card")).to_be_hidden()
    page.locator(".panel.loss .panel-menu summary").click()
    page.get_by_role("button", name="Add a metric").click()
    expect(page.locator("#more-0-card")).to_be_visible()
    page.locator("#more-0-pick").select_option("lambda_max")
    expect(page.locator("#more-0-title")).to_have_text("lambda_max")
    page.locator("#more-0-card .panel-menu summary").click()
    page.locator("#axis-more-0-pick").select_option("log")
    expect(page.locator("#more-0-note")).to_contain_text("log scale")
    page.locator("#smooth-more-0-pick").select_option("20")
    page.wait_for_function("document.querySelector('#more-0-box .js-plotly-plot').data.some(t => t.opacity === 0.35)")
    page.locator("#more-0-pick").select_option("-")
    expect(page.locator("#more-0-card")).to_be_hidden()


def test_a_panel_is_taken_along_as_picture_and_as_values(server: Embedded, page: Page) -> None:
    opened(page, server, "/runs/gpt")
    menu = page.locator(".panel.loss .panel-menu")
    menu.locator("summary").click()
    with page.expect_download() as download:
        menu.get_by_role("button", name="Values (CSV)").click()
    assert download.value.suggested_filename == "gpt-Loss.csv"
    rows = Path(download.value.path()).read_text().splitlines()
    assert rows[0] == "step,name,value"
    assert len(rows) == 1 + STEPS
    assert rows[1].startswith("0,loss,")
    with page.expect_download() as download:
        menu.get_by_role("button", name="Picture (PNG)").click()
    assert download.value.suggested_filename == "gpt-Loss.png"
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_one_line_runs_through_all_panels_at_the_step_under_the_pointer(server: Embedded, page: Page) -> None:
    opened(page, server, "/runs/tanh")
    page.locator(".panel.loss .nsewdrag").first.hover(position={"x": 200, "y": 40})
    expect(page.locator(".panels.pointed")).to_have_count(1)
    places = page.evaluate(
        """() => [...document.querySelectorAll('.panels .panel:not(.hidden) .graph-box:has(.js-plotly-plot)')]
            .map(box => Math.round(box.getBoundingClientRect().left
                + parseFloat(getComputedStyle(box, '::after').left)))"""
    )
    assert len(places) >= 4
    assert len(set(places)) == 1
    page.mouse.move(5, 5)
    expect(page.locator(".panels.pointed")).to_have_count(0)


def row_names(page: Page) -> list[str]:
    return list(page.evaluate(META))


def test_blocks_of_a_transformer_fold_and_unfold_and_a_reload_keeps_them(server: Embedded, page: Page) -> None:
    opened(page, server, "/runs/gpt")
    blocks = [f"transformer.h.{number}" for number in range(BLOCKS)]
    assert row_names(page) == [*blocks, "lm_head.weight", "lm_head.bias"]
    page.locator("#layers-box .annotation-text", has_text="h.3").click()
    inside = (
        "document.querySelector('#layers-box .js-plotly-plot').layout.meta.includes('transformer.h.3.mlp.c_fc.bias')"
    )
    page.wait_for_function(inside)
    assert "unfolded=transformer.h.3" in page.url
    page.reload()
    page.wait_for_function(DRAWN)
    page.wait_for_function(inside)
    page.locator("#layers-box .annotation-text", has_text="▾").click()
    page.wait_for_function(f"!{inside}")


def test_blocks_fold_by_keyboard_as_well(server: Embedded, page: Page) -> None:
    opened(page, server, "/runs/gpt")
    page.locator(".blocks summary").press("Enter")
    button = page.locator(".blocks").get_by_role("button", name="transformer.h.3", exact=True)
    inside = (
        "document.querySelector('#layers-box .js-plotly-plot').layout.meta.includes('transformer.h.3.mlp.c_fc.bias')"
    )
    for is_unfolded in ("true", "false"):
        button.press("Enter")
        expect(button).to_have_attribute("aria-pressed", is_unfolded)
        page.wait_for_function(inside if is_unfolded == "true" else f"!{inside}")


def test_layers_are_found_by_name_and_sorted_by_risk(server: Embedded, page: Page) -> None:
    opened(page, server, "/runs/gpt")
    page.locator("#layer-search").fill("h.11.attn")
    page.wait_for_function(f"{META}.length === 4")
    assert row_names(page)[0] == "transformer.h.11.attn.c_attn.weight"
    page.locator("#layer-search").fill("")
    page.locator("#order-pick").select_option("risk")
    page.wait_for_function(f"{META}.length === {8 * BLOCKS + 2}")


def test_a_click_on_a_folded_block_draws_the_layer_that_leads_it(server: Embedded, page: Page) -> None:
    opened(page, server, f"/runs/gpt?stat=grad_norm&from={FAULT - 20}&to={FAULT + 20}")
    cells = page.locator("#layers-box .nsewdrag").first
    box = cells.bounding_box()
    assert box is not None
    row = 3.5 * box["height"] / (BLOCKS + 2)
    cells.click(position={"x": box["width"] * 0.6, "y": row})
    expect(page.locator("#layer-title")).to_contain_text("transformer.h.3.")
    expect(page.locator("#layer-note")).to_contain_text("gradient norm: ‖g‖ of each layer")
    layer = page.locator("#layer-title").inner_text()
    expect(page.locator("#histogram-title")).to_contain_text(f"{layer} at step")
    expect(page.locator("#over-time-card")).to_be_visible()
    recorded = page.evaluate("Array.from(document.querySelector('#over-time-box .js-plotly-plot')._fullData[0].x)")
    assert recorded == sorted(recorded)
    assert len(recorded) >= 3
    step = int(page.evaluate("new URLSearchParams(location.search).get('at')"))
    with server.api() as api:
        found = api.get("/runs/gpt/heatmap", params={"stat": "grad_norm", "columns": 100}).json()
    line = "document.querySelector('#layer-box .js-plotly-plot')._fullData.at(-1)"
    drawn = page.evaluate(f"(t => t.y[Array.from(t.x).indexOf({step})])({line})")
    assert drawn == pytest.approx(found["z"][found["layers"].index(layer)][found["step"].index(step)])
    edges = page.evaluate(
        """() => [...document.querySelectorAll('.panels .panel:not(.hidden) .graph-box .js-plotly-plot')].map(plot =>
            Math.round(plot.getBoundingClientRect().left + plot._fullLayout._size.l))"""
    )
    assert len(set(edges)) == 1, "the curve shares the step axis"


def test_the_address_keeps_the_whole_view(server: Embedded, page: Page) -> None:
    opened(page, server, "/runs/tanh")
    page.locator("#stat-pick").select_option("update_norm")
    page.locator("#scale-pick").select_option("log")
    page.locator("#metric-pick").select_option("lambda_grad")
    page.locator("#window-pick").select_option("200")
    page.wait_for_url("**/runs/tanh?*window=200*")
    page.locator(".top nav a").first.click()
    expect(page.locator("a.fleet-row").first).to_be_visible()
    page.go_back()
    page.wait_for_function(DRAWN)
    expect(page.locator("#loss-title")).to_have_text("lambda_grad")
    expect(page.locator("#scale-pick")).to_have_value("log")
    expect(page.locator("#stat-pick")).to_have_value("update_norm")
    expect(page.locator("#window-pick")).to_have_value("200")
    low, _ = page.evaluate("document.querySelector('#loss-box .js-plotly-plot')._fullLayout.xaxis.range")
    assert low > 100


def test_what_was_checked_and_found_is_shown_until_the_project_dismisses_it(server: Embedded, page: Page) -> None:
    opened(page, server, "/runs/gpt")
    audit = page.locator("section.audit")
    expect(audit).to_contain_text(re.compile(r"\d+ checks ran [\d,]+ times; last at step \d+"))
    finding = audit.locator(".finding")
    expect(finding).to_contain_text("Something else than the optimizer changed the weights")
    expect(finding).to_contain_text("transformer.h.3.mlp.c_proj.weight")
    expect(finding).to_contain_text("Source: torch.Tensor._version")
    finding.get_by_role("button", name="Dismiss").click()
    expect(finding).to_have_count(0)
    expect(audit).to_contain_text("1 dismissed in transformers")
    with server.api() as api:
        assert api.get("/projects/transformers/audit").json()["checks"] == ["weights-changed"]
    audit.get_by_text("1 dismissed in transformers").click()
    audit.get_by_role("button", name="Show again").click()
    expect(finding).to_have_count(1)
