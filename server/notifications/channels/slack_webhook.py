"""Slack by an incoming webhook: messages without threads and pictures."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from client_sdk.answers import ChannelField
from server.notifications.channels.channel_kind import (
    ChannelKind,
    DeliveryContext,
    Target,
    check_secret_url,
    host_hint,
)
from server.notifications.notification_text import Notification
from server.notifications.outcomes import Answer
from server.notifications.slack_posting import post_with_fallback


class SlackWebhook(ChannelKind):
    """A Slack channel that is reached by the URL of an incoming webhook."""

    name: ClassVar = "slack-webhook"
    label: ClassVar = "Slack, incoming webhook"
    fields: ClassVar = (
        ChannelField(
            name="secret",
            label="Secret",
            secret=True,
            required=True,
            help="the webhook's URL; encrypted, never shown again",
        ),
    )

    def check(self, target: Target, *, allow_private: bool) -> None:
        """Raise `TargetError` if the secret is not a URL that may be posted to."""
        check_secret_url(target, allow_private=allow_private)

    def hint(self, target: Target) -> str:
        """Return the host of the webhook's URL.

        >>> SlackWebhook().hint(Target(secret="https://hooks.slack.com/services/T0/B0/secret"))
        'hooks.slack.com/…'
        """
        return host_hint(target)

    async def deliver(
        self, context: DeliveryContext, target: Target, notification: Notification, thread: str | None
    ) -> Answer:
        """Post the notification. Slack answers the word ``ok``."""
        del thread  # a webhook has no threads

        async def post(body: dict[str, Any]) -> Answer:
            headers = {"Content-Type": "application/json; charset=utf-8"}
            return await context.outbound.ask(target.secret, msgspec.json.encode(body), headers)

        return await post_with_fallback(post, notification)
