"""The live feed: one websocket to the server for all pages of a login, whose messages reach the mailboxes of the pages.

After a lost connection the feed resumes at the cursor of the last message, so that nothing is missed or fetched again.
If the server reports a gap, the pages fetch everything again.

Memory is bounded: a mailbox merges messages into the latest state of each run and alert instead of queueing them, so a
page that reads once an hour costs no more than one that reads every second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import quote

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from client_sdk.answers import Alert, LiveFrame, RunSummary
from dashboard.config import DashboardConfig

logger = logging.getLogger(__name__)

MAX_ALERTS_KEPT = 256
MAX_FRAME_BYTES = 4 * 1024 * 1024
RETRY_DELAYS = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds; the last one repeats
RELOAD_EVERY = 5.0  # seconds between full fetches while the live view is degraded


@dataclass(kw_only=True)
class News:
    """Everything that has arrived in a mailbox since it was last read."""

    runs: dict[str, RunSummary] = field(default_factory=dict)
    """Newest summaries, keyed by run id."""
    alerts: dict[str, Alert] = field(default_factory=dict)
    """Changed alerts, keyed by alert id."""
    advanced: bool = False
    """Whether a run has new steps."""
    committed_at: float | None = None
    """Unix time of the oldest commit that is not yet shown; None without new steps."""
    deleted: set[str] = field(default_factory=set)
    """Ids of runs that were deleted."""
    events: bool = False
    """Whether a run has new events."""
    resync: bool = False
    """Whether messages may be missing, so that the page must fetch everything again."""

    def __bool__(self) -> bool:
        return bool(self.runs or self.alerts or self.advanced or self.deleted or self.events or self.resync)


class Mailbox:
    """News that one page has not read yet. Not thread-safe: used on one event loop."""

    def __init__(self, run_id: str | None = None) -> None:
        self._run_id = run_id
        self._news = News()
        self.arrived = asyncio.Event()
        """Event that is set while there are unread news."""

    def watch(self, run_id: str | None) -> None:
        """Receive only news of this run from now on, or of all runs for None, and drop unread news."""
        self._run_id = run_id
        self._news = News()
        self.arrived.clear()

    def take(self) -> News:
        """Return the news since the last call."""
        news, self._news = self._news, News()
        self.arrived.clear()
        return news

    def put(self, message: LiveFrame) -> None:
        """Merge a message into the news. Later states of a run or alert replace earlier ones."""
        news = self._news
        # After an error the socket closes. Fetching again shows the page the reason, such as the end of its login.
        if message.type in ("resync", "degraded", "restored", "error"):
            news.resync = True
        elif message.type == "run" and message.run is not None and self._wants(message.run.id):
            news.runs[message.run.id] = message.run
        elif message.type == "advance" and self._wants(message.run_id):
            news.advanced = True
            if news.committed_at is None:
                news.committed_at = message.committed_at
        elif message.type == "deleted" and message.run_id is not None and self._wants(message.run_id):
            news.deleted.add(message.run_id)
            news.runs.pop(message.run_id, None)
        elif message.type == "event" and self._wants(message.run_id):
            news.events = True
        elif message.type == "alert" and message.alert is not None and self._wants(message.alert.run_id):
            if len(news.alerts) >= MAX_ALERTS_KEPT:
                news.alerts.clear()
                news.resync = True
            news.alerts[message.alert.id] = message.alert
        if news:
            self.arrived.set()

    def _wants(self, run_id: str | None) -> bool:
        return self._run_id is None or run_id == self._run_id


class LiveFeed:
    """The connection to the server's live websocket. It is open while any page is, and reconnects after a loss."""

    def __init__(self, config: DashboardConfig, clock: Callable[[], float] = time.time) -> None:
        self._url = config.live_url
        self._headers = {"Authorization": f"Bearer {config.token}"} if config.token else {}
        self._clock = clock
        self._mailboxes: set[Mailbox] = set()
        self._task: asyncio.Task[None] | None = None
        self._decoder = msgspec.json.Decoder(LiveFrame)
        self._cursor: str | None = None
        self.offline_since: float | None = clock()
        """Unix time at which the connection was lost; None while connected."""
        self.is_degraded = False
        """Whether the server pushes only some messages; pages then fetch everything every `RELOAD_EVERY` seconds."""

    @property
    def subscriber_count(self) -> int:
        """Number of open pages."""
        return len(self._mailboxes)

    @contextmanager
    def subscribe(self) -> Iterator[Mailbox]:
        """Yield a mailbox while the block runs. The first one connects the feed, the last one disconnects it."""
        mailbox = Mailbox()
        self._mailboxes.add(mailbox)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._stay_connected())
        try:
            yield mailbox
        finally:
            self._mailboxes.discard(mailbox)
            if not self._mailboxes and self._task is not None:
                self._task.cancel()
                self._task = None
                self._cursor = None
                self.offline_since = self._clock()

    async def _stay_connected(self) -> None:
        failures = 0
        while True:
            url = self._url if self._cursor is None else f"{self._url}?cursor={quote(self._cursor)}"
            reloading = asyncio.create_task(self._reload())
            try:
                async with connect(
                    url, additional_headers=self._headers, max_size=MAX_FRAME_BYTES, proxy=None
                ) as socket:
                    failures = 0
                    self.offline_since = None
                    self.is_degraded = False
                    async for frame in socket:
                        self._receive(frame)
            except (OSError, WebSocketException) as error:
                logger.info("live feed lost", extra={"action": "live-lost", "error": str(error)})
            finally:
                reloading.cancel()
            if self.offline_since is None:
                self.offline_since = self._clock()
            await asyncio.sleep(RETRY_DELAYS[min(failures, len(RETRY_DELAYS) - 1)])
            failures += 1

    async def _reload(self) -> None:
        while True:
            await asyncio.sleep(RELOAD_EVERY)
            if self.is_degraded:
                self.fan_out(LiveFrame(type="resync"))

    def _receive(self, frame: str | bytes) -> None:
        try:
            message = self._decoder.decode(frame)
        except msgspec.DecodeError:
            logger.warning("unreadable live message", extra={"action": "live-malformed"})
            return
        if message.cursor is not None:
            self._cursor = message.cursor
        match message.type:
            case "subscribed" if not message.resumed:
                message = LiveFrame(type="resync")
            case "degraded":
                self.is_degraded = True
            case "restored":
                self.is_degraded = False
        self.fan_out(message)

    def fan_out(self, message: LiveFrame) -> None:
        """Put a message into the mailboxes of all open pages."""
        for mailbox in self._mailboxes:
            mailbox.put(message)
