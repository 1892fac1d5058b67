"""The live tail: one websocket to the server for all open pages of this process, fanned out to their mailboxes.

After a loss of the connection it goes on where it was, by the cursor of the last message: nothing is missed and nothing
has to be read anew. Where the server says that something is missing, the pages ask for everything again.

Bounded everywhere: a mailbox keeps the latest state per run, not a queue of messages, so that a page that looks away
for an hour costs no more than one that looks every second.
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
READ_ANEW_EVERY = 5.0  # seconds, while the live view is degraded


@dataclass(kw_only=True)
class News:
    """What happened since a mailbox was last emptied."""

    runs: dict[str, RunSummary] = field(default_factory=dict)
    alerts: dict[str, Alert] = field(default_factory=dict)
    advanced: bool = False
    committed_at: float | None = None  # Unix time of the oldest commit not yet shown
    events: bool = False
    resync: bool = False
    """Something was missed, or the connection changed: ask for everything again."""

    def __bool__(self) -> bool:
        return bool(self.runs or self.alerts or self.advanced or self.events or self.resync)


class Mailbox:
    """What one page has not looked at yet. Used on one event loop."""

    def __init__(self, run_id: str | None = None) -> None:
        self._run_id = run_id
        self._news = News()
        self.arrived = asyncio.Event()

    def watch(self, run_id: str | None) -> None:
        """From now on only about this run, or about all of them; forgets what was there."""
        self._run_id = run_id
        self._news = News()
        self.arrived.clear()

    def take(self) -> News:
        """Everything since the last call."""
        news, self._news = self._news, News()
        self.arrived.clear()
        return news

    def put(self, message: LiveFrame) -> None:
        """Merge one message; later ones replace earlier ones of the same thing."""
        news = self._news
        # An error says why the socket closes; the API tells the page what it means for it, a login that has ended say.
        if message.type in ("resync", "degraded", "restored", "error"):
            news.resync = True
        elif message.type == "run" and message.run is not None and self._wants(message.run.id):
            news.runs[message.run.id] = message.run
        elif message.type == "advance" and self._wants(message.run_id):
            news.advanced = True
            if news.committed_at is None:
                news.committed_at = message.committed_at
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
    """The connection to the server's live socket: open while any page is, reconnecting, shared by all."""

    def __init__(self, config: DashboardConfig, clock: Callable[[], float] = time.time) -> None:
        self._url = config.live_url
        self._headers = {"Authorization": f"Bearer {config.token}"} if config.token else {}
        self._clock = clock
        self._mailboxes: set[Mailbox] = set()
        self._task: asyncio.Task[None] | None = None
        self._decoder = msgspec.json.Decoder(LiveFrame)
        self._cursor: str | None = None
        self.offline_since: float | None = clock()
        """Unix time of the loss of the connection; None while connected."""
        self.is_degraded = False
        """Whether only a part of what happens is pushed; then pages read everything anew now and then."""

    @property
    def subscriber_count(self) -> int:
        """Number of open pages."""
        return len(self._mailboxes)

    @contextmanager
    def subscribe(self) -> Iterator[Mailbox]:
        """A mailbox for as long as the block runs; the first one connects, the last one disconnects."""
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
            reading_anew = asyncio.create_task(self._read_anew())
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
                reading_anew.cancel()
            if self.offline_since is None:
                self.offline_since = self._clock()
            await asyncio.sleep(RETRY_DELAYS[min(failures, len(RETRY_DELAYS) - 1)])
            failures += 1

    async def _read_anew(self) -> None:
        while True:
            await asyncio.sleep(READ_ANEW_EVERY)
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
