"""The drawer of a run, on real trainings, a real server and a real browser."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Page, expect

from tests.support.embedded import Embedded, embedded
from tests.support.small_training import SmallTraining

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Yield a server with two trainings that have ended and one that goes on."""
    home = tmp_path_factory.mktemp("drawer")
    with embedded(home) as started:
        for run_id in ("kept", "doomed"):
            training = SmallTraining(
                started, home / run_id, name=run_id, run_id=run_id, tags=("first",), config={"data": {"seed": 7}}
            )
            training.advance(40).finish()
        training = SmallTraining(started, home / "live", name="live", run_id="live").advance(40)
        yield started
        training.finish()


def opened(server: Embedded, page: Page, run_id: str) -> Page:
    """Open the drawer of a run and wait until the server has filled it."""
    page.goto(f"{server.url}/runs/{run_id}")
    page.get_by_role("button", name="Details", exact=True).click()
    expect(page.locator("#run-drawer .facts").first).to_be_visible()
    return page


def test_it_shows_configuration_environment_and_attempts(server: Embedded, page: Page) -> None:
    opened(server, page, "kept")
    drawer = page.locator("#run-drawer")

    def value(key: str) -> str:
        return drawer.locator("tr", has=page.get_by_role("rowheader", name=key, exact=True)).locator("td").inner_text()

    assert value("data.seed") == "7"
    assert value("lr") == "0.003"
    assert value("torch") == torch.__version__
    assert value("script")
    expect(drawer.locator(".attempts tbody tr")).to_have_count(1)
    expect(drawer.locator(".attempts tbody tr")).to_contain_text("0 to 39")
    page.keyboard.press("Escape")
    expect(drawer).to_be_hidden()


def test_name_tags_and_notes_are_stored_and_shown_everywhere(server: Embedded, page: Page) -> None:
    opened(server, page, "kept")
    form = page.locator("form[data-form=run-details]")
    form.get_by_label("Name").fill("kept, renamed")
    form.get_by_label("Tags").fill("second, baseline")
    form.get_by_label("Notes").fill("Half the learning rate.\nNo spike.")
    form.get_by_role("button", name="Save").click()
    expect(form.locator(".form-message")).to_have_text("Saved.")
    expect(form.get_by_label("Notes")).to_have_value("Half the learning rate.\nNo spike.")
    expect(page.locator(".run-top h1")).to_have_text("kept, renamed")
    expect(page.locator("#run-head .pill")).to_have_text(["second", "baseline"])
    form.get_by_label("Name").fill("")
    form.get_by_role("button", name="Save").click()
    expect(form.locator(".field-error").first).to_have_text("a run needs a name")
    page.reload()
    expect(page.locator(".run-top h1")).to_have_text("kept, renamed")
    opened(server, page, "kept")
    expect(form.get_by_label("Notes")).to_have_value("Half the learning rate.\nNo spike.")
    page.goto(f"{server.url}/?q=tag:second")
    expect(page.locator("a.fleet-row .name")).to_have_text("kept, renamed")
    expect(page.locator("a.fleet-row .name")).to_be_visible()
    with server.api() as api:
        assert api.get("/runs/kept").json()["tags"] == ["second", "baseline"]


def test_what_is_typed_survives_the_news_of_a_run_that_goes_on(server: Embedded, page: Page) -> None:
    opened(server, page, "live")
    notes = page.locator("form[data-form=run-details]").get_by_label("Notes")
    notes.fill("still typing")
    with server.api() as api:
        api.patch("/runs/live", json={"name": "live, renamed elsewhere"})
    expect(page.locator(".run-top h1")).to_have_text("live, renamed elsewhere")
    expect(notes).to_have_value("still typing")


def test_a_run_is_exported_as_the_api_does(server: Embedded, page: Page, tmp_path: Path) -> None:
    opened(server, page, "kept")
    with page.expect_download() as started:
        page.get_by_role("link", name="ZIP").click()
    started.value.save_as(tmp_path / "kept.zip")
    assert started.value.suggested_filename == "kept.zip"
    with zipfile.ZipFile(tmp_path / "kept.zip") as archive:
        assert {"run.json", "steps.parquet", "events.jsonl", "alerts.jsonl"} <= set(archive.namelist())
    with page.expect_download() as started:
        page.get_by_role("link", name="CSV", exact=True).click()
    started.value.save_as(tmp_path / "kept.csv")
    assert len((tmp_path / "kept.csv").read_text().splitlines()) == 41
    answer = page.request.get(f"{server.url}/runs/nothing/export?format=csv")
    assert answer.status == 404
    assert "does not exist" in answer.text()


def test_a_run_is_archived_listed_again_and_deleted_after_a_question(server: Embedded, page: Page) -> None:
    opened(server, page, "doomed")
    page.get_by_role("button", name="Archive").click()
    again = page.get_by_role("button", name="List again")
    expect(again).to_be_visible()
    expect(page.locator("#run-head .pill").first).to_have_text("archived")
    again.click()
    expect(page.get_by_role("button", name="Archive")).to_be_visible()
    expect(page.locator("#run-head .pill", has_text="archived")).to_have_count(0)
    other = page.context.new_page()
    other.goto(f"{server.url}/runs/doomed")
    expect(other.locator(".run-top h1")).to_have_text("doomed")
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Delete for good?")).to_be_visible()
    page.get_by_role("button", name="Delete for good?").click()
    page.wait_for_url(f"{server.url}/")
    expect(page.locator("a.fleet-row")).to_have_count(2)
    expect(other.locator(".run-top h1")).to_have_text("No such run")
    other.close()
    with server.api() as api:
        assert api.get("/runs/doomed").status_code in (404, 410)
