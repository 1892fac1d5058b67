"""Sessions of page loads. Each waits for news, refreshes its page at its own pace and pushes updates to the browser.

Flow control is end to end: after every push the session asks the browser for a property and waits for the answer, which
arrives only after the browser has processed the push. A slow browser therefore receives fewer, newer frames, and no
queue grows. Everything runs on the event loop of the websocket, except building and encoding of figures, which run in a
thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from dash.exceptions import WebsocketDisconnected

from client_sdk.answers import LiveFrame
from dashboard import ids
from dashboard.client import ApiError, ApiRefusedError
from dashboard.dash_private import component_key
from dashboard.stream.feed import RELOAD_EVERY, LiveFeed, Mailbox, News
from dashboard.stream.live_part import LivePart, Refresh, Update
from dashboard.stream.status import status
from dashboard.stream.view import View

logger = logging.getLogger(__name__)

BEAT_EVERY: Final = 2.0  # seconds; view.js shows "offline" after five missed beats
ACK_TIMEOUT: Final = 30.0  # seconds; a suspended tab answers when it resumes, so the session asks again
RETRY_AFTER: Final = 1.0  # seconds after an error of the API
REST_SHARE: Final = 3.0  # fetching and drawing may use a third of the time
BROWSER_REST_SHARE: Final = 1.5  # processing frames may use two thirds of the browser's time
CATCHING_UP: Final = 3.0  # seconds behind the commit from which the header reads "catching up"


class PageSocket(Protocol):
    """Methods of Dash's websocket callback that a session uses."""

    def set_prop_sync(self, component_id: str, prop_name: str, value: Any) -> None:
        """Queue a new value of one property. Thread-safe."""

    async def get_prop(self, component_id: str, prop_name: str, timeout: float) -> Any:  # noqa: ASYNC109, Dash's name
        """Return a property as the browser has it. Raises `TimeoutError` or `WebsocketDisconnected`."""


PartFactory = Callable[[View], LivePart | None]
"""Function that creates the live part of the page that a view names; None if the page has none."""


class Session:
    """One page load of one browser, served by one live callback of Dash."""

    def __init__(
        self,
        socket: PageSocket,
        feed: LiveFeed,
        make_part: PartFactory,
        *,
        tab: str,
        max_refresh_rate: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``tab``: name of the page load, by which the session recognises the answers of its own browser.

        ``max_refresh_rate``: upper limit of refreshes per second.
        """
        self._socket = socket
        self._feed = feed
        self._make_part = make_part
        self._tab = tab
        self._min_interval = 1.0 / max_refresh_rate
        self._clock = clock
        self._monotonic = monotonic
        self._view: View | None = None
        self._view_changed = asyncio.Event()
        self._mailbox: Mailbox | None = None
        self._task: asyncio.Task[None] | None = None
        self._behind: float | None = None
        self._beat_due = 0.0
        self._notice = ""

    def show(self, view: View | None) -> None:
        """Show another view from now on; None changes nothing."""
        if view is None:
            return
        self._view = view
        self._view_changed.set()
        if self._mailbox is not None:
            self._mailbox.arrived.set()

    def close(self) -> None:
        """End `serve`, because the browser has opened another session."""
        if self._task is not None:
            self._task.cancel()

    async def serve(self) -> None:
        """Serve the page until it is closed. Dash cancels the callback when its websocket closes."""
        self._task = asyncio.current_task()
        with self._feed.subscribe() as mailbox:
            self._mailbox = mailbox
            try:
                while True:
                    while self._view is None:
                        await mailbox.arrived.wait()
                        mailbox.take()
                    view = self._view
                    part = self._make_part(view)
                    mailbox.watch(part.run_id if part is not None else None)
                    await self._serve_page(view, part, mailbox)
            except WebsocketDisconnected:
                return

    async def _serve_page(self, first_view: View, part: LivePart | None, mailbox: Mailbox) -> None:
        """Keep one page live until the browser opens another one."""
        shown: View | None = None
        due = 0.0
        mailbox.put(LiveFrame(type="resync"))
        self._behind = None
        while (view := self._view) is not None and view.address == first_view.address:
            self._view_changed.clear()
            now = self._monotonic()
            news_waits = mailbox.arrived.is_set()
            if part is not None and (view is not shown or (news_waits and now >= due)):
                news = mailbox.take()
                try:
                    refresh = await part.refresh(view, news, self._clock())
                except ApiError as error:
                    mailbox.put(LiveFrame(type="resync"))
                    await self._show_error(error)
                    due, shown = self._monotonic() + RETRY_AFTER, view
                    continue
                if self._view is not None and self._view.address != first_view.address:
                    return
                self._measure(news)
                fetched = self._monotonic() - now
                await self._push(refresh)
                self._measure(news)
                processed = self._monotonic() - now
                due = now + max(self._min_interval, REST_SHARE * fetched, BROWSER_REST_SHARE * processed)
                shown = view
            elif news_waits and part is not None:
                await _wait(self._view_changed, due - now)
            else:
                mailbox.take()
                if now >= self._beat_due:
                    await self._beat(part, view)
                await _wait(mailbox.arrived, max(self._beat_due - self._monotonic(), 0.0))

    def _measure(self, news: News) -> None:
        """Update the delay between the commit and the frame, when it is sent and again when the browser has it."""
        if news.committed_at is not None:
            self._behind = max(self._clock() - news.committed_at, 0.0)

    async def _beat(self, part: LivePart | None, view: View) -> None:
        await self._push(part.idle(view, self._clock()) if part is not None else Refresh(tone="muted", word=""))

    async def _show_error(self, error: ApiError) -> None:
        word, notice = "refused" if isinstance(error, ApiRefusedError) else "server not reachable", str(error)
        is_over = isinstance(error, ApiRefusedError) and error.status == 401
        if is_over:
            word, notice = "signed out", "This login has ended. The page will ask for a new one."
        logger.info("refresh failed", extra={"action": "refresh-failed", "error": str(error)})
        await self._push(Refresh(tone="danger", word=word, notice=notice))
        if is_over:
            self._socket.set_prop_sync(ids.BEAT, "data", ids.SIGNED_OUT)
            raise WebsocketDisconnected

    async def _push(self, refresh: Refresh) -> None:
        """Send one frame and wait until the browser has processed it."""
        tone, word, detail = refresh.tone, refresh.word, refresh.detail
        since = self._feed.offline_since
        if since is not None and word == "live":
            tone, word = "danger", "offline since " + time.strftime("%H:%M:%S", time.localtime(since))
        elif self._feed.is_degraded and word == "live":
            tone, word = "warn", "live view degraded"
            # The interval stands first, because a narrow page cuts off the rest.
            detail = f"read every {RELOAD_EVERY:g} s · {detail}"
        elif self._behind is not None and word == "live":
            if self._behind > CATCHING_UP:
                tone, word = "warn", "catching up"
            detail += f" · {self._behind:.1f} s behind"
        updates = [
            *refresh.updates,
            Update(component=ids.STATUS, props={"children": status(tone, word, detail)}),
            *(
                []
                if refresh.notice == self._notice
                else [Update(component=ids.NOTICE, props={"children": refresh.notice})]
            ),
            Update(component=ids.BEAT, props={"data": self._clock()}),
        ]
        self._notice = refresh.notice
        await asyncio.to_thread(self._encode, updates)
        while True:
            try:
                tab = await self._socket.get_prop(ids.TAB, "data", ACK_TIMEOUT)
            except TimeoutError:
                continue
            if tab != self._tab:
                raise WebsocketDisconnected  # another page load answered
            self._beat_due = self._monotonic() + BEAT_EVERY
            return

    def _encode(self, updates: Sequence[Update]) -> None:
        """Queue updates. Called in a thread, because encoding a large figure takes milliseconds."""
        for update in updates:
            for name, value in update.props.items():
                self._socket.set_prop_sync(component_key(update.component), name, value)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, for at most the given seconds."""
    try:
        await asyncio.wait_for(event.wait(), timeout=max(seconds, 0.001))
    except TimeoutError:
        return
