"""Delivery of one notification to one channel, by the channel's kind."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from client_sdk import answers
from server.auth.secret_box import SecretBox
from server.errors import SecretLostError
from server.notification import Channel
from server.notifications.channels.channel_kind import DeliveryContext, Target
from server.notifications.channels.registry import kind_named
from server.notifications.notification_text import Notification, channel_test_notification
from server.notifications.outbound import Outbound
from server.notifications.outcomes import Answer, DeliveryOutcome, delivery_outcome

THREADS: Final = 4
"""Number of threads for libraries that block, shared by all channels."""


class Messenger:
    """Sender of single notifications. Used from one event loop; `close` releases its connections and threads."""

    def __init__(
        self,
        *,
        outbound: Outbound,
        secrets: SecretBox,
        slack_api_url: str,
        public_url: str,
        clock: Callable[[], float],
    ) -> None:
        """``public_url`` is the address of the dashboard that notifications link to."""
        self._secrets = secrets
        self.public_url = public_url
        self._outbound = outbound
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="notification")
        self._context = DeliveryContext(
            outbound=outbound, threads=self._threads, slack_api_url=slack_api_url, clock=clock
        )

    @property
    def allow_private(self) -> bool:
        """Whether channels may lead into the server's own network."""
        return self._outbound.allow_private

    async def close(self) -> None:
        """Close the connections, without waiting for threads that are still sending."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._outbound.close()

    async def deliver(self, channel: Channel, notification: Notification, thread: str | None = None) -> Answer:
        """Make one delivery attempt. Errors of the channel are part of the answer and are not raised."""
        try:
            target = self._target(channel)
        except SecretLostError as error:
            return Answer(status=None, code=str(error), forbidden=True)
        return await kind_named(channel.kind).deliver(self._context, target, notification, thread)

    async def attach_picture(self, channel: Channel, posted: Answer, picture: bytes) -> None:
        """Post a PNG picture below a notification."""
        await kind_named(channel.kind).attach_picture(self._context, self._target(channel), posted, picture)

    async def test(self, channel: Channel) -> answers.ChannelTest:
        """Send a test message now, and return the answer of the receiving service with its duration in seconds."""
        notification = channel_test_notification(str(uuid.uuid4()), channel.name, self.public_url, self._clock())
        started = asyncio.get_running_loop().time()
        answer = await self.deliver(channel, notification)
        return answers.ChannelTest(
            ok=delivery_outcome(answer) is DeliveryOutcome.SENT,
            answer=str(answer),
            seconds=round(asyncio.get_running_loop().time() - started, 3),
        )

    def _target(self, channel: Channel) -> Target:
        contents = self._secrets.open(channel.encrypted_secrets)
        return Target(secret=contents["secret"], signing_key=contents.get("signing_key", ""), settings=channel.settings)
