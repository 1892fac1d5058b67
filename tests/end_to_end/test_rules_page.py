"""Tests of the pages of rules and settings on a real server, used as a person does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from websockets.sync.client import ClientConnection, connect

from tests.support.embedded import Embedded, embedded
from tests.support.writer import Writer, record

pytestmark = pytest.mark.browser
EVIL = "<img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Yield a server with a run whose loss was above 5 twice and whose name is an attack."""
    with embedded(tmp_path_factory.mktemp("server")) as started:
        with ingest(started) as socket:
            writer = Writer(socket)
            writer.hello("past", name=EVIL, project="gpt")
            began = time.time() - 120
            writer.commit(*(record(step, 9.0 if step in (40, 90) else 1.0, time=began + step) for step in range(120)))
            writer.finish()
        yield started


def ingest(server: Embedded) -> ClientConnection:
    """Return a connection on which a writer can log."""
    url = server.url.replace("http", "ws", 1) + "/api/v1/ingest"
    return connect(url, additional_headers={"Authorization": f"Bearer {server.token}"}, compression=None)


def expect_no_sideways_scroll(page: Page) -> None:
    """Wait until figures have their new size and nothing scrolls sideways."""
    page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_rule_is_written_tested_on_history_saved_and_fires(server: Embedded, page: Page) -> None:
    page.locator("nav a", has_text="Rules").click()
    expect(page.locator(".item-name")).to_have_text("warningNo data for 10 minutes")
    page.locator("button", has_text="New rule").click()
    form = page.locator("form[data-form=rule]")
    form.locator("[name=name]").fill("Loss is high")
    form.locator("[name=value]").fill("five")
    form.locator("button", has_text="Test on history").click()
    expect(form.locator(".field", has=page.locator("[name=value]")).locator(".field-error")).to_contain_text("a number")
    form.locator("[name=condition]").select_option("z-score")
    form.locator("[name=value]").fill("6")
    form.locator("[name=window]").fill("3")
    form.locator("button", has_text="Save").click()
    refused = form.locator(".field", has=page.locator("[name=window]")).locator(".field-error")
    expect(refused).to_contain_text("20 to 500 values")
    form.locator("[name=condition]").select_option("above")
    expect(form.locator("[name=window]")).to_be_hidden()
    form.locator("[name=value]").fill("5")
    form.locator("button", has_text="Test on history").click()
    expect(page.locator(".fired")).to_have_text("It would have fired once")
    expect(page.locator("#rule-result")).to_contain_text("cooldown of 30 minutes swallowed it once, at step 90")
    form.locator("[name=cooldown_minutes]").fill("0")
    form.locator("button", has_text="Test on history").click()
    expect(page.locator(".fired")).to_have_text("It would have fired 2 times")
    expect(page.locator(".firings li b")).to_have_text(["step 40", "step 90"])
    expect(page.locator(".backtest .js-plotly-plot")).to_be_visible()
    expect(page.locator("#rule-result .note").first).to_contain_text(EVIL)
    assert page.evaluate("window.hacked") is None
    form.locator("button", has_text="Save").click()
    expect(page.locator(".item-words p")).to_contain_text(["any record missing", "loss above 5 · all runs"])
    page.set_viewport_size({"width": 390, "height": 844})
    expect_no_sideways_scroll(page)
    page.set_viewport_size({"width": 1440, "height": 900})

    with ingest(server) as socket:
        writer = Writer(socket)
        writer.hello("present", name="present", project="gpt")
        writer.commit(*(record(step, 9.0 if step == 20 else 1.0, time=time.time()) for step in range(25)))
        page.locator("nav a", has_text="Alerts").click()
        row = page.locator(".alert-row", has_text="Loss is high at step 20")
        expect(row).to_contain_text("loss is 9, above 5")
        row.locator("button", has_text="Acknowledge").click()
        expect(row.locator(".done")).to_have_text("Acknowledged")
        row.locator("button", has_text="Silence").click()
        expect(row.locator(".done").last).to_have_text("Silenced")
        writer.commit(*(record(step, 1.0, time=time.time()) for step in range(25, 60)))
        writer.finish()
        expect(row.locator(".alert-result")).to_have_text("resolved")

    page.locator("nav a", has_text="Rules").click()
    item = page.locator(".item", has_text="Loss is high")
    item.locator("button", has_text="Switch off").click()
    expect(item.locator(".pill", has_text="off")).to_be_visible()
    item.locator("button", has_text="Delete").click()
    item.locator("button", has_text="Really delete?").click()
    expect(page.locator(".item-name")).to_have_count(1)


def test_channels_and_quiet_hours_are_set_and_secrets_never_shown(server: Embedded, page: Page) -> None:
    secret = "https://hooks.slack.com/services/T00/B00/verysecretpart"
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("nav a", has_text="Settings").click()
    page.locator("button", has_text="New channel").click()
    form = page.locator("form[data-form=channel]")
    form.locator("[name=name]").fill("training")
    form.locator("button", has_text="Save").click()
    wrong = form.locator(".field", has=page.locator("[name=secret]")).locator(".field-error")
    expect(wrong).to_have_text("Secret is required")
    expect(form.locator("[name=channel]")).to_be_hidden()
    form.locator("[name=kind]").select_option("slack-bot")
    expect(form.locator("[name=channel]")).to_be_visible()
    expect(form.locator(".note:visible", has_text="xoxb-")).to_have_count(1)
    form.locator("[name=kind]").select_option("slack-webhook")
    form.locator("[name=secret]").fill(secret)
    form.locator("button", has_text="Save").click()
    item = page.locator("#channel-list .item")
    expect(item).to_contain_text("Slack, incoming webhook")
    item.locator("button", has_text="Switch off").click()
    expect(item.locator(".pill")).to_have_text("off")
    item.locator("button", has_text="Edit").click()
    expect(form.locator("[name=name]")).to_have_value("training")
    expect(form.locator("[name=secret]")).to_have_value("")
    form.locator("[name=name]").fill("alerts")
    form.locator("button", has_text="Save").click()
    expect(item.locator("b")).to_have_text("alerts")
    assert "verysecretpart" not in page.content()
    expect_no_sideways_scroll(page)

    quiet = page.locator("form[data-form=quiet]")
    quiet.locator("[name=on]").select_option("yes")
    quiet.locator("[name=start]").fill("9 pm")
    quiet.locator("button", has_text="Save").click()
    expect(quiet.locator(".field-error:visible")).to_have_text("enter a time of day, for example 22:00")
    quiet.locator("[name=start]").fill("21:00")
    quiet.locator("[name=timezone]").fill("Mars/Olympus")
    quiet.locator("button", has_text="Save").click()
    expect(quiet.locator(".field-error:visible")).to_contain_text("no such time zone")
    quiet.locator("[name=timezone]").fill("Europe/Berlin")
    quiet.locator("button", has_text="Save").click()
    expect(quiet.locator(".form-message")).to_have_text("Saved.")

    silences = page.locator("#silence-list")
    silences.locator("[name=reason]").fill("maintenance")
    silences.locator("button", has_text="Silence").click()
    expect(silences.locator(".item").first).to_contain_text("every alert")
    with server.api() as api:
        found = api.get("/notifications").json()
        assert (found["quiet_hours"]["start"], found["quiet_hours"]["timezone"]) == ("21:00", "Europe/Berlin")
        assert [silence["reason"] for silence in found["silences"]] == ["maintenance"]
    silences.locator("button", has_text="End").click()
    expect(silences.locator(".none")).to_have_text("Nothing is silenced.")
    item.locator("button", has_text="Remove").click()
    item.locator("button", has_text="Really remove?").click()
    expect(page.locator("#channel-list .none")).to_contain_text("No channel yet")


def test_a_token_is_shown_once_and_revoked(server: Embedded, page: Page) -> None:
    page.locator("nav a", has_text="Settings").click()
    tokens = page.locator("#token-list")
    tokens.locator("[name=label]").fill("cluster")
    tokens.locator("[name=project]").fill("gpt")
    tokens.locator("button", has_text="New token").click()
    secret = tokens.locator("code").inner_text()
    with httpx.Client(base_url=f"{server.url}/api/v1", headers={"Authorization": f"Bearer {secret}"}) as api:
        assert api.get("/runs").status_code == 200
        page.reload()
        expect(tokens.locator(".item").first).to_contain_text("write · project gpt")
        assert secret not in page.content()
        tokens.locator("button", has_text="Revoke").click()
        tokens.locator("button", has_text="Really revoke?").click()
        expect(tokens.locator(".none")).to_be_visible()
        assert api.get("/runs").status_code == 401


def test_the_pages_open_by_their_address(server: Embedded, page: Page, tmp_path: Path) -> None:
    for path, title in (("/rules", "Rules"), ("/settings", "Settings")):
        page.goto(server.url + path)
        expect(page.locator("h1")).to_have_text(title)
        expect(page.locator(".status .state")).to_have_text("live")
