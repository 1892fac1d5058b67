"""The kinds of channels in the order in which they are offered. To add one, write its module and list it here."""

from __future__ import annotations

from typing import Final

from server.notifications.channels.apprise_url import AppriseUrl
from server.notifications.channels.channel_kind import ChannelKind
from server.notifications.channels.slack_bot import SlackBot
from server.notifications.channels.slack_webhook import SlackWebhook
from server.notifications.channels.webhook import SignedWebhook

KINDS: Final[tuple[ChannelKind, ...]] = (SlackWebhook(), SlackBot(), AppriseUrl(), SignedWebhook())

_BY_NAME: Final = {kind.name: kind for kind in KINDS}


def kind_named(name: str) -> ChannelKind:
    """Return the kind with this name. Raises `KeyError` if there is none.

    >>> kind_named("webhook").label
    'signed JSON webhook'
    """
    return _BY_NAME[name]
