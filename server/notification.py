"""Values of notifications: channels, rows of the outbox, and rules about who is notified of what. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from client_sdk.protocol import Alert
from client_sdk.vocabulary import LEVEL_RANK
from server.models import AlertKind, AlertLevel, AlertState

MAX_GROUP_CHARS = 32
RATE_WINDOW: Final = 3_600.0
"""Seconds within which the notifications about one run are counted."""


class Change(StrEnum):
    """A change of an alert that people are notified of."""

    OPENED = "opened"
    ESCALATED = "escalated"
    CONFIRMED = "confirmed"
    """The prediction came true, at the predicted time, earlier or later."""
    FALSE_ALARM = "false-alarm"
    RESOLVED = "resolved"
    ENDED = "ended"
    """The run ended while the alert lasted."""


CLOSING = (Change.CONFIRMED, Change.FALSE_ALARM, Change.RESOLVED, Change.ENDED)


@dataclass(frozen=True, kw_only=True)
class QuietHours:
    """Hours of the day in which only severe alerts are sent; all others wait for the end of these hours."""

    start: str
    """Beginning of the quiet hours, "HH:MM" in `timezone`."""
    end: str
    """End of the quiet hours, "HH:MM" in `timezone`; on the next day if it is earlier than `start`."""
    timezone: str = "UTC"
    """Name of a time zone of the IANA database, for example "Europe/Berlin"."""
    min_level: str = AlertLevel.CRITICAL.value
    """Lowest alert level that is sent during quiet hours."""


@dataclass(frozen=True, kw_only=True)
class Digest:
    """Limits beyond which the alerts of many runs are sent as one notification."""

    window_seconds: float = 60.0
    threshold: int = 5
    """Number of runs with new alerts within the window from which on a digest is sent."""


@dataclass(frozen=True, kw_only=True)
class Silence:
    """A period without notifications about the alerts that match. A field that is None matches every alert."""

    id: str
    until: float
    """End of the silence as Unix time."""
    run_id: str | None = None
    project: str | None = None
    kind: str | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class NotificationSettings:
    """Settings that apply to all channels."""

    quiet_hours: QuietHours | None = None
    digest: Digest = field(default_factory=Digest)
    cooldown_seconds: float = 600.0
    """Time after an alert of a run in which alerts of the same kind and of no higher level are held back."""
    silences: tuple[Silence, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A destination of notifications."""

    id: str
    name: str
    kind: str
    """Name of the kind, see `notifications.channels.registry`."""
    target: str
    """Hint at the destination that contains nothing secret."""
    encrypted_secrets: bytes = field(repr=False)
    """Credentials of the channel, encrypted by `auth.secret_box`."""
    project: str | None = None
    """Project whose runs the channel receives alerts of; None for all projects."""
    min_level: str = AlertLevel.WARNING.value
    kinds: tuple[str, ...] | None = None
    """Kinds of alerts that the channel receives; None for all kinds."""
    enabled: bool = True
    disabled_reason: str | None = None
    """Reason why the server disabled the channel: the receiving service rejects every notification."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that are not secret, for example the Slack channel and quiet hours of this channel alone."""
    created_at: float = 0.0
    last_sent_at: float | None = None
    last_error: str | None = None
    failures: int = 0
    """Number of failed delivery attempts since the last success."""

    def wants(self, project: str, kind: str, level: str) -> bool:
        """Return whether the channel receives alerts of this project, kind and level."""
        return (
            self.enabled
            and (self.project is None or self.project == project)
            and (self.kinds is None or kind in self.kinds)
            and LEVEL_RANK[level] >= LEVEL_RANK[self.min_level]
        )


@dataclass(frozen=True, kw_only=True)
class OutboxRow:
    """A change of an alert that one channel has not been notified of yet."""

    id: int
    message_id: str
    """Id that stays the same in every delivery attempt, so that receivers can recognise a repetition."""
    channel_id: str
    run_id: str
    run_name: str
    project: str
    incident_id: str
    """Id of the incident, see `incident_of`: its alerts share one thread."""
    change: Change
    alert: Alert
    created_at: float
    delivery_attempts: int = 0
    stage: str | None = None
    """Current stage of the run."""
    silenced_until: float | None = None
    """Unix time until which people have silenced this alert."""
    acknowledged: bool = False
    """Whether somebody has acknowledged the alert."""
    still_open: bool = True
    """Whether the alert is open at the time of reading."""


@dataclass(frozen=True, kw_only=True)
class NotifiedIncident:
    """An incident that a channel has been notified of, and what it has received so far."""

    incident_id: str
    run_id: str
    cooldown_group: str
    """Group of alerts that share a cooldown, see `cooldown_group_of`."""
    level: str
    """Highest level that was sent."""
    notified_at: float
    """Unix time of the last notification."""
    thread: str | None = None
    """Slack's id of the message under which later ones are posted."""
    in_digest: bool = False
    closed: bool = False


@dataclass(frozen=True, kw_only=True)
class AlertChange:
    """An alert that the detectors have changed, and its level and state before; both are None for a new alert."""

    alert: Alert
    level_before: str | None = None
    state_before: str | None = None


@dataclass(frozen=True, kw_only=True)
class AlertedRun:
    """Properties of a run that decide who is notified of its alerts."""

    project: str
    is_imported: bool = False
    """Whether the run was imported, so that its alerts are about the past."""


@dataclass(frozen=True, kw_only=True)
class NewNotification:
    """A change of an alert that one channel is to be notified of, before it is stored in the outbox."""

    channel_id: str
    change: Change
    alert: Alert
    incident_id: str


Recipients = Callable[[AlertedRun, Sequence[AlertChange], Sequence[Channel]], Sequence[NewNotification]]
"""Decision about who is notified of changed alerts: the run, the changes and the enabled channels to notifications."""


def change_of(alert: Alert, level_before: str | None, state_before: str | None) -> Change | None:
    """Return the change to notify people of, or None if there is none.

    ``level_before`` and ``state_before`` describe the alert as it was stored before; both are None for a new alert.
    A moved prediction or new evidence is visible on the run's page and causes no notification.
    """
    if alert.state == AlertState.ENDED:
        if state_before == AlertState.ENDED:
            return None
        return Change.OPENED if state_before is None else Change.ENDED
    if alert.state == AlertState.RESOLVED:
        if state_before == AlertState.RESOLVED:
            return None
        if alert.outcome is None:
            # An alert that opened and ended between two saves has never been reported as open.
            return Change.OPENED if state_before is None else Change.RESOLVED
        return Change.FALSE_ALARM if alert.outcome.result == "false" else Change.CONFIRMED
    if level_before is None:
        return Change.OPENED
    return Change.ESCALATED if LEVEL_RANK[alert.level] > LEVEL_RANK[level_before] else None


def incident_of(alert: Alert) -> str:
    """Return the id of the alert's incident."""
    return alert.incident


def cooldown_group_of(alert: Alert) -> str:
    """Return the group of alerts that share a cooldown.

    A prediction and its spike are one group, and so are the alerts of one rule. All others are grouped by kind.
    """
    if alert.kind == AlertKind.SPIKE_PREDICTED:
        return AlertKind.SPIKE.value
    rule = alert.evidence.get("rule")
    if alert.kind == AlertKind.CUSTOM_RULE and isinstance(rule, str):
        return f"rule {rule}"[:MAX_GROUP_CHARS]
    return alert.kind
