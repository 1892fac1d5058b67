"""Background task that sends what waits in the outbox. Every server runs one; a lease in the database decides which of
them serves a channel.

A notification is sent twice only if the answer of an attempt was lost: the attempt timed out, or the server died
before it could record the answer. The repetition carries the same id.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from server.errors import DatabaseError
from server.log_actions import LogAction
from server.notification import Change, Channel
from server.notifications.channels.registry import kind_named
from server.notifications.messenger import Messenger
from server.notifications.notification_text import Notification, alert_notification, digest_notification
from server.notifications.outcomes import Answer, DeliveryOutcome, delay, delivery_outcome, disabled_reason
from server.notifications.policy import Delivery, incidents_after, plan_deliveries
from server.storage.outbox import OutboxStore

logger = logging.getLogger(__name__)

LEASE: Final = 60.0
"""Lease of a channel in seconds, after which another server takes over. It is longer than any attempt."""
POLL: Final = 5.0
"""Seconds between two searches for rows that another server has left."""
CHANNELS_AT_ONCE: Final = 8
RETENTION: Final = 7 * 86_400.0
"""Seconds for which sent notifications stay in the database."""
FORGET_INTERVAL: Final = 3_600.0  # seconds
RETRY_AFTER: Final = 5.0
"""Seconds until a channel is tried again after an error of this server."""
RECORD_DELAYS: Final = (0.2, 1.0, 3.0, 10.0)
"""Seconds between attempts to record a success in the database; their sum is well within the lease."""
STOP_TIMEOUT: Final = 5.0
"""Seconds that running attempts have at shutdown; an aborted one might be sent twice."""

RenderPicture = Callable[[str, int, tuple[int, int, int] | None], Awaitable[bytes | None]]
"""Function that draws a run up to a step, with the low, best and high step of a prediction.

It returns a PNG, or None if there is nothing to show.
"""


class Dispatcher:
    """Task that claims channels with waiting rows, and sends them. Used from the event loop alone."""

    def __init__(
        self,
        outbox: OutboxStore,
        messenger: Messenger,
        render_picture: RenderPicture,
        clock: Callable[[], float],
        *,
        lease: float = LEASE,
        poll: float = POLL,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """``clock`` returns Unix time, ``uniform`` the random part of a wait; ``lease`` and ``poll`` are in seconds."""
        self._outbox = outbox
        self._messenger = messenger
        self._render_picture = render_picture
        self._clock = clock
        self._lease = lease
        self._poll = poll
        self._uniform = uniform
        self._owner = str(uuid.uuid4())
        self._awake = asyncio.Event()
        self._stopping = False
        self._serving: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._forgot_at = float("-inf")
        self.counts: Counter[tuple[str, str]] = Counter()
        """Number of delivery attempts by kind of channel and `DeliveryOutcome`, for /metrics."""

    def start(self) -> None:
        """Start the task in the running event loop."""
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Look for waiting rows soon, because the outbox may have changed."""
        self._awake.set()

    async def stop(self) -> None:
        """Stop, and let running attempts finish for up to `STOP_TIMEOUT`. Waiting rows stay in the outbox."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._serving:
            _, late = await asyncio.wait(self._serving, timeout=STOP_TIMEOUT)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._awake.clear()
            wait = self._poll
            try:
                wait = await self._claim_due_channels()
            except Exception as error:  # whatever it was, the next round may succeed
                _log_failure("notifications are delayed", error)
            try:
                async with asyncio.timeout(wait):
                    await self._awake.wait()
            except TimeoutError:
                continue

    async def _claim_due_channels(self) -> float:
        """Start serving the channels with due rows, and return the seconds until the next search."""
        now = self._clock()
        if now - self._forgot_at > FORGET_INTERVAL:
            self._forgot_at = now
            await self._outbox.forget(now - RETENTION)
        due = await self._outbox.next_due()
        if due is None:
            return self._poll
        if due > now:
            return min(self._poll, due - now)
        while len(self._serving) < CHANNELS_AT_ONCE:
            channel = await self._outbox.claim(self._owner, now, now + self._lease)
            if channel is None:
                break
            task = asyncio.create_task(self._serve(channel))
            self._serving.add(task)
            task.add_done_callback(self._served)
        return self._poll

    def _served(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        self._awake.set()  # rows may have arrived in the meantime, and other channels may wait for a free slot

    async def _serve(self, channel: Channel) -> None:
        """Send everything that waits for a claimed channel, then release the channel."""
        try:
            while not self._stopping and await self._send_waiting(channel):
                pass
            await self._outbox.release(channel.id, self._owner)
        except Exception as error:  # the other channels go on; the lease of this one ends by itself
            _log_failure(f"the channel {channel.name!r} is delayed", error)
            await self._postpone(channel, error)

    async def _postpone(self, channel: Channel, error: Exception) -> None:
        try:
            reason = f"an error of this server ({type(error).__name__}); see its log"
            await self._outbox.retry_later(channel.id, self._owner, self._clock() + RETRY_AFTER, reason)
            await self._outbox.release(channel.id, self._owner)
        except DatabaseError as again:
            _log_failure(f"the channel {channel.name!r} stays claimed until its lease ends", again)

    async def _send_waiting(self, channel: Channel) -> bool:
        """Handle all rows that wait now; return False if nothing is left to do, or the channel must wait."""
        now = self._clock()
        backlog = await self._outbox.read(channel.id, now)
        if not backlog.waiting:
            return False
        known, settings, sent_times = backlog.notified, backlog.settings, backlog.sent_times
        plan = plan_deliveries(channel, backlog.waiting, known, settings, now, sent_times=sent_times)
        for rows, reason in plan.skip:
            await self._outbox.skip([row.id for row in rows], reason, now)
        for rows, until in plan.hold:
            await self._outbox.hold_back([row.id for row in rows], until)
        for delivery in plan.send:
            if self._stopping or not await self._send(channel, delivery, backlog.settings.digest.window_seconds):
                return False
        return True

    async def _send(self, channel: Channel, delivery: Delivery, window: float) -> bool:
        """Make one delivery attempt; return False if the channel must wait."""
        if not await self._outbox.begin(channel.id, self._owner, delivery.ids, self._clock() + self._lease):
            return False
        notification = self._notification(delivery, window)
        thread = None if delivery.incident is None else delivery.incident.thread
        answer = await self._messenger.deliver(channel, notification, thread)
        outcome = delivery_outcome(answer)
        self.counts[channel.kind, outcome] += 1
        extra = {
            "action": LogAction[f"NOTIFICATION_{outcome.name}"],
            "channel_id": channel.id,
            "message_id": notification.id,
            "answer": str(answer),
        }
        now = self._clock()
        if outcome is DeliveryOutcome.SENT:
            await self._record_success(channel, delivery, answer, now)
            logger.info("sent to %s: %s", channel.name, notification.headline, extra=extra)
            await self._send_picture(channel, delivery, notification, answer)
            return True
        if outcome is DeliveryOutcome.REFUSED:
            await self._outbox.give_up(delivery.ids, str(answer), now)
            logger.error("%s rejected a notification (%s)", channel.name, answer, extra=extra)
            return True
        if outcome is DeliveryOutcome.DEAD:
            await self._outbox.disable(channel.id, disabled_reason(answer), now)
            logger.error("the channel %s is switched off (%s)", channel.name, answer, extra=extra)
            return False
        wait = delay(channel.failures + 1, answer, self._uniform)
        await self._outbox.retry_later(channel.id, self._owner, now + wait, str(answer))
        logger.warning("%s: next delivery attempt in %.0f s (%s)", channel.name, wait, answer, extra=extra)
        return False

    async def _record_success(self, channel: Channel, delivery: Delivery, answer: Answer, now: float) -> None:
        """Record that a notification arrived, with several tries: what is not recorded is sent again."""
        incidents = incidents_after(delivery, answer.thread, now)
        for wait in RECORD_DELAYS:
            try:
                return await self._outbox.sent(channel.id, self._owner, delivery.ids, incidents, now)
            except DatabaseError as error:
                _log_failure(f"a notification sent to {channel.name!r} is not recorded yet", error)
                await asyncio.sleep(wait)
        return await self._outbox.sent(channel.id, self._owner, delivery.ids, incidents, now)

    def _notification(self, delivery: Delivery, window: float) -> Notification:
        url = self._messenger.public_url
        if delivery.is_digest:
            return digest_notification(delivery.reports, window, url)
        return alert_notification(delivery.reports[0], delivery.incident, url)

    async def _send_picture(
        self, channel: Channel, delivery: Delivery, notification: Notification, answer: Answer
    ) -> None:
        """Send a picture after the first notification of an incident, which does not wait for the picture."""
        if not kind_named(channel.kind).wants_picture(channel.settings):
            return
        if delivery.is_digest or delivery.incident is not None or notification.change is not Change.OPENED:
            return
        alert = delivery.reports[0].alert
        date = alert.predicted_step
        band = None if date is None else (date.low, date.best, date.high)
        picture = await self._render_picture(alert.run_id, alert.updated_step, band)
        if picture is not None:
            await self._messenger.attach_picture(channel, answer, picture)


def _log_failure(what: str, error: Exception) -> None:
    """Log a failure of this server, with a traceback unless the database was unavailable."""
    expected = isinstance(error, DatabaseError)
    logger.log(
        logging.WARNING if expected else logging.ERROR,
        "%s (%s)",
        what,
        error,
        exc_info=None if expected else error,
        extra={"action": LogAction.SENDER_FAILED},
    )
