"""The replay of a run on its page, on a real server in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from websockets.sync.client import connect

from tests.support.embedded import Embedded, embedded
from tests.support.postgres import Postgres
from tests.support.writer import Writer, record

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Yield a server with a finished run whose loss spiked at step 80, on each kind of database in turn."""
    with ExitStack() as stack:
        settings: dict[str, Any] = {}
        if request.param == "postgres":
            postgres = Postgres()
            stack.callback(postgres.stop)
            settings["database_url"] = postgres.create_database()
        started = stack.enter_context(embedded(tmp_path_factory.mktemp("server"), **settings))
        url = started.url.replace("http", "ws", 1) + "/api/v1/ingest"
        headers = {"Authorization": f"Bearer {started.token}"}
        with connect(url, additional_headers=headers, compression=None) as socket:
            writer = Writer(socket)
            writer.hello("spiky", name="spiky", project="gpt")
            writer.commit(*(record(step, 9.0 if 80 <= step < 90 else 1.0) for step in range(160)))
            writer.finish()
        yield started


@pytest.mark.parametrize("width", [1440, 390])
def test_a_run_is_replayed_beside_what_was_told(server: Embedded, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900 if width == 1440 else 844})
    page.goto(f"{server.url}/runs/spiky")
    form = page.locator("form[data-form=replay]")
    form.locator("[name=sensitivity]").select_option("more")
    form.locator("button", has_text="Replay this run").click()
    expect(form.locator(".form-message")).to_have_text("Replayed.")
    lists = page.locator(".replay-lists > div")
    expect(lists).to_have_count(2)
    for one in (lists.nth(0), lists.nth(1)):
        expect(one.locator("li").first).to_contain_text("Loss spike at step 80")
    expect(page.locator(".replay-words")).to_contain_text("160 records up to step 159")
    page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")
    boxes = [one.bounding_box() for one in (lists.nth(0), lists.nth(1))]
    assert boxes[0] is not None
    assert boxes[1] is not None
    is_beside = boxes[0]["y"] == boxes[1]["y"]
    assert is_beside is (width == 1440)
