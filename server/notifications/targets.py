"""What people enter for a channel: checked when it is saved, and hinted at afterwards."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from server.errors import ForbiddenAddressError
from server.notification import ChannelKind
from server.notifications.addresses import check_host, check_url
from server.notifications.apprise_channel import hosts_of

SIGNING_KEY_PREFIX: Final = "swsk_"
LOCAL_SCHEMAS: Final = frozenset({"dbus", "gio", "glib", "gnome", "kde", "qt", "macosx", "windows", "syslog", "pipe"})
"""Channels of apprise that act on the server's own machine."""


class TargetError(ValueError):
    """The secret or a setting of a channel cannot work; the text says what to do."""

    def __init__(self, reason: str, field: str = "secret") -> None:
        """``field``: path of the field at fault, "secret" or "settings.…"."""
        super().__init__(reason)
        self.field = field


def new_signing_key() -> str:
    """What a webhook is signed with: 256 random bits."""
    return SIGNING_KEY_PREFIX + secrets.token_urlsafe(32)


def check_target(kind: ChannelKind, secret: str, settings: Mapping[str, Any], *, allow_private: bool) -> None:
    """Raises `TargetError`. Looks nothing up; for a thread, because it may import apprise."""
    if kind is ChannelKind.SLACK_BOT:
        if not secret.startswith("xoxb-") or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise TargetError("give the bot token of a Slack app; it begins with xoxb-")
        if not settings.get("channel"):
            message = "give settings.channel, the id (C…) or the name of the Slack channel to post in"
            raise TargetError(message, "settings.channel")
        return
    if kind is ChannelKind.APPRISE:
        _check_apprise(secret, allow_private=allow_private)
        return
    try:
        check_url(secret, allow_private=allow_private)
    except ForbiddenAddressError as error:
        raise TargetError(str(error)) from error


def hint(kind: ChannelKind, secret: str, settings: Mapping[str, Any]) -> str:
    """What is shown of a target: enough to know it, nothing that opens it.

    >>> hint(ChannelKind.SLACK_WEBHOOK, "https://hooks.slack.com/services/T0/B0/secret", {})
    'hooks.slack.com/…'
    >>> hint(ChannelKind.APPRISE, "discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js", {})
    'discord://…'
    """
    if kind is ChannelKind.SLACK_BOT:
        return str(settings.get("channel", ""))
    if kind is ChannelKind.APPRISE:
        return f"{secret.partition('://')[0]}://…"
    return f"{urlsplit(secret).hostname}/…"


def _check_apprise(url: str, *, allow_private: bool) -> None:
    schema, separator, _ = url.partition("://")
    if not separator or "\n" in url:
        raise TargetError("give one apprise URL, for example discord://WEBHOOK_ID/WEBHOOK_TOKEN")
    if schema.lower() in LOCAL_SCHEMAS or schema.lower() == "file":
        raise TargetError(f"{schema}:// acts on the server itself and is not supported")
    import apprise  # takes a quarter of a second, and only those who use it wait

    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its messages name the URL
    plugin = apprise.Apprise.instantiate(url, suppress_exceptions=True)
    if plugin is None:
        raise TargetError("apprise cannot read this URL; https://github.com/caronc/apprise/wiki lists how each looks")
    for host in () if allow_private else hosts_of(plugin):
        try:
            check_host(host)
        except ForbiddenAddressError as error:
            raise TargetError(str(error)) from error
