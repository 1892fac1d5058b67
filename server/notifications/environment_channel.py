"""A Slack channel from the environment, for those who want alerts before they have seen a page."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from server.auth.secret_box import SecretBox
from server.errors import ConfigurationError, SecretLostError
from server.notification import Channel, ChannelKind
from server.notifications.targets import TargetError, check_target, hint
from server.storage.channels import ChannelStore

CHANNEL_ID: Final = "slack-webhook-of-the-environment"


def check_environment_channel(url: str, *, allow_private: bool) -> None:
    """Raises `ConfigurationError` for a URL that cannot work."""
    try:
        check_target(ChannelKind.SLACK_WEBHOOK, url, {}, allow_private=allow_private)
    except TargetError as error:
        raise ConfigurationError(f"SPIKEWATCH_SLACK_WEBHOOK: {error}") from error


async def add_environment_channel(channels: ChannelStore, secrets: SecretBox, url: str, now: float) -> None:
    """Keep one channel for this URL. What people changed of it stays, until the URL is another one."""
    known = await channels.get(CHANNEL_ID)
    if known is None:
        await channels.add_once(
            Channel(
                id=CHANNEL_ID,
                name="Slack (from the environment)",
                kind=ChannelKind.SLACK_WEBHOOK,
                target=hint(ChannelKind.SLACK_WEBHOOK, url, {}),
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
        await channels.put(
            replace(known, encrypted_secrets=secrets.seal({"secret": url}), enabled=True, disabled_reason=None)
        )
