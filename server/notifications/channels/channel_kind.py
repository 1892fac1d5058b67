"""Interface of a kind of channel: its form fields, the check of what people enter, its hint, and its delivery."""

from __future__ import annotations

import abc
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from client_sdk.answers import ChannelField
from server.errors import ForbiddenAddressError
from server.notifications.addresses import check_url
from server.notifications.notification_text import Notification
from server.notifications.outbound import Outbound
from server.notifications.outcomes import Answer

SIGNING_KEY_PREFIX: Final = "swsk_"


class TargetError(ValueError):
    """A value that was entered for a channel cannot work; the message says what to enter instead."""

    def __init__(self, field: str, reason: str) -> None:
        """``field`` is the path of the value in the channel's JSON, for example "settings.channel"."""
        super().__init__(reason)
        self.field = field
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Target:
    """The values that were entered for one channel, decrypted."""

    secret: str = field(repr=False)
    """Credential of the channel: a URL or a token."""
    signing_key: str = field(default="", repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DeliveryContext:
    """Resources that all channels share for delivery."""

    outbound: Outbound
    threads: Executor
    """Threads for libraries that block."""
    slack_api_url: str
    clock: Callable[[], float]
    """Source of the current Unix time."""


class ChannelKind(abc.ABC):
    """A kind of channel. Instances hold no state: every method receives the channel's values."""

    name: ClassVar[str]
    """Stable name in the API and in the database, for example "slack-bot"."""
    label: ClassVar[str]
    """Name that people choose the kind by."""
    fields: ClassVar[tuple[ChannelField, ...]]

    @abc.abstractmethod
    def check(self, target: Target, *, allow_private: bool) -> None:
        """Raise `TargetError` if the values cannot work. The check sends nothing and looks up no name.

        It may import a library that takes long to load, so call it in a thread.
        """

    @abc.abstractmethod
    def hint(self, target: Target) -> str:
        """Return what is shown of the target: enough to recognise it, nothing that grants access."""

    @abc.abstractmethod
    async def deliver(
        self, context: DeliveryContext, target: Target, notification: Notification, thread: str | None
    ) -> Answer:
        """Make one delivery attempt. Errors of the receiving service and of the network are part of the answer.

        ``thread`` is the id of the incident's first message on services that have threads.
        """

    @property
    def is_signed(self) -> bool:
        """Whether deliveries are signed with the channel's signing key."""
        return any(field.name == "signing_key" for field in self.fields)

    def wants_picture(self, settings: Mapping[str, Any]) -> bool:
        """Return whether new incidents are followed by a picture of the run."""
        del settings
        return False

    async def attach_picture(self, context: DeliveryContext, target: Target, posted: Answer, picture: bytes) -> None:
        """Post a PNG picture below a notification, for kinds that want one. A failure is logged, not raised."""
        raise NotImplementedError


def new_signing_key() -> str:
    """Return a random signing key of 256 bits."""
    return SIGNING_KEY_PREFIX + secrets.token_urlsafe(32)


def check_secret_url(target: Target, *, allow_private: bool) -> None:
    """Raise `TargetError` if the secret is not a URL that notifications may be posted to."""
    try:
        check_url(target.secret, allow_private=allow_private)
    except ForbiddenAddressError as error:
        raise TargetError("secret", str(error)) from error


def host_hint(target: Target) -> str:
    """Return the host of the secret URL, without its path, which is often the secret part."""
    return f"{urlsplit(target.secret).hostname}/…"
