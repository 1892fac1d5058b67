"""Sends what the outbox holds. Every server runs one; the database decides which of them sends for a channel.

Owns when to look, how many channels at once, and what follows from an answer. A message is sent again only when its
answer was lost: the attempt timed out, or the server died between the answer and its note. It carries the same id then.
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
from server.notification import Change, Channel, ChannelKind
from server.notifications.messenger import Messenger
from server.notifications.notification_text import Notification, alert_notification, digest_notification
from server.notifications.outcomes import Answer, DeliveryOutcome, delay, delivery_outcome, words
from server.notifications.policy import Delivery, incidents_after, plan_deliveries
from server.storage.outbox import OutboxStore

logger = logging.getLogger(__name__)

LEASE: Final = 60.0
"""Seconds after which another sender goes on where one has died. Longer than any attempt."""
POLL: Final = 5.0
"""Seconds between two looks for what other servers have left."""
CHANNELS_AT_ONCE: Final = 8
KEPT: Final = 7 * 86_400.0
"""Seconds for which messages that were sent can be looked up in the database."""
FORGET_EVERY: Final = 3_600.0  # seconds
RETRY_AFTER: Final = 5.0
"""Seconds after an error of our own."""
NOTE_DELAYS: Final = (0.2, 1.0, 3.0, 10.0)
"""Seconds between attempts to write down what has arrived, together well within the lease."""
STOP_TIMEOUT: Final = 5.0
"""Seconds that attempts in flight have at shutdown: one that is cut off might arrive twice."""

Paint = Callable[[str, int, tuple[int, int, int] | None], Awaitable[bytes | None]]
"""A picture of a run up to a step, with the low, best and high step of what is predicted. None: nothing to see."""


class Dispatcher:
    """Used from the event loop alone."""

    def __init__(
        self,
        outbox: OutboxStore,
        messenger: Messenger,
        paint: Paint,
        clock: Callable[[], float],
        *,
        lease: float = LEASE,
        poll: float = POLL,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._outbox = outbox
        self._messenger = messenger
        self._paint = paint
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
        """Attempts by the channel's kind and their `DeliveryOutcome`, for /metrics."""

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Something may have been written to the outbox."""
        self._awake.set()

    async def stop(self) -> None:
        """Let attempts in flight end, for a while. What waits is sent by another server, or after the next start."""
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
                wait = await self._look()
            except Exception as error:  # whatever it is, the next look comes
                _report("alerts wait to be sent", error)
            try:
                async with asyncio.timeout(wait):
                    await self._awake.wait()
            except TimeoutError:
                continue

    async def _look(self) -> float:
        """Begin with what is due, and say in how many seconds to look again."""
        now = self._clock()
        if now - self._forgot_at > FORGET_EVERY:
            self._forgot_at = now
            await self._outbox.forget(now - KEPT)
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
        self._awake.set()  # what came in the meantime, and for other channels

    async def _serve(self, channel: Channel) -> None:
        """Send everything that a claimed channel waits for, then let it go."""
        try:
            while not self._stopping and await self._round(channel):
                pass
            await self._outbox.release(channel.id, self._owner)
        except Exception as error:  # one channel's trouble must not stop the others; its lease ends by itself
            _report(f"the channel {channel.name!r} waits", error)
            await self._put_off(channel, error)

    async def _put_off(self, channel: Channel, error: Exception) -> None:
        try:
            reason = f"an error of this server ({type(error).__name__}); its log says more"
            await self._outbox.retry_later(channel.id, self._owner, self._clock() + RETRY_AFTER, reason)
            await self._outbox.release(channel.id, self._owner)
        except DatabaseError as again:
            _report(f"the channel {channel.name!r} is not released before its lease ends", again)

    async def _round(self, channel: Channel) -> bool:
        """One look at all that waits; False when nothing is left to do now."""
        now = self._clock()
        box = await self._outbox.read(channel.id, now)
        if not box.waiting:
            return False
        todo = plan_deliveries(channel, box.waiting, box.notified, box.settings, now)
        for rows, note in todo.skip:
            await self._outbox.skip([row.id for row in rows], note, now)
        for rows, until in todo.hold:
            await self._outbox.hold_back([row.id for row in rows], until)
        for delivery in todo.send:
            if self._stopping or not await self._send(channel, delivery, box.settings.digest.window_seconds):
                return False
        return True

    async def _send(self, channel: Channel, delivery: Delivery, window: float) -> bool:
        """One attempt; False when the channel must wait."""
        if not await self._outbox.begin(channel.id, self._owner, delivery.ids, self._clock() + self._lease):
            return False
        message = self._message(delivery, window)
        thread = None if delivery.incident is None else delivery.incident.thread
        answer = await self._messenger.deliver(channel, message, thread)
        outcome = delivery_outcome(answer)
        self.counts[channel.kind, outcome] += 1
        extra = {
            "action": f"notification_{outcome}",
            "channel_id": channel.id,
            "message_id": message.id,
            "answer": str(answer),
        }
        now = self._clock()
        if outcome is DeliveryOutcome.SENT:
            await self._note(channel, delivery, answer, now)
            logger.info("%s was told: %s", channel.name, message.headline, extra=extra)
            await self._illustrate(channel, delivery, message, answer)
            return True
        if outcome is DeliveryOutcome.REFUSED:
            await self._outbox.give_up(delivery.ids, str(answer), now)
            logger.error("%s refused a message (%s)", channel.name, answer, extra=extra)
            return True
        if outcome is DeliveryOutcome.DEAD:
            await self._outbox.disable(channel.id, words(answer), now)
            logger.error("the channel %s is switched off (%s)", channel.name, answer, extra=extra)
            return False
        wait = delay(channel.failures + 1, answer, self._uniform)
        await self._outbox.retry_later(channel.id, self._owner, now + wait, str(answer))
        logger.warning("%s: next try in %.0f s (%s)", channel.name, wait, answer, extra=extra)
        return False

    async def _note(self, channel: Channel, delivery: Delivery, answer: Answer, now: float) -> None:
        """Write down that it arrived. What is not written down is sent again, so this tries for a while."""
        known = incidents_after(delivery, answer.thread, now)
        for wait in NOTE_DELAYS:
            try:
                return await self._outbox.sent(channel.id, self._owner, delivery.ids, known, now)
            except DatabaseError as error:
                _report(f"that {channel.name!r} was told is not written down yet", error)
                await asyncio.sleep(wait)
        return await self._outbox.sent(channel.id, self._owner, delivery.ids, known, now)

    def _message(self, delivery: Delivery, window: float) -> Notification:
        url = self._messenger.public_url
        if delivery.is_digest:
            return digest_notification(delivery.reports, window, url)
        return alert_notification(delivery.reports[0], delivery.incident, url)

    async def _illustrate(self, channel: Channel, delivery: Delivery, message: Notification, answer: Answer) -> None:
        """A picture of what a new incident looks like, after the message, which does not wait for it."""
        if channel.kind is not ChannelKind.SLACK_BOT or not channel.settings.get("picture", True):
            return
        if delivery.is_digest or delivery.incident is not None or message.change is not Change.OPENED:
            return
        alert = delivery.reports[0].alert
        date = alert.predicted_step
        band = None if date is None else (date.low, date.best, date.high)
        picture = await self._paint(alert.run_id, alert.updated_step, band)
        if picture is not None:
            await self._messenger.illustrate(channel, answer, picture)


def _report(what: str, error: Exception) -> None:
    expected = isinstance(error, DatabaseError)
    logger.log(
        logging.WARNING if expected else logging.ERROR,
        "%s (%s)",
        what,
        error,
        exc_info=None if expected else error,
        extra={"action": "sender_failed"},
    )
