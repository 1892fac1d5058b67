"""The Slack channel that the environment variable SPIKEWATCH_SLACK_WEBHOOK creates, without any other setup."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from server.auth.secret_box import SecretBox
from server.errors import ConfigurationError, SecretLostError
from server.notification import Channel
from server.notifications.channels.channel_kind import Target, TargetError
from server.notifications.channels.slack_webhook import SlackWebhook
from server.storage.channels import ChannelStore

CHANNEL_ID: Final = "slack-webhook-of-the-environment"
KIND: Final = SlackWebhook()


def check_environment_channel(url: str, *, allow_private: bool) -> None:
    """Raise `ConfigurationError` if the URL cannot work."""
    try:
        KIND.check(Target(secret=url), allow_private=allow_private)
    except TargetError as error:
        raise ConfigurationError(f"SPIKEWATCH_SLACK_WEBHOOK: {error}") from error


async def add_environment_channel(channels: ChannelStore, secrets: SecretBox, url: str, now: float) -> None:
    """Create the channel for this URL unless it exists. Settings that people changed stay until the URL changes."""
    known = await channels.get(CHANNEL_ID)
    if known is None:
        await channels.add_once(
            Channel(
                id=CHANNEL_ID,
                name="Slack (from the environment)",
                kind=KIND.name,
                target=KIND.hint(Target(secret=url)),
                encrypted_secrets=secrets.seal({"secret": url}),
                created_at=now,
            )
        )
        return
    try:
        is_same = secrets.open(known.encrypted_secrets)["secret"] == url
    except SecretLostError:
        is_same = False
    if not is_same:
        encrypted = secrets.seal({"secret": url})
        await channels.put(replace(known, encrypted_secrets=encrypted, enabled=True, disabled_reason=None))
