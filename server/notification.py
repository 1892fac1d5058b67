"""Values of notifications: channels, messages that wait in the outbox, and who wants to hear of what. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from client_sdk.protocol import Alert
from client_sdk.vocabulary import LEVEL_RANK
from server.models import AlertKind, AlertLevel, AlertState

MAX_FAMILY_CHARS = 32


class ChannelKind(StrEnum):
    SLACK_WEBHOOK = "slack-webhook"
    SLACK_BOT = "slack-bot"
    APPRISE = "apprise"
    WEBHOOK = "webhook"


class Change(StrEnum):
    """What happened to an alert, as far as people are told of it."""

    OPENED = "opened"
    ESCALATED = "escalated"
    CONFIRMED = "confirmed"
    """What was predicted came: a hit, or early, or late."""
    FALSE_ALARM = "false-alarm"
    RESOLVED = "resolved"


CLOSING = (Change.CONFIRMED, Change.FALSE_ALARM, Change.RESOLVED)


@dataclass(frozen=True, kw_only=True)
class QuietHours:
    """Hours in which only what is grave enough is told; the rest waits for their end."""

    start: str
    """"HH:MM" in `timezone`."""
    end: str
    """"HH:MM"; before `start` it is that of the next day."""
    timezone: str = "UTC"
    """A name of the IANA database, for example "Europe/Berlin"."""
    min_level: str = AlertLevel.CRITICAL.value
    """Alerts of this level and above are told all the same."""


@dataclass(frozen=True, kw_only=True)
class Digest:
    """When many runs fire together they share one message."""

    window_seconds: float = 60.0
    threshold: int = 5
    """Runs whose alerts open within the window from which they are told as one."""


@dataclass(frozen=True, kw_only=True)
class Silence:
    """Nobody is notified of what matches, before a time. What is None matches everything."""

    id: str
    until: float
    """Unix time."""
    run_id: str | None = None
    project: str | None = None
    kind: str | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class NotificationSettings:
    """What holds for every channel."""

    quiet_hours: QuietHours | None = None
    digest: Digest = field(default_factory=Digest)
    cooldown_seconds: float = 600.0
    """After an alert of a run, others of the same kind and no higher level are not told for so long."""
    silences: tuple[Silence, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One place that alerts go to."""

    id: str
    name: str
    kind: ChannelKind
    target: str
    """A hint at where it leads, with nothing in it that opens anything."""
    sealed: bytes = field(repr=False)
    """The secret, encrypted by `auth.secret_box`."""
    project: str | None = None
    """Only runs of this project; None: of all."""
    min_level: str = AlertLevel.WARNING.value
    kinds: tuple[str, ...] | None = None
    """Only alerts of these kinds; None: of all."""
    enabled: bool = True
    disabled_reason: str | None = None
    """Why the server has switched it off: the other side said that it will never accept a message."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What is no secret: the Slack channel, quiet hours of its own."""
    created_at: float = 0.0
    last_sent_at: float | None = None
    last_error: str | None = None
    failures: int = 0
    """Attempts that failed since the last success."""

    def wants(self, project: str, kind: str, level: str) -> bool:
        """Whether an alert of this project, kind and level goes here."""
        return (
            self.enabled
            and (self.project is None or self.project == project)
            and (self.kinds is None or kind in self.kinds)
            and LEVEL_RANK[level] >= LEVEL_RANK[self.min_level]
        )


@dataclass(frozen=True, kw_only=True)
class OutboxRow:
    """One change of one alert that one channel has not been told of yet."""

    id: int
    message_id: str
    """The same in every attempt: receivers know a repetition by it."""
    channel_id: str
    run_id: str
    run_name: str
    project: str
    incident_id: str
    """The alert, or for a spike the prediction that it settled: one incident, one thread."""
    change: Change
    alert: Alert
    created_at: float
    attempts: int = 0
    stage: str | None = None
    """Of the run, now."""
    silenced_until: float | None = None
    """Until when people have silenced this alert."""
    acknowledged: bool = False
    """Whether somebody has taken note of the alert."""
    still_open: bool = True
    """Whether the alert is still open now."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What one channel has been told of one incident."""

    incident_id: str
    run_id: str
    family: str
    """See `family_of`."""
    level: str
    """The highest that was told."""
    told_at: float
    thread: str | None = None
    """Slack's name of the message that later ones are put under."""
    in_digest: bool = False
    closed: bool = False


def change_of(alert: Alert, level_before: str | None, state_before: str | None) -> Change | None:
    """What people are told of an alert that was stored with this level and state (None: not at all), and is now so.

    A date that moved, or fresh evidence, is seen on the run's page; it is no reason to call anybody.
    """
    if alert.state == AlertState.RESOLVED:
        if state_before == AlertState.RESOLVED:
            return None
        if alert.outcome is None:
            return Change.RESOLVED
        return Change.FALSE_ALARM if alert.outcome.result == "false" else Change.CONFIRMED
    if level_before is None:
        return Change.OPENED
    return Change.ESCALATED if LEVEL_RANK[alert.level] > LEVEL_RANK[level_before] else None


def incident_of(alert: Alert) -> str:
    """The incident that an alert belongs to: a spike that was predicted belongs to its prediction."""
    prediction = alert.evidence.get("prediction_id")
    return prediction if isinstance(prediction, str) else alert.id


def family_of(alert: Alert) -> str:
    """What shares a cooldown: a prediction and its spike, the alerts of one rule, or else those of one kind."""
    if alert.kind == AlertKind.SPIKE_PREDICTED:
        return AlertKind.SPIKE.value
    rule = alert.evidence.get("rule")
    if alert.kind == AlertKind.CUSTOM_RULE and isinstance(rule, str):
        return f"rule {rule}"[:MAX_FAMILY_CHARS]
    return alert.kind
