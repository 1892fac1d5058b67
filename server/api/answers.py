"""The shapes of the answers, for the OpenAPI document. Handlers write the same JSON straight from storage."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from server.models import AlertLevel
from server.rule import ChangeBy, Condition, Direction, Reduce

Numbers = list[float | None]


class ErrorAnswer(BaseModel):
    error: str
    """A stable code."""
    message: str
    """What is wrong and what to do."""


class OptimizerAnswer(BaseModel):
    name: str
    family: Literal["adam", "sgd", "rmsprop", "other"]
    lr: float | None
    beta1: float | None
    beta2: float | None
    eps: float | None
    weight_decay: float | None


class PredictedStepAnswer(BaseModel):
    low: int
    best: int
    high: int


class LastAlertAnswer(BaseModel):
    id: str
    kind: str
    level: str
    state: str
    title: str
    step: int


class RunAnswer(BaseModel):
    id: str
    project: str
    name: str
    state: Literal["running", "finished", "crashed", "stale"]
    created_at: float
    last_seen_at: float
    last_step: int | None
    step_rate: float | None
    loss: float | None
    lr: float | None
    stage: str | None
    stability_ratio: float | None
    open_alerts: int
    predicted_step: PredictedStepAnswer | None
    last_alert: LastAlertAnswer | None
    sparkline: Numbers
    layer_count: int
    parameter_count: int
    rank_count: int
    optimizer: OptimizerAnswer | None
    attempt: int
    tags: list[str]
    config: dict[str, JsonValue]


class DeletionAnswer(BaseModel):
    id: str
    state: Literal["deleting"]


class AttemptAnswer(BaseModel):
    rank: int
    attempt: int
    first_step: int
    last_step: int
    started_at: float


class RunDetailsAnswer(RunAnswer):
    layers: list[str]
    scalars: list[str]
    statistics: list[str]
    attempts: list[AttemptAnswer]


class RunsAnswer(BaseModel):
    runs: list[RunAnswer]
    next_cursor: str | None


class OneSeries(BaseModel):
    step: list[int]
    min: Numbers
    max: Numbers
    last: Numbers
    nonfinite: list[int]


class SeriesAnswer(BaseModel):
    step_from: int
    step_to: int
    bucket_steps: int
    series: dict[str, OneSeries]


class HeatmapAnswer(BaseModel):
    layers: list[str]
    step: list[int]
    bucket_steps: int
    z: list[Numbers]
    nonfinite: list[tuple[int, int, int]]


class HistogramAnswer(BaseModel):
    layer: str
    which: Literal["update", "ratio"]
    step: int | None
    attempt: int | None
    edges: Numbers
    counts: list[int]
    dip: float | None


class EventAnswer(BaseModel):
    model_config = ConfigDict(extra="allow")

    step: int
    kind: str
    attempt: int


class OutcomeAnswer(BaseModel):
    result: Literal["hit", "early", "late", "false"]
    step: int | None
    lead: int | None


class AlertAnswer(BaseModel):
    id: str
    run_id: str
    kind: str
    level: str
    state: Literal["open", "acknowledged", "resolved"]
    step: int
    title: str
    message: str
    predicted_step: PredictedStepAnswer | None
    first_predicted_step: PredictedStepAnswer | None
    layers: list[str]
    layer_shares: list[float | None]
    cause: str
    evidence: dict[str, float | int | str | None]
    advice: list[str]
    outcome: OutcomeAnswer | None
    opened_at: float
    closed_at: float | None
    updated_step: int
    attempt: int
    acknowledged_at: float | None
    silenced_until: float | None


class HealthAnswer(BaseModel):
    status: str


class ReadinessAnswer(BaseModel):
    status: Literal["ok", "degraded", "unavailable"]
    checks: dict[str, str]
    """Dependency to "ok", or to what is wrong."""


class ChannelFieldAnswer(BaseModel):
    """An input field of the form in which a channel is entered."""

    name: str
    """Key of the value in the channel, or in its settings if `in_settings` is true."""
    label: str
    type: Literal["text", "boolean"]
    in_settings: bool
    secret: bool
    """Whether the value is a credential, which is never returned."""
    required: bool
    default: bool | None
    advanced: bool
    """Whether a form may leave the field out."""
    placeholder: str
    help: str


class ChannelKindAnswer(BaseModel):
    """A kind of channel."""

    name: str
    label: str
    fields: list[ChannelFieldAnswer]


class ChannelKindsAnswer(BaseModel):
    """The kinds of channels in the order in which they are offered."""

    kinds: list[ChannelKindAnswer]


class ChannelAnswer(BaseModel):
    id: str
    name: str
    kind: str
    """Name of a kind of channel, see GET /channels/kinds."""
    target: str
    """Hint at the destination."""
    project: str | None
    min_level: str
    kinds: list[str] | None
    enabled: bool
    disabled_reason: str | None
    settings: dict[str, JsonValue]
    created_at: float
    last_sent_at: float | None
    last_error: str | None
    failures: int
    signing_key: str | None = None
    """Only in the answer to the call that made it."""


class ChannelsAnswer(BaseModel):
    channels: list[ChannelAnswer]


class RemovedAnswer(BaseModel):
    id: str
    removed: bool


class TestAnswer(BaseModel):
    __test__ = False  # pytest takes the name for a test

    ok: bool
    answer: str
    """What the other side said, or why it could not be asked."""
    seconds: float


class QuietHoursAnswer(BaseModel):
    start: str
    end: str
    timezone: str
    min_level: str


class DigestAnswer(BaseModel):
    window_seconds: float
    threshold: int


class SilenceAnswer(BaseModel):
    id: str
    run_id: str | None
    project: str | None
    kind: str | None
    until: float
    reason: str


class NotificationsAnswer(BaseModel):
    quiet_hours: QuietHoursAnswer | None
    digest: DigestAnswer
    cooldown_seconds: float
    silences: list[SilenceAnswer]


class NotificationAnswer(BaseModel):
    channel: str
    message_id: str
    change: str
    state: Literal["pending", "sent", "skipped", "failed"]
    note: str | None
    """Why it was skipped or given up."""
    attempts: int
    created_at: float
    """When the change was stored."""
    done_at: float | None
    """When the other side had answered, or it was given up."""


class LeadAnswer(BaseModel):
    count: int
    median: float | None
    p10: float | None
    p90: float | None


class PrecisionAnswer(BaseModel):
    settled: int
    """Predictions above watch that were settled."""
    hit: int
    early: int
    late: int
    false: int
    open: int
    unsettled: int
    """Resolved without a result: the run ended before it was due, or it was a mere watch."""
    precision: float | None
    """Share of the settled ones that came."""
    lead_steps: LeadAnswer


class RuleAnswer(BaseModel):
    id: str
    name: str
    condition: Condition
    value: float
    enabled: bool
    level: AlertLevel
    project: str | None
    tag: str | None
    run_name: str | None
    scalar: str | None
    statistic: str | None
    layers: str
    reduce: Reduce
    change_by: ChangeBy
    direction: Direction
    window: int
    for_steps: int
    cooldown_minutes: float


class RulesAnswer(BaseModel):
    rules: list[RuleAnswer]


class FiringAnswer(BaseModel):
    step: int
    until_step: int | None
    """None: still open at the end."""
    time: float | None
    value: float | None
    title: str
    message: str
    layers: list[str]


class OutlineAnswer(BaseModel):
    """Of what the rule watches, infinite values left out."""

    bucket_steps: int
    step: list[int]
    min: list[float]
    max: list[float]


class RehearsalAnswer(BaseModel):
    run_id: str
    name: str
    project: str
    chosen: bool
    """Whether the rule is for this run at all."""
    fired: int
    firings: list[FiringAnswer]
    """The first 200."""
    records: int
    values: int
    """Records with what the rule watches."""
    last_step: int | None
    complete: bool
    """False: the time was up before the end of the run."""
    series: OutlineAnswer


class RehearsalsAnswer(BaseModel):
    fired: int
    runs: list[RehearsalAnswer]


class IdentityAnswer(BaseModel):
    scope: Literal["read", "write", "admin"]
    project: str | None
    label: str
    token_id: int | None
    expires_at: float | None


class LoginAnswer(IdentityAnswer):
    session: str


class TokenAnswer(BaseModel):
    id: int
    scope: Literal["read", "write", "admin"]
    project: str | None
    label: str
    created_at: float
    last_used_at: float | None
    revoked_at: float | None


class NewTokenAnswer(TokenAnswer):
    token: str
