"""Every other channel, by an apprise URL: Discord, Teams, e-mail, PagerDuty, ntfy, Telegram…

apprise blocks and looks names up by itself. It runs in threads of its own with a deadline, in which every connection is
checked at the moment when it is made (`guarded_thread`), and it follows no redirects.

It tells success from failure and no more, but it logs why: its plugins put the status of HTTP into such a line. What
has none there may pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from client_sdk.vocabulary import AlertLevel
from server.errors import ForbiddenAddressError
from server.notification import Change
from server.notifications.guarded_thread import public_addresses_only
from server.notifications.notification_text import Notification, plain_text
from server.notifications.outcomes import Answer, DeliveryOutcome, delivery_outcome

_STATUS: Final = re.compile(r"\berror=(\d{3})\b")

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


class _Failures(logging.Handler):
    """Why apprise failed in this thread, from its own log; which goes nowhere else, as its lines name the URL."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._here = threading.local()

    def listen(self) -> None:
        logger = logging.getLogger("apprise")
        if self not in logger.handlers:
            logger.handlers = [self]
            logger.propagate = False
            logger.setLevel(logging.WARNING)

    @contextlib.contextmanager
    def collected(self) -> Iterator[list[int | None]]:
        """The status of each failure within the block, None where there was none."""
        found: list[int | None] = []
        self._here.found = found
        try:
            yield found
        finally:
            del self._here.found

    def emit(self, record: logging.LogRecord) -> None:
        found = getattr(self._here, "found", None)
        if found is not None:
            status = _STATUS.search(record.getMessage())
            found.append(None if status is None else int(status[1]))


_FAILURES: Final = _Failures()


def outcome_of(failures: Sequence[int | None]) -> Answer:
    """What an attempt that failed is taken for: for good only where every part of it failed for good.

    >>> [outcome_of(found).status for found in ([404], [404, 503], [404, None], [403, 404], [])]
    [404, 503, None, 403, None]
    """
    fates = {status: delivery_outcome(Answer(status=status)) for status in failures}
    passing = [status for status in failures if fates[status] is DeliveryOutcome.RETRY]
    status = next(iter(passing or failures), None)
    return Answer(status=status, code="apprise could not deliver it" + ("" if status else "; it says no more"))


class AppriseSender:
    """Threads that are shared by all apprise channels; `close` lets them go."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="apprise")

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def post(self, url: str, message: Notification) -> Answer:
        try:
            async with asyncio.timeout(TIMEOUT):
                return await asyncio.get_running_loop().run_in_executor(self._executor, self._send, url, message)
        except TimeoutError:
            return Answer(status=None, code="no answer in time")

    def _send(self, url: str, message: Notification) -> Answer:
        import apprise

        _FAILURES.listen()
        asset = apprise.AppriseAsset(app_id="Spikewatch", secure_logging=True, async_mode=False)
        plugin = apprise.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)
        if plugin is None:
            return Answer(status=404, code="apprise cannot read the URL")
        plugin.redirects = False  # whatever the URL says
        guard = contextlib.nullcontext() if self._allow_private else public_addresses_only()
        try:
            with guard, _FAILURES.collected() as failures:
                arrived = plugin.notify(
                    title=inert(message.headline),
                    body=_body(message),
                    notify_type=_notify_type(message),
                    body_format=apprise.NotifyFormat.TEXT,
                )
        except ForbiddenAddressError as error:
            return Answer(status=None, code=str(error), forbidden=True)
        if arrived:
            return Answer(status=200)
        return outcome_of(failures)


def _body(message: Notification) -> str:
    """Everything but our own link is inert."""
    link = "" if message.links is None else message.links.run
    return "\n".join(line if line == link else inert(line) for line in plain_text(message).splitlines())


def _notify_type(message: Notification) -> Any:
    import apprise

    if message.change in (Change.RESOLVED, Change.FALSE_ALARM):
        return apprise.NotifyType.SUCCESS
    if message.level == AlertLevel.CRITICAL:
        return apprise.NotifyType.FAILURE
    return apprise.NotifyType.WARNING if message.alert is not None or message.members else apprise.NotifyType.INFO
