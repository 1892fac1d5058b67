"""Brings one message to one channel, over the wire that fits its kind, and says what came back."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

from client_sdk import answers
from server.auth.secret_box import SecretBox
from server.errors import SecretLostError
from server.notification import Channel, ChannelKind
from server.notifications.apprise_channel import AppriseSender
from server.notifications.notification_text import Notification, channel_test_notification
from server.notifications.outbound import Outbound
from server.notifications.outcomes import Answer, DeliveryOutcome, delivery_outcome
from server.notifications.slack import SlackBot, post_webhook
from server.notifications.webhook import post_signed


class Messenger:
    def __init__(
        self,
        *,
        outbound: Outbound,
        secrets: SecretBox,
        slack_api_url: str,
        public_url: str,
        clock: Callable[[], float],
    ) -> None:
        self._outbound = outbound
        self._secrets = secrets
        self._slack_api_url = slack_api_url
        self.public_url = public_url
        self._clock = clock
        self._apprise = AppriseSender(allow_private=outbound.allow_private)

    @property
    def allow_private(self) -> bool:
        """Whether channels may lead into our own network."""
        return self._outbound.allow_private

    async def close(self) -> None:
        self._apprise.close()
        await self._outbound.close()

    async def deliver(self, channel: Channel, message: Notification, thread: str | None = None) -> Answer:
        """One attempt. Raises nothing that a channel could cause."""
        try:
            contents = self._secrets.open(channel.encrypted_secrets)
        except SecretLostError as error:
            return Answer(status=None, code=str(error), forbidden=True)
        secret = contents["secret"]
        if channel.kind is ChannelKind.SLACK_WEBHOOK:
            return await post_webhook(self._outbound, secret, message)
        if channel.kind is ChannelKind.SLACK_BOT:
            return await self._bot(channel, secret).post(message, thread)
        if channel.kind is ChannelKind.WEBHOOK:
            return await post_signed(self._outbound, secret, contents["signing_key"], message, self._clock())
        return await self._apprise.post(secret, message)

    async def illustrate(self, channel: Channel, posted: Answer, picture: bytes) -> None:
        """Put a picture under a message of a Slack bot."""
        await self._bot(channel, self._secrets.open(channel.encrypted_secrets)["secret"]).show(picture, posted)

    async def test(self, channel: Channel) -> answers.ChannelTest:
        """Send a test message now, and say what the other side said."""
        message = channel_test_notification(str(uuid.uuid4()), channel.name, self.public_url, self._clock())
        started = asyncio.get_running_loop().time()
        answer = await self.deliver(channel, message)
        return answers.ChannelTest(
            ok=delivery_outcome(answer) is DeliveryOutcome.SENT,
            answer=str(answer),
            seconds=round(asyncio.get_running_loop().time() - started, 3),
        )

    def _bot(self, channel: Channel, token: str) -> SlackBot:
        return SlackBot(self._outbound, token, str(channel.settings.get("channel", "")), self._slack_api_url)
