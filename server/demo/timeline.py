"""Timeline of a spike, from the step to the notification. Pure: alerts and their notifications in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Notification = Mapping[str, Any]

CHANGES = {
    "opened": "message sent: {title}",
    "escalated": "message sent: it is more severe now",
    "confirmed": "message sent: it came, {led}",
    "false-alarm": "message sent: it did not come",
    "resolved": "message sent: resolved",
    "ended": "message sent: the run ended so",
}


def timeline(alerts: Sequence[tuple[Mapping[str, Any], Sequence[Notification]]]) -> list[str]:
    """Return the lines about a run's alerts and their notifications; no lines without an alert."""
    entries: list[tuple[float, str]] = []
    for alert, notifications in alerts:
        entries.append((alert["opened_at"], f'step {alert["step"]} logged, where "{alert["kind"]}" opens'))
        outcome = alert["outcome"] or {}
        if outcome.get("step") is not None and alert["closed_at"] is not None:
            entries.append((alert["closed_at"], f"step {outcome['step']} logged: the spike has come"))
        for one in notifications:
            entries.append((one["created_at"], f"{one['change']}: stored, with a message for {one['channel']}"))
            if one["state"] == "sent":
                lead = outcome.get("lead")
                led = "without a warning" if lead is None else f"lead {lead} steps"
                words = CHANGES[one["change"]].format(title=alert["title"], led=led)
                latency = f" ({1000 * (one['done_at'] - one['created_at']):.0f} ms after it was stored)"
                entries.append((one["done_at"], words + latency))
    if not entries:
        return []
    entries.sort(key=lambda entry: entry[0])
    start = entries[0][0]
    lines = ["", f"Timeline of the spike (seconds after {datetime.fromtimestamp(start, UTC):%H:%M:%S.%f} UTC)"]
    return lines + [f"  {at - start:8.3f}  {text}" for at, text in entries]
