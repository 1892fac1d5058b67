"""Tests of a session: end-to-end flow control, errors, and its end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from client_sdk.answers import LiveFrame
from dashboard import ids
from dashboard.client import ApiRefusedError, ApiUnavailableError
from dashboard.config import DashboardConfig
from dashboard.stream.feed import LiveFeed, News
from dashboard.stream.live_part import Refresh, Update
from dashboard.stream.session import Session
from dashboard.stream.view import View

FLEET = View(page="fleet")


class Browser:
    """The browser's end of a page, which acknowledges frames while `gate` is open."""

    def __init__(self) -> None:
        self.props: dict[tuple[str, str], Any] = {}
        self.sent = 0
        self.acknowledged = asyncio.Queue[int]()
        self.gate = asyncio.Event()
        self.gate.set()
        self.tab = "tab"

    def set_prop_sync(self, component_id: str, prop_name: str, value: Any) -> None:
        self.props[component_id, prop_name] = value
        self.sent += 1

    async def get_prop(self, component_id: str, prop_name: str, timeout: float) -> Any:  # noqa: ASYNC109, Dash's name
        assert (component_id, prop_name) == (ids.TAB, "data")
        if not self.gate.is_set():
            await asyncio.wait_for(self.gate.wait(), timeout)
        self.acknowledged.put_nowait(self.sent)
        return self.tab

    def status(self) -> str:
        state, detail = self.props[ids.STATUS, "children"]
        return f"{state.children[1]} {detail.children}"


class RecordingPart:
    """A live part that counts its refreshes and records the news."""

    run_id = None

    def __init__(self) -> None:
        self.news: list[News] = []
        self.views: list[View] = []
        self.failures = 0
        self.refusal: ApiRefusedError | None = None
        self.asked = asyncio.Queue[int]()

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        if self.failures:
            self.failures -= 1
            raise ApiUnavailableError("no answer from the server")
        if self.refusal is not None:
            raise self.refusal
        self.news.append(news)
        self.views.append(view)
        self.asked.put_nowait(len(self.news))
        update = Update(component="frame", props={"data": len(self.news)})
        return Refresh(updates=(update,), tone="ok", word="live", detail="detail")

    def idle(self, view: View, now: float) -> Refresh:
        return Refresh(updates=(), tone="ok", word="live", detail="idle")


class Scene:
    """A running session with its browser and page."""

    def __init__(self) -> None:
        self.browser, self.page = Browser(), RecordingPart()
        self.feed = LiveFeed(DashboardConfig(api_url="http://127.0.0.1:1"))
        self.session = Session(self.browser, self.feed, lambda _: self.page, tab="tab", max_refresh_rate=1000.0)

    async def __aenter__(self) -> Scene:
        self.task = asyncio.create_task(self.session.serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def publish(self, message: LiveFrame) -> None:
        self.feed.fan_out(message)

    async def shown(self, frame: int) -> None:
        """Wait until the browser has acknowledged this frame."""
        while self.browser.props.get(("frame", "data"), 0) < frame:
            await asyncio.wait_for(self.browser.acknowledged.get(), 10)


async def test_nothing_is_fetched_before_the_browser_sends_its_view() -> None:
    async with Scene() as scene:
        await asyncio.sleep(0)
        assert scene.page.news == []
        scene.session.show(FLEET)
        await scene.shown(1)
        assert scene.page.news[0].resync


async def test_a_slow_browser_loses_frames_and_no_memory() -> None:
    async with Scene() as scene:
        scene.session.show(FLEET)
        await scene.shown(1)
        scene.browser.gate.clear()
        scene.publish(LiveFrame(type="advance", run_id="a", committed_at=1.0))
        while await asyncio.wait_for(scene.page.asked.get(), 10) < 2:
            pass
        for _ in range(5_000):
            scene.publish(LiveFrame(type="advance", run_id="a", committed_at=2.0))
            await asyncio.sleep(0)
        assert len(scene.page.news) == 2, "one frame is on its way, none waits behind it"
        scene.browser.gate.set()
        await scene.shown(3)
        assert len(scene.page.news) == 3, "five thousand advances became one frame"


async def test_a_new_view_is_drawn_without_waiting_for_news() -> None:
    async with Scene() as scene:
        scene.session.show(FLEET)
        await scene.shown(1)
        scene.session.show(View(page="fleet", theme="light"))
        await scene.shown(2)
        assert scene.page.views[-1].theme == "light"


async def test_an_api_that_does_not_answer_is_reported_and_asked_again() -> None:
    async with Scene() as scene:
        scene.page.failures = 1
        scene.session.show(FLEET)
        await asyncio.wait_for(scene.browser.acknowledged.get(), 10)
        assert scene.browser.status() == "server not reachable "
        assert scene.browser.props[ids.NOTICE, "children"] == "no answer from the server"
        await scene.shown(1)
        assert scene.page.news[0].resync, "what was missed is asked for again"
        assert scene.browser.props[ids.NOTICE, "children"] == ""


async def test_a_login_that_has_ended_is_reported_and_not_asked_again() -> None:
    async with Scene() as scene:
        scene.page.refusal = ApiRefusedError(401, "unauthenticated", "give a token")
        scene.session.show(FLEET)
        await asyncio.wait_for(scene.task, 10)
        assert scene.browser.status() == "signed out "
        assert "has ended" in scene.browser.props[ids.NOTICE, "children"]
        assert scene.browser.props[ids.BEAT, "data"] == ids.SIGNED_OUT
        assert not scene.page.news


async def test_a_disconnected_feed_is_not_shown_as_live() -> None:
    async with Scene() as scene:
        scene.session.show(FLEET)
        await scene.shown(1)
        assert scene.browser.status().startswith("offline since ")


async def test_a_delay_is_shown_and_a_long_one_reads_catching_up() -> None:
    async with Scene() as scene:
        scene.session.show(FLEET)
        await scene.shown(1)
        scene.feed.offline_since = None
        scene.publish(LiveFrame(type="advance", run_id="a", committed_at=1.0))
        await scene.shown(2)
        assert scene.browser.status().startswith("catching up detail · ")
        assert scene.browser.status().endswith(" s behind")


async def test_the_session_ends_when_another_page_answers() -> None:
    async with Scene() as scene:
        scene.browser.tab = "another page load"
        scene.session.show(FLEET)
        await asyncio.wait_for(scene.task, 10)


async def test_closing_ends_the_session_and_its_subscription() -> None:
    async with Scene() as scene:
        scene.session.show(FLEET)
        await scene.shown(1)
        scene.session.close()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(scene.task, 10)
        assert scene.feed.offline_since is not None
        assert scene.feed.subscriber_count == 0
