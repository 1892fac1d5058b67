"""Every other channel, by an apprise URL: Discord, Teams, e-mail, PagerDuty, ntfy, Telegram…

apprise blocks, follows redirects and looks names up by itself. It runs in threads of its own with a deadline; the host
that a URL names is looked up and checked before each message, which a name that changes its mind within milliseconds
could get around. Hosts that a service itself chooses are not checked.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from server.errors import ForbiddenAddressError
from server.notices import Change
from server.notifications.addresses import check_host, is_public
from server.notifications.message import Message, plain_text
from server.notifications.outcomes import Answer

THREADS: Final = 4
TIMEOUT: Final = 20.0
"""Seconds; an e-mail server may take several answers."""

_INERT: Final = str.maketrans({"@": "＠", "<": "‹", ">": "›"})


def inert(text: str) -> str:
    """Text in which nothing calls people or leads anywhere, whatever markup the service reads.

    >>> inert("@everyone [x](http://a.b) <!channel>")
    '＠everyone [x] (http:∕∕a.b) ‹!channel›'
    """
    return text.translate(_INERT).replace("](", "] (").replace("://", ":∕∕")


def hosts_of(plugin: Any) -> list[str]:
    """The hosts that an apprise URL itself names. In most URLs the place of the host holds a part of the secret, which
    must not be looked up as a name."""
    named = any("{host}" in template for template in getattr(plugin, "templates", ()))
    hosts = [getattr(plugin, "host", None) if named else None, getattr(plugin, "smtp_host", None)]
    return [str(host) for host in hosts if host]


class AppriseSender:
    """Threads that are shared by all apprise channels; `close` lets them go."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="apprise")

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def post(self, url: str, message: Message) -> Answer:
        """apprise tells success from failure and no more: every failure may pass."""
        try:
            async with asyncio.timeout(TIMEOUT):
                return await asyncio.get_running_loop().run_in_executor(self._executor, self._send, url, message)
        except TimeoutError:
            return Answer(status=None, code="no answer in time")

    def _send(self, url: str, message: Message) -> Answer:
        import apprise

        logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its messages name the URL
        asset = apprise.AppriseAsset(app_id="Spikewatch", secure_logging=True, async_mode=False)
        plugin = apprise.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)
        if plugin is None:
            return Answer(status=404, code="apprise cannot read the URL")
        try:
            for host in hosts_of(plugin):
                self._check(host)
        except ForbiddenAddressError as error:
            return Answer(status=None, code=str(error), forbidden=True)
        arrived: Any = plugin.notify(
            title=inert(message.headline),
            body=_body(message),
            notify_type=_notify_type(message),
            body_format=apprise.NotifyFormat.TEXT,
        )
        if arrived:
            return Answer(status=200)
        return Answer(status=None, code="apprise could not deliver it; it says no more")

    def _check(self, host: str) -> None:
        """Raises `ForbiddenAddressError`. A name that cannot be looked up is left to apprise: it will fail there."""
        if self._allow_private:
            return
        check_host(host)
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        if not all(is_public(str(entry[4][0])) for entry in found):
            raise ForbiddenAddressError(
                f"{host} is an address of the server's own network; SPIKEWATCH_NOTIFY_ALLOW_PRIVATE=1 allows it"
            )


def _body(message: Message) -> str:
    """Everything but our own link is inert."""
    link = "" if message.links is None else message.links.run
    return "\n".join(line if line == link else inert(line) for line in plain_text(message).splitlines())


def _notify_type(message: Message) -> Any:
    import apprise

    if message.change in (Change.RESOLVED, Change.FALSE_ALARM):
        return apprise.NotifyType.SUCCESS
    if message.level == "critical":
        return apprise.NotifyType.FAILURE
    return apprise.NotifyType.WARNING if message.alert is not None or message.members else apprise.NotifyType.INFO
