"""The documents about alerts agree with the code, and its example verifies real deliveries."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.notification import RATE_WINDOW
from server.notifications.channels.webhook import SIGNATURE_HEADER, TIMESTAMP_HEADER, signature
from server.notifications.dispatcher import CHANNELS_AT_ONCE, LEASE
from server.notifications.notification_text import channel_test_notification
from server.notifications.outcomes import BACKOFF
from server.notifications.policy import ESCALATION_GAP, MAX_NEWS_AGE, MAX_PER_HOUR
from server.storage.outbox import GATHER
from tests.support.alerting import channel, messenger
from tests.support.postbox import Postbox

DOCS = Path(__file__).parents[3] / "docs"
TEXT = "".join((DOCS / name).read_text() for name in ("how-to/send-alerts.md", "explanation/notifications.md"))
KEY = "k" * 32

Verifier = Callable[[str, dict[str, str], bytes], bool]


def documented_verifier() -> Verifier:
    """The function in the document's Python example."""
    [snippet] = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict[str, Any] = {}
    exec(snippet, names)
    found: Verifier = names["is_genuine"]
    return found


def signed(body: bytes, at: float) -> dict[str, str]:
    stamp = str(int(at))
    return {TIMESTAMP_HEADER: stamp, SIGNATURE_HEADER: signature(KEY, stamp, body)}


async def test_the_documented_example_verifies_a_real_delivery() -> None:
    is_genuine = documented_verifier()
    sender = messenger()
    with Postbox() as postbox:
        webhook = channel("webhook", postbox.url())
        notification = channel_test_notification("id", webhook.name, "https://spikes.example", 0.0)
        assert (await sender.deliver(webhook, notification)).status == 200
        await sender.close()
        [posted] = postbox.requests
    assert is_genuine(KEY, dict(posted.headers), posted.body)
    assert not is_genuine(KEY, dict(posted.headers), posted.body + b" ")


def test_the_documented_example_rejects_forged_and_old_messages() -> None:
    is_genuine = documented_verifier()
    now = time.time()
    assert is_genuine(KEY, signed(b"{}", now), b"{}")
    assert not is_genuine(KEY, signed(b"{}", now), b"{ }")
    assert not is_genuine("another", signed(b"{}", now), b"{}")
    assert not is_genuine(KEY, signed(b"{}", now - 3600), b"{}")


def test_the_documented_signature_is_the_one_of_the_code() -> None:
    assert (
        f"`key`, the timestamp `1700000000` and the body `{{}}` it is `{signature('key', '1700000000', b'{}')}`" in TEXT
    )


def test_its_numbers_are_those_of_the_code() -> None:
    assert f"again after {', '.join(f'{wait:.0f}' for wait in BACKOFF)} s" in TEXT
    assert f"Messages wait {GATHER:g} s for each other" in TEXT
    assert f"loses its lease after {LEASE:.0f} s" in TEXT
    assert f"at most {CHANNELS_AT_ONCE} channels at once" in TEXT
    assert f"within {ESCALATION_GAP:.0f} s of the last message" in TEXT
    assert f"at most {MAX_PER_HOUR} messages an hour" in TEXT
    assert RATE_WINDOW == 3600, "an hour"
    assert MAX_NEWS_AGE == 6 * 3600, "six hours"
