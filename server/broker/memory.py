"""Interface of brokers, and the broker of a single server."""

from __future__ import annotations

import contextlib
import secrets
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import msgspec

from server.broker.live_message import RESYNC, Interest, LiveMessage, QueuedMessage, control_message
from server.broker.subscription import Subscription

MAX_DIGITS = 20
TAIL_BYTES = 8 * 1024 * 1024
"""Maximum total size in bytes of the messages kept for subscribers that come back. The summary of a run contains its
configuration, which may have 1 MiB.
"""


class Broker(Protocol):
    """Sends live messages to the subscribers of a run. Start it before use, and stop it afterwards."""

    @property
    def is_degraded(self) -> bool:
        """Whether subscribers receive only the messages of this server."""
        ...

    async def check(self) -> None:
        """Raise `ConfigurationError` if the settings cannot work. An outage raises nothing."""
        ...

    async def start(self) -> None:
        """Start receiving messages."""

    async def stop(self) -> None:
        """Release all resources."""

    async def publish(self, message: LiveMessage) -> None:
        """Send a message to the subscribers of its run, on this and all other servers. Never waits and never fails."""
        ...

    def subscribe(
        self,
        *,
        run_ids: frozenset[str] | None,
        project: str | None,
        types: frozenset[str] | None = None,
        cursor: str | None = None,
    ) -> contextlib.AbstractAsyncContextManager[Subscription]:
        """Subscribe to messages until the block ends.

        ``run_ids`` and ``project`` restrict the messages to some runs and to one project; None does not restrict them.
        ``types`` are the types of messages; None means all types that viewers see. ``cursor`` is that of the last
        message that the subscriber received from any server. Later messages are delivered first; if they are no longer
        available, a `RESYNC` is delivered instead.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class _Past:
    """Message kept for subscribers that come back."""

    number: int
    run_id: str
    project: str
    queued: QueuedMessage


class MemoryBroker:
    """Broker within one process. A cursor is ``BROKER-NUMBER``; the number counts the messages of this broker."""

    def __init__(self, capacity: int, *, tail: int = 4096) -> None:
        """Create a broker.

        ``capacity`` is the maximum number of messages queued for each subscriber. ``tail`` is the maximum number of
        messages kept for subscribers that come back; `TAIL_BYTES` bounds their size.
        """
        self._capacity = capacity
        self._name = secrets.token_hex(6)
        self._number = 0
        self._past: deque[_Past] = deque()
        self._tail = tail
        self._past_bytes = 0
        self._subscribers: set[Subscription] = set()

    @property
    def is_degraded(self) -> bool:
        return False

    async def check(self) -> None:
        return None

    async def start(self) -> None:
        return None

    async def stop(self) -> None:
        return None

    async def publish(self, message: LiveMessage) -> None:
        self._number += 1
        queued = QueuedMessage(
            type=message.type, cursor=self._cursor(self._number), payload=msgspec.json.encode(message.body)
        )
        self._keep(_Past(number=self._number, run_id=message.run_id, project=message.project, queued=queued))
        for subscription in self._subscribers:
            if subscription.interest.covers(message.run_id, message.project, message.type):
                subscription.offer(queued)

    @contextlib.asynccontextmanager
    async def subscribe(
        self,
        *,
        run_ids: frozenset[str] | None,
        project: str | None,
        types: frozenset[str] | None = None,
        cursor: str | None = None,
    ) -> AsyncIterator[Subscription]:
        subscription = Subscription(self._capacity, Interest(run_ids=run_ids, project=project, types=types))
        seen = self._seen(cursor)
        subscription.cursor = self._cursor(self._number if seen is None else seen)
        subscription.is_resumed = seen is not None
        if seen is not None:
            for past in self._past:
                if past.number > seen and subscription.interest.covers(past.run_id, past.project, past.queued.type):
                    subscription.offer(past.queued)
        elif cursor is not None:
            subscription.offer(control_message(RESYNC, subscription.cursor))
        self._subscribers.add(subscription)
        try:
            yield subscription
        finally:
            self._subscribers.discard(subscription)

    def _keep(self, message: _Past) -> None:
        self._past.append(message)
        self._past_bytes += len(message.queued.payload)
        while len(self._past) > self._tail or self._past_bytes > TAIL_BYTES:
            self._past_bytes -= len(self._past.popleft().queued.payload)

    def _cursor(self, number: int) -> str:
        return f"{self._name}-{number}"

    def _seen(self, cursor: str | None) -> int | None:
        """Return the number of a cursor after which no message is missing, or None."""
        name, _, text = (cursor or "").partition("-")
        if name != self._name or not text.isdecimal() or len(text) > MAX_DIGITS:
            return None
        number = int(text)
        oldest = self._past[0].number if self._past else self._number + 1
        return number if oldest - 1 <= number <= self._number else None
