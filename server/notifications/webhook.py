"""A signed JSON message for programs. Documented, with the code that verifies it, in docs/alerts.md."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final

import msgspec

from server.notifications.notification_text import Notification
from server.notifications.outbound import Outbound
from server.notifications.outcomes import Answer

VERSION: Final = 1
TIMESTAMP_HEADER: Final = "X-Spikewatch-Timestamp"
SIGNATURE_HEADER: Final = "X-Spikewatch-Signature"


def body_of(message: Notification) -> dict[str, Any]:
    """What a program is sent."""
    alert = message.alert
    event = "digest" if message.members else "test" if message.change is None else f"alert.{message.change}"
    return {
        "version": VERSION,
        "message_id": message.id,
        "event": event,
        "created_at": message.created_at,
        "headline": message.headline,
        "level": message.level,
        "incident_id": message.incident_id or None,
        "run": None if alert is None else {"id": alert.run_id, "name": message.run_name, "project": message.project},
        "url": None if message.links is None else message.links.run,
        "alert": None if alert is None else msgspec.to_builtins(alert),
        "members": [{"run": name, "what": what} for name, what in message.members],
    }


def signature(key: str, timestamp: str, body: bytes) -> str:
    """HMAC-SHA256 over the timestamp, a dot, and the body as it is sent.

    >>> signature("key", "1700000000", b"{}")[:11]
    'v1=01b45d46'
    """
    return "v1=" + hmac.new(key.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


async def post_signed(outbound: Outbound, url: str, key: str, message: Notification, now: float) -> Answer:
    """The timestamp is that of the attempt: a receiver refuses what is older than some minutes."""
    body = msgspec.json.encode(body_of(message))
    timestamp = str(int(now))
    return await outbound.ask(
        url,
        body,
        {
            "Content-Type": "application/json",
            "Idempotency-Key": message.id,
            TIMESTAMP_HEADER: timestamp,
            SIGNATURE_HEADER: signature(key, timestamp, body),
        },
    )
