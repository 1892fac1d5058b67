"""Tests of what the pages say about the loss of a run, on a real server: its name, its choice and its absence."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect
from websockets.sync.client import ClientConnection, connect

from client_sdk.protocol import Record
from client_sdk.vocabulary import STAGE_REASONS
from tests.support.embedded import Embedded, embedded
from tests.support.writer import Writer

pytestmark = pytest.mark.browser
STEPS = 120


def ingest(server: Embedded) -> ClientConnection:
    url = server.url.replace("http", "ws", 1) + "/api/v1/ingest"
    return connect(url, additional_headers={"Authorization": f"Bearer {server.token}"}, compression=None)


def log(server: Embedded, name: str, rows: list[dict[str, float]], *, state: str = "finished") -> None:
    began = time.time() - len(rows)
    with ingest(server) as socket:
        writer = Writer(socket)
        writer.hello(name, writer=name, name=name, project="gpt")
        records = [Record(step=step, time=began + step, scalars=row) for step, row in enumerate(rows)]
        for first in range(0, len(records), 40):
            writer.commit(*records[first : first + 40])
        writer.finish(state)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Yield a server with runs that are not judged, and one that crashed in NaN."""
    with embedded(tmp_path_factory.mktemp("server")) as started:
        curve = [2.0 + math.exp(-step / 30) for step in range(STEPS)]
        log(started, "named", [{"train/loss": value, "val/loss": value + 3} for value in curve])
        log(started, "narrow", [{"train/loss": value, "val/loss": value + 3} for value in curve])
        log(started, "accuracy", [{"accuracy": 0.5} for _ in curve])
        broken = [{"loss": math.nan if step > 90 else value} for step, value in enumerate(curve)]
        log(started, "broken", broken, state="crashed")
        yield started


def test_the_fleet_says_why_a_run_is_not_judged_and_how_a_run_ended(server: Embedded, page: Page) -> None:
    stage = page.locator("a.fleet-row", has_text="accuracy").locator(".stage span")
    expect(stage).to_have_text("Not judged")
    expect(stage).to_have_attribute("title", STAGE_REASONS["no-loss"])
    named = page.locator("a.fleet-row", has_text="named").locator(".stage")
    expect(named.locator("span")).to_have_attribute("title", STAGE_REASONS["loss-only"])
    expect(named.locator("i")).to_have_class("square not-judged")
    broken = page.locator("a.fleet-row", has_text="broken")
    expect(broken.locator(".state")).to_have_text("crashed: NaN")
    expect(broken.locator(".stage span")).to_have_text("Non-finite")
    expect(broken.locator(".loss")).to_have_text("NaN")
    expect(broken.locator(".alert")).to_have_class("cell alert danger")
    page.set_viewport_size({"width": 390, "height": 844})
    expect(stage).to_be_visible()
    expect(broken.locator(".state")).to_be_visible()
    page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_loss_is_chosen_with_the_keyboard(server: Embedded, page: Page) -> None:
    page.goto(f"{server.url}/runs/named")
    line = page.locator(".loss-choice summary")
    expect(line).to_contain_text("Loss: train/loss")
    expect(page.locator(".reason")).to_have_text(f"Not judged: {STAGE_REASONS['loss-only']}.")
    line.focus()
    page.keyboard.press("Enter")
    scalar = page.locator("form[data-form=loss] [name=scalar]")
    expect(scalar).to_be_visible()
    page.keyboard.press("Tab")
    expect(scalar).to_be_focused()
    options = [option.get_attribute("value") for option in scalar.locator("option").all()]
    page.keyboard.press("Home")
    for _ in range(options.index("val/loss")):
        page.keyboard.press("ArrowDown")  # typing its name would depend on the pauses between the keys
    expect(scalar).to_have_value("val/loss")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(line).to_contain_text("Loss: val/loss")
    expect(line).to_contain_text("chosen for this run; the stage and the alerts are about the loss before")
    expect(page.locator("form[data-form=loss] .form-message")).to_have_text("Saved for this run: val/loss.")
    expect(page.locator(".kpi", has_text="Loss").locator("dd")).to_have_text("5.02")
    page.goto(server.url)
    expect(page.locator("a.fleet-row", has_text="named").locator(".loss")).to_have_text("5.02")


def test_the_default_of_the_project_is_chosen_on_a_phone(server: Embedded, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{server.url}/runs/narrow")
    page.locator(".loss-choice summary").click()
    form = page.locator("form[data-form=loss]")
    form.locator("[name=scalar]").select_option("val/loss")
    form.locator("[name=scope]").select_option("project")
    page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")
    form.locator("button", has_text="Save").click()
    expect(form.locator(".form-message")).to_have_text("Saved for the project: val/loss.")
    expect(page.locator(".loss-choice summary")).to_contain_text("Loss: val/loss · default of the project")
    with server.api() as api:
        assert api.get("/projects/gpt/loss").json() == {"project": "gpt", "scalar": "val/loss"}


def test_a_run_that_ended_in_nan_says_so_on_its_page(server: Embedded, page: Page) -> None:
    page.goto(f"{server.url}/runs/broken")
    expect(page.locator(".alerts .pill", has_text="run ended so")).to_be_visible()
    expect(page.locator(".status .state")).to_have_text("crashed: NaN")
    expect(page.locator(".alerts")).not_to_contain_text("No open alert")
    expect(page.locator(".kpi", has_text="Loss").locator("dd")).to_have_text("NaN")
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")
