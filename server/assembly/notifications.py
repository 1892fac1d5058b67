"""Builds the parts that send notifications: the channels with their secrets, the outbox and the dispatcher."""

from __future__ import annotations

import time
from dataclasses import dataclass

from server.auth.secret_box import SecretBox, load_secret_box
from server.config import Config
from server.metrics import Metrics
from server.notifications.dispatcher import Dispatcher
from server.notifications.environment_channel import add_environment_channel, check_environment_channel
from server.notifications.messenger import Messenger
from server.notifications.outbound import Outbound
from server.notifications.picture import PictureRenderer
from server.storage.channels import ChannelStore
from server.storage.database import Database
from server.storage.measurements.series import SeriesQuery
from server.storage.outbox import OutboxStore
from server.storage.runs import RunStore


@dataclass(frozen=True, kw_only=True)
class Notifications:
    """Parts that send notifications about alerts."""

    channels: ChannelStore
    secrets: SecretBox
    messenger: Messenger
    outbox: OutboxStore
    dispatcher: Dispatcher
    slack_webhook: str | None
    """Slack webhook of the environment, which becomes a channel at the start."""

    async def start(self) -> None:
        """Add the channel of the environment and start to send."""
        if self.slack_webhook is not None:
            await add_environment_channel(self.channels, self.secrets, self.slack_webhook, time.time())
        self.dispatcher.start()

    async def stop(self) -> None:
        """Stop sending and close the connections of the channels."""
        await self.dispatcher.stop()
        await self.messenger.close()


def make_notifications(config: Config, database: Database, series: SeriesQuery, metrics: Metrics) -> Notifications:
    """Return the parts that send notifications, whose pictures are drawn from ``series``.

    Raises `ConfigurationError`.
    """
    if config.slack_webhook is not None:
        check_environment_channel(config.slack_webhook, allow_private=config.notify_allow_private)
    secrets = load_secret_box(config.secret_key, config.secret_key_file)
    messenger = Messenger(
        outbound=Outbound(allow_private=config.notify_allow_private),
        secrets=secrets,
        slack_api_url=config.slack_api_url,
        public_url=config.open_url,
        clock=time.time,
    )
    outbox = OutboxStore(database)
    dispatcher = Dispatcher(outbox, messenger, PictureRenderer(series, RunStore(database)).render, time.time)
    metrics.pull(
        "notifications",
        "Attempts to send a notification.",
        "counter",
        lambda: {(str(kind), str(outcome)): float(count) for (kind, outcome), count in dispatcher.counts.items()},
        "channel",
        "outcome",
    )
    return Notifications(
        channels=ChannelStore(database),
        secrets=secrets,
        messenger=messenger,
        outbox=outbox,
        dispatcher=dispatcher,
        slack_webhook=config.slack_webhook,
    )
