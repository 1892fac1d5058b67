"""Every other service by an apprise URL: Discord, Teams, e-mail, PagerDuty, ntfy, Telegram…

apprise blocks, and it resolves names and connects by itself. It therefore runs in threads with a deadline, in which
every connection is checked at the moment when it is made (`guarded_thread`), and it follows no redirects.

apprise reports success or failure and nothing else, but its plugins log the HTTP status of a failure. A failure without
a status is retried.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

from client_sdk.answers import ChannelField
from client_sdk.vocabulary import AlertLevel
from server.errors import ForbiddenAddressError
from server.notification import Change
from server.notifications.addresses import check_host
from server.notifications.channels.channel_kind import ChannelKind, DeliveryContext, Target, TargetError
from server.notifications.guarded_thread import public_addresses_only
from server.notifications.notification_text import Notification, plain_text
from server.notifications.outcomes import Answer, DeliveryOutcome, delivery_outcome

TIMEOUT: Final = 20.0
"""Deadline of one attempt in seconds; an e-mail server needs several round trips."""
LOCAL_SCHEMAS: Final = frozenset(
    {"dbus", "file", "gio", "glib", "gnome", "kde", "qt", "macosx", "windows", "syslog", "pipe"}
)
"""Schemas of apprise that act on the server's own machine."""

_STATUS: Final = re.compile(r"\berror=(\d{3})\b")
_LOOK_ALIKES: Final = str.maketrans({"@": "＠", "<": "‹", ">": "›"})


class AppriseUrl(ChannelKind):
    """A service that apprise supports."""

    name: ClassVar = "apprise"
    label: ClassVar = "another service, apprise URL"
    fields: ClassVar = (
        ChannelField(
            name="secret",
            label="Secret",
            secret=True,
            required=True,
            help="the apprise URL, such as discord://…; encrypted, never shown again",
        ),
    )

    def check(self, target: Target, *, allow_private: bool) -> None:
        """Raise `TargetError` if apprise cannot read the URL, or the URL leads to the server's own network."""
        url = target.secret
        schema, separator, _ = url.partition("://")
        if not separator or "\n" in url:
            raise TargetError("secret", "enter one apprise URL, for example discord://WEBHOOK_ID/WEBHOOK_TOKEN")
        if schema.lower() in LOCAL_SCHEMAS:
            raise TargetError("secret", f"{schema}:// acts on the server itself and is not supported")
        import apprise  # takes a quarter of a second, so only those who use it wait

        logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its log lines contain the URL
        plugin = apprise.Apprise.instantiate(url, suppress_exceptions=True)
        if plugin is None:
            raise TargetError(
                "secret", "apprise cannot read this URL; https://github.com/caronc/apprise/wiki lists the formats"
            )
        for host in () if allow_private else hosts_of(plugin):
            try:
                check_host(host)
            except ForbiddenAddressError as error:
                raise TargetError("secret", str(error)) from error

    def hint(self, target: Target) -> str:
        """Return the schema of the URL, which names the service.

        >>> AppriseUrl().hint(Target(secret="discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js"))
        'discord://…'
        """
        return f"{target.secret.partition('://')[0]}://…"

    async def deliver(
        self, context: DeliveryContext, target: Target, notification: Notification, thread: str | None
    ) -> Answer:
        """Let apprise send the notification in one of the shared threads."""
        del thread  # apprise has no threads
        allow_private = context.outbound.allow_private
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(TIMEOUT):
                return await loop.run_in_executor(context.threads, _send, target.secret, notification, allow_private)
        except TimeoutError:
            return Answer(status=None, code="no answer in time")


def neutralized(text: str) -> str:
    """Return text in which nothing mentions people or is a link, whatever markup the service supports.

    >>> neutralized("@everyone [x](http://a.b) <!channel>")
    '＠everyone [x] (http:∕∕a.b) ‹!channel›'
    """
    return text.translate(_LOOK_ALIKES).replace("](", "] (").replace("://", ":∕∕")


def hosts_of(plugin: Any) -> list[str]:
    """Return the host names that an apprise URL contains.

    Most plugins keep a part of the secret where a URL has its host; those are left out, because a secret must not be
    looked up as a name.
    """
    named = any("{host}" in template for template in getattr(plugin, "templates", ()))
    hosts = [getattr(plugin, "host", None) if named else None, getattr(plugin, "smtp_host", None)]
    return [str(host) for host in hosts if host]


def answer_for(failures: Sequence[int | None]) -> Answer:
    """Return the answer of a failed attempt: it is final only if each of its parts failed for good.

    ``failures`` holds the HTTP status of each failed part, None where apprise logged no status.

    >>> [answer_for(found).status for found in ([404], [404, 503], [404, None], [403, 404], [])]
    [404, 503, None, 403, None]
    """
    outcomes = {status: delivery_outcome(Answer(status=status)) for status in failures}
    temporary = [status for status in failures if outcomes[status] is DeliveryOutcome.RETRY]
    status = next(iter(temporary or failures), None)
    return Answer(status=status, code="apprise could not deliver it" + ("" if status else " and gave no reason"))


class _FailureLog(logging.Handler):
    """Collector of the HTTP statuses in apprise's log. The log goes nowhere else, because its lines contain the URL."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._here = threading.local()

    def attach(self) -> None:
        """Receive the log of apprise instead of all other handlers."""
        logger = logging.getLogger("apprise")
        if self not in logger.handlers:
            logger.handlers = [self]
            logger.propagate = False
            logger.setLevel(logging.WARNING)

    @contextlib.contextmanager
    def collected(self) -> Iterator[list[int | None]]:
        """Collect the status of each failure that this thread logs within the block, None where there is none."""
        found: list[int | None] = []
        self._here.found = found
        try:
            yield found
        finally:
            del self._here.found

    def emit(self, record: logging.LogRecord) -> None:
        """Add the status of a log line if its thread collects them."""
        found = getattr(self._here, "found", None)
        if found is not None:
            status = _STATUS.search(record.getMessage())
            found.append(None if status is None else int(status[1]))


_FAILURES: Final = _FailureLog()


def _send(url: str, notification: Notification, allow_private: bool) -> Answer:
    import apprise

    _FAILURES.attach()
    asset = apprise.AppriseAsset(app_id="Spikewatch", secure_logging=True, async_mode=False)
    plugin = apprise.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)
    if plugin is None:
        return Answer(status=404, code="apprise cannot read the URL")
    plugin.redirects = False  # even if the URL asks for them
    guard = contextlib.nullcontext() if allow_private else public_addresses_only()
    try:
        with guard, _FAILURES.collected() as failures:
            arrived = plugin.notify(
                title=neutralized(notification.headline),
                body=_body(notification),
                notify_type=_notify_type(notification),
                body_format=apprise.NotifyFormat.TEXT,
            )
    except ForbiddenAddressError as error:
        return Answer(status=None, code=str(error), forbidden=True)
    return Answer(status=200) if arrived else answer_for(failures)


def _body(notification: Notification) -> str:
    """Return the text in which everything but our own link is neutralized."""
    link = "" if notification.links is None else notification.links.run
    return "\n".join(line if line == link else neutralized(line) for line in plain_text(notification).splitlines())


def _notify_type(notification: Notification) -> Any:
    import apprise

    if notification.change in (Change.RESOLVED, Change.FALSE_ALARM):
        return apprise.NotifyType.SUCCESS
    if notification.level == AlertLevel.CRITICAL:
        return apprise.NotifyType.FAILURE
    is_alert = notification.alert is not None or notification.members
    return apprise.NotifyType.WARNING if is_alert else apprise.NotifyType.INFO
