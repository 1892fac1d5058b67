"""Signed JSON for programs. docs/how-to/send-alerts.md documents it, with the code that verifies the signature."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, ClassVar, Final

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

VERSION: Final = 1
TIMESTAMP_HEADER: Final = "X-Spikewatch-Timestamp"
SIGNATURE_HEADER: Final = "X-Spikewatch-Signature"


class SignedWebhook(ChannelKind):
    """A program that accepts notifications as signed JSON."""

    name: ClassVar = "webhook"
    label: ClassVar = "signed JSON webhook"
    fields: ClassVar = (
        ChannelField(
            name="secret",
            label="Secret",
            secret=True,
            required=True,
            help="the webhook's URL; encrypted, never shown again",
        ),
        ChannelField(
            name="signing_key",
            label="Signing key",
            secret=True,
            advanced=True,
            help="16 to 256 characters; without one, a key is generated and shown once",
        ),
    )

    def check(self, target: Target, *, allow_private: bool) -> None:
        """Raise `TargetError` if the secret is not a URL that may be posted to."""
        check_secret_url(target, allow_private=allow_private)

    def hint(self, target: Target) -> str:
        """Return the host of the webhook's URL."""
        return host_hint(target)

    async def deliver(
        self, context: DeliveryContext, target: Target, notification: Notification, thread: str | None
    ) -> Answer:
        """Post the signed notification. The timestamp is that of the attempt: receivers reject old ones."""
        del thread  # receivers group notifications by their incident_id
        body = msgspec.json.encode(body_of(notification))
        timestamp = str(int(context.clock()))
        return await context.outbound.ask(
            target.secret,
            body,
            {
                "Content-Type": "application/json",
                "Idempotency-Key": notification.id,
                TIMESTAMP_HEADER: timestamp,
                SIGNATURE_HEADER: signature(target.signing_key, timestamp, body),
            },
        )


def body_of(notification: Notification) -> dict[str, Any]:
    """Return the JSON object that programs receive."""
    alert = notification.alert
    event = "digest" if notification.members else "test"
    if notification.change is not None:
        event = f"alert.{notification.change}"
    return {
        "version": VERSION,
        "message_id": notification.id,
        "event": event,
        "created_at": notification.created_at,
        "headline": notification.headline,
        "level": notification.level,
        "incident_id": notification.incident_id or None,
        "run": None
        if alert is None
        else {"id": alert.run_id, "name": notification.run_name, "project": notification.project},
        "url": None if notification.links is None else notification.links.run,
        "alert": None if alert is None else msgspec.to_builtins(alert),
        "members": [{"run": name, "what": what} for name, what in notification.members],
    }


def signature(key: str, timestamp: str, body: bytes) -> str:
    """Return ``v1=`` and the HMAC-SHA256 of the timestamp, a dot, and the body as it is sent.

    >>> signature("key", "1700000000", b"{}")
    'v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae'
    """
    return "v1=" + hmac.new(key.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
