"""One open page: waits for news, refreshes what it shows at its own pace, and pushes it to its browser.

Flow control is end to end: after every push the session asks the browser for a property and waits for the answer, which
comes only after the push was taken in. A slow browser therefore gets fewer, newer frames, and nothing piles up for it.
All of it runs on the event loop of the websocket, except building and encoding, which run in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from dash._utils import stringify_id
from dash.exceptions import WebsocketDisconnected

from dashboard import ids
from dashboard.client import ApiError, ApiRefusedError
from dashboard.live import READ_ANEW_EVERY, LiveFeed, Mailbox, News
from dashboard.models import LiveMessage
from dashboard.pages.shell import status
from dashboard.pages.view import View

logger = logging.getLogger(__name__)

BEAT_EVERY: Final = 2.0  # seconds; view.js takes three missed beats for "offline"
ACK_TIMEOUT: Final = 30.0  # seconds; a frozen tab answers when it thaws
RETRY_AFTER: Final = 1.0  # seconds after the API could not answer
REST_SHARE: Final = 3.0  # asking and drawing may use one part in three of the server's time
BROWSER_REST_SHARE: Final = 1.5  # a frame may keep the browser busy for two parts in three of its time
CATCHING_UP: Final = 3.0  # seconds behind that are worth saying


class PageSocket(Protocol):
    """The part of Dash's websocket callback that a session uses."""

    def set_prop_sync(self, component_id: str, prop_name: str, value: Any) -> None:
        """Queue one property. Thread-safe."""

    async def get_prop(self, component_id: str, prop_name: str, timeout: float) -> Any:  # noqa: ASYNC109, Dash's name
        """Ask the browser; raises `TimeoutError` or `WebsocketDisconnected`."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """Properties of one component."""

    component: str | dict[str, str]
    props: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """What one refresh of a page wants shown, and how its header reads."""

    updates: Sequence[Update]
    tone: str
    """ok, warn, muted or danger."""
    word: str
    detail: str
    notice: str = ""


class LivePage(Protocol):
    """The moving part of one page."""

    async def refresh(self, view: View, news: News, now: float) -> Refresh:
        """Ask the API for what the news and the view call for. Raises `ApiError`."""

    def idle(self, view: View, now: float) -> Refresh:
        """The header, and whatever ages without news."""


PageFactory = Callable[[View], LivePage | None]


class Session:
    """The live callback of one page load."""

    def __init__(
        self,
        socket: PageSocket,
        feed: LiveFeed,
        make_page: PageFactory,
        *,
        tab: str,
        max_refresh_rate: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._socket = socket
        self._feed = feed
        self._make_page = make_page
        self._tab = tab
        self._least_interval = 1.0 / max_refresh_rate
        self._clock = clock
        self._monotonic = monotonic
        self._view: View | None = None
        self._looked = asyncio.Event()
        self._mailbox: Mailbox | None = None
        self._task: asyncio.Task[None] | None = None
        self._behind: float | None = None
        self._beat_due = 0.0
        self._notice = ""

    def look(self, view: View | None) -> None:
        """The browser looks at something else now."""
        if view is None:
            return
        self._view = view
        self._looked.set()
        if self._mailbox is not None:
            self._mailbox.arrived.set()

    def leave(self) -> None:
        """End `attend`: the browser has asked for another session."""
        if self._task is not None:
            self._task.cancel()

    async def attend(self) -> None:
        """Run until the page is closed; Dash cancels the callback when its websocket closes."""
        self._task = asyncio.current_task()
        with self._feed.subscribe() as mailbox:
            self._mailbox = mailbox
            try:
                while True:
                    while self._view is None:
                        await mailbox.arrived.wait()
                        mailbox.take()
                    view = self._view
                    page = self._make_page(view)
                    mailbox.watch(view.run_id)
                    await self._stay(view, page, mailbox)
            except WebsocketDisconnected:
                return

    async def _stay(self, arrived_at: View, page: LivePage | None, mailbox: Mailbox) -> None:
        """Keep one page live until the browser is somewhere else."""
        shown: View | None = None
        due = 0.0
        mailbox.put(LiveMessage(type="resync"))
        self._behind = None
        while (view := self._view) is not None and view.place == arrived_at.place:
            self._looked.clear()
            now = self._monotonic()
            news_waits = mailbox.arrived.is_set()
            if page is not None and (view is not shown or (news_waits and now >= due)):
                news = mailbox.take()
                try:
                    refresh = await page.refresh(view, news, self._clock())
                except ApiError as error:
                    mailbox.put(LiveMessage(type="resync"))
                    await self._show_trouble(error)
                    due, shown = self._monotonic() + RETRY_AFTER, view
                    continue
                if self._view is not None and self._view.place != arrived_at.place:
                    return
                self._measure(news)
                asked = self._monotonic() - now
                await self._push(refresh)
                self._measure(news)
                taken = self._monotonic() - now
                due = now + max(self._least_interval, REST_SHARE * asked, BROWSER_REST_SHARE * taken)
                shown = view
            elif news_waits and page is not None:
                await _wait(self._looked, due - now)
            else:
                mailbox.take()
                if now >= self._beat_due:
                    await self._beat(page, view)
                await _wait(mailbox.arrived, max(self._beat_due - self._monotonic(), 0.0))

    def _measure(self, news: News) -> None:
        """How far behind the commit a frame is: when it is sent, and again when the browser has it."""
        if news.committed_at is not None:
            self._behind = max(self._clock() - news.committed_at, 0.0)

    async def _beat(self, page: LivePage | None, view: View) -> None:
        quiet = Refresh(updates=(), tone="muted", word="", detail="")
        await self._push(page.idle(view, self._clock()) if page is not None else quiet)

    async def _show_trouble(self, error: ApiError) -> None:
        word, notice = "refused" if isinstance(error, ApiRefusedError) else "server not reachable", str(error)
        is_over = isinstance(error, ApiRefusedError) and error.status == 401
        if is_over:
            word, notice = "signed out", "This login has ended. The page will ask for a new one."
        logger.info("refresh failed", extra={"action": "refresh-failed", "error": str(error)})
        await self._push(Refresh(updates=(), tone="danger", word=word, detail="", notice=notice))
        if is_over:
            self._socket.set_prop_sync(ids.BEAT, "data", ids.SIGNED_OUT)
            raise WebsocketDisconnected

    async def _push(self, refresh: Refresh) -> None:
        """Send one frame and wait until the browser has taken it in."""
        tone, word, detail = refresh.tone, refresh.word, refresh.detail
        since = self._feed.offline_since
        if since is not None and word == "live":
            tone, word = "danger", "offline since " + time.strftime("%H:%M:%S", time.localtime(since))
        elif self._feed.is_degraded and word == "live":
            tone, word = "warn", "live view degraded"
            detail = f"read every {READ_ANEW_EVERY:g} s · {detail}"  # first: a narrow page shows no more of it
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
                raise WebsocketDisconnected  # the answer is that of another page load
            self._beat_due = self._monotonic() + BEAT_EVERY
            return

    def _encode(self, updates: Sequence[Update]) -> None:
        """Encoding a large figure takes milliseconds: called in a thread."""
        for update in updates:
            for name, value in update.props.items():
                self._socket.set_prop_sync(stringify_id(update.component), name, value)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event or the deadline, whichever comes first."""
    try:
        await asyncio.wait_for(event.wait(), timeout=max(seconds, 0.001))
    except TimeoutError:
        return
