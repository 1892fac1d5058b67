"""Shapes of the answers of the HTTP API and of the frames of the live socket, as frozen values.

Shared by the server, which encodes them, and by the dashboard and `client_sdk.read`, which decode them. The order of
the fields is the order of the keys in the JSON. A reader ignores keys that it does not have, and a field that is added
later has a default, so that a reader and a server of different versions understand each other. Names of kinds, levels
and states are plain strings for the same reason; the OpenAPI document lists the known ones.

A float that is NaN or infinite is null in JSON. A field that is `msgspec.UNSET` is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

import msgspec
from msgspec import UNSET, Meta, UnsetType

from client_sdk import protocol
from client_sdk.audit_checks import AUDIT_CHECKS
from client_sdk.protocol import Forecast, Outcome, PredictedStep
from client_sdk.vocabulary import (
    LOSS,
    STAGE_REASONS,
    AlertKind,
    AlertLevel,
    AlertState,
    ChangeBy,
    Condition,
    Direction,
    EventKind,
    Reduce,
    RunState,
    Scope,
    Sensitivity,
    Stage,
)

__all__ = ["Forecast", "Outcome", "PredictedStep"]

ENDED_WITH: Final = {
    AlertKind.NONFINITE.value: "NaN",
    AlertKind.DIVERGENCE.value: "diverged",
    AlertKind.SPIKE.value: "spiking",
}
"""Marks of runs that ended during an alert of these kinds, keyed by kind, the worst first."""
Numbers = tuple[float | None, ...]
Value = float | int | str | None


def _one_of(names: type[StrEnum]) -> Meta:
    return Meta(extra_json_schema={"enum": [name.value for name in names]})


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """A refused request."""

    error: Annotated[str, Meta(description="Stable code of the error.")]
    message: Annotated[str, Meta(description="Explanation of what is wrong and what to do.")]
    field: Annotated[
        str | UnsetType,
        Meta(
            description="Path of the field or parameter at fault, such as rules.0.value; absent where none is at fault."
        ),
    ] = UNSET


class Optimizer(msgspec.Struct, frozen=True, kw_only=True):
    """The watched optimizer of a run."""

    name: str
    """Class name, for example "AdamW"."""
    family: Annotated[str, Meta(extra_json_schema={"enum": ["adam", "sgd", "rmsprop", "other"]})] = "other"
    lr: float | None = None
    """Largest learning rate of the parameter groups when the optimizer was watched."""
    beta1: float | None = None
    """Adam's β1, or the momentum of SGD."""
    beta2: float | None = None
    eps: float | None = None
    weight_decay: float | None = None


class LastAlert(msgspec.Struct, frozen=True, kw_only=True):
    """The newest alert of a run, in short."""

    id: str
    kind: str
    level: str
    state: str
    title: str
    step: int


class LossChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A scalar that was chosen as the loss."""

    scalar: str
    by: Annotated[str, Meta(extra_json_schema={"enum": ["run", "code", "project"]})]
    """Origin of the choice: "run" by a person for this run, "code" by `init`, or "project" as the project's default."""


class ProjectLoss(msgspec.Struct, frozen=True, kw_only=True):
    """The default loss of the runs of a project."""

    project: str
    scalar: str | None = None
    """Name of the scalar; null where the project has no default."""


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A run in a list of runs."""

    id: str
    project: str = ""
    name: str = ""
    state: Annotated[str, _one_of(RunState)] = RunState.RUNNING.value
    created_at: float = 0.0
    """Unix time at which the run was created."""
    last_seen_at: float = 0.0
    """Unix time of the last data or connection."""
    last_step: int | None = None
    step_rate: float | None = None
    """Steps per second, while the run is running."""
    loss: float | None = None
    lr: float | None = None
    stage: str | None = None
    """Stage of the run, a `Stage`; "not-judged" where the run logs too little to be called stable."""
    stage_reason: str | None = None
    """Reason for the stage "not-judged", a `StageReason`; null in every other stage."""
    loss_name: str | None = None
    """Name of the scalar that is read as the loss; null until it has arrived."""
    loss_since: int | None = None
    """First step that was judged with this loss; null where the run was judged with no other one."""
    loss_choice: LossChoice | None = None
    """Choice that decides the loss; null where the names of the scalars decide."""
    stability_ratio: float | None = None
    """λ_max·η/2, with a limit of 1."""
    open_alerts: int = 0
    predicted_step: PredictedStep | None = None
    last_alert: LastAlert | None = None
    ended_with: LastAlert | None = None
    """Most severe alert that lasted until the run ended; null while the run goes on, and after a healthy end."""
    sparkline: Numbers = ()
    """Largest loss of each bucket, oldest first."""
    layer_count: int = 0
    parameter_count: int = 0
    rank_count: int = 1
    optimizer: Optimizer | None = None
    attempt: int = 0
    """Number of the newest attempt."""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = {}
    archived: bool = False
    """Whether somebody has put the run away, so that the list of runs leaves it out unless it is asked for."""

    @property
    def title(self) -> str:
        """The name of the run, or the beginning of its id where it has none."""
        return self.name or self.id[:8]

    @property
    def stage_words(self) -> str:
        """The stage for people, "" where there is none yet."""
        return "Not judged" if self.stage == Stage.NOT_JUDGED else (self.stage or "").capitalize()

    @property
    def loss_words(self) -> str:
        """The name under which the loss was logged, "" until it has arrived."""
        return self.original_loss or self.loss_name or ""

    @property
    def loss_note(self) -> str:
        """The steps that were judged with this loss in words, "" where all were."""
        if self.loss_since is None:
            return ""
        if self.last_step is not None and self.loss_since <= self.last_step:
            return f"judged since step {self.loss_since:,}"
        if self.state in (RunState.FINISHED, RunState.CRASHED):
            return "the stage and the alerts are about the loss before"
        return "judged from the next record on"

    @property
    def ended_words(self) -> str:
        """The trouble that the run ended with in a word, "" where it ended without any or goes on."""
        return "" if self.ended_with is None else ENDED_WITH.get(self.ended_with.kind, "")

    @property
    def reason_words(self) -> str:
        """The sentence that says why the run is not judged, "" in every other stage."""
        return "" if self.stage_reason is None else STAGE_REASONS.get(self.stage_reason, self.stage_reason)

    @property
    def original_loss(self) -> str | None:
        """The name under which the loss was logged, if it is another one than "loss"; an import renames it."""
        imported = self.config.get("imported_names")
        original = imported.get(LOSS) if isinstance(imported, dict) else None
        name = self.loss_name if self.loss_name not in {None, LOSS} else original
        return name if isinstance(name, str) else None


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of a run between rollbacks, of one rank."""

    rank: int
    attempt: int
    first_step: int
    last_step: int
    started_at: float
    """Unix time of its first record."""


class RunDetail(RunSummary, frozen=True, kw_only=True):
    """A run with the names of what it has logged, and its attempts."""

    layers: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    notes: str = ""
    """Notes of people about the run, as plain text."""
    environment: dict[str, Any] = {}
    """Machine and software of the newest writer of the lowest rank, as its client describes them."""


class RunPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the list of runs, newest first."""

    runs: tuple[RunSummary, ...]
    next_cursor: str | None
    """Cursor of the next page; null on the last page."""


class Deletion(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is being deleted."""

    id: str
    state: Literal["deleting"] = "deleting"


class Buckets(msgspec.Struct, frozen=True, kw_only=True):
    """A series in buckets that keep its extremes; a value is null where no finite value was logged."""

    step: tuple[int, ...] = ()
    min: Numbers = ()
    max: Numbers = ()
    last: Numbers = ()
    nonfinite: tuple[int, ...] = ()
    """Number of non-finite values in each bucket."""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Scalars over a range of steps."""

    step_from: int = 0
    step_to: int = 0
    bucket_steps: int = 1
    """Number of steps in a bucket."""
    series: dict[str, Buckets] = {}
    """Buckets by the name of the scalar."""


class _HeatmapHead(msgspec.Struct, frozen=True, kw_only=True):
    """Axes of a heatmap."""

    layers: tuple[str, ...]
    step: tuple[int, ...]
    """First step of each column."""
    bucket_steps: int
    """Number of steps in a column."""
    nonfinite: tuple[tuple[int, int, int], ...] = ()
    """Row, column and count of each cell with non-finite values."""


class Heatmap(_HeatmapHead, frozen=True, kw_only=True):
    """A statistic of every layer over the steps, as JSON."""

    z: list[list[float | None]]
    """Values, layers × columns; null where nothing was measured."""


class PackedHeatmap(_HeatmapHead, frozen=True, kw_only=True):
    """A statistic of every layer over the steps, as msgpack."""

    z: bytes
    """Values, layers × columns, row-major little-endian float32; NaN where nothing was measured."""


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """Distribution of u or r in one layer at one step; without a step and counts where the layer has none."""

    layer: str
    which: Literal["update", "ratio"] = "update"
    step: int | None = None
    attempt: int | None = None
    edges: Numbers = ()
    """Edges of the bins, one more than counts."""
    counts: tuple[int, ...] = ()
    dip: float | None = None
    """Hartigan's dip, of the ratio alone."""


class SameStep(msgspec.Struct, frozen=True, kw_only=True):
    """Another run that spiked at the same step, or at the same position in the data."""

    run_id: str
    name: str
    step: int
    """Step of that run."""


class Coincidence(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence of the other runs of the project about an outlier of the loss."""

    step: int
    """Step of the outlier."""
    runs: tuple[SameStep, ...] = ()
    """Runs that spiked at the same step beyond chance, at most eight."""
    same: int = 0
    """Number of these runs."""
    passed: int = 0
    """Number of other runs that passed the step without an outlier, counted up to eight."""
    other_data: int = 0
    """Number of those whose losses before show that they read other data, so that they prove nothing."""
    sentence: str = ""
    """The same in words, as the message of the alert has it."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened at a step. The keys of other kinds of events are absent."""

    stage: str | UnsetType = UNSET
    """Stage that begins, of a stage change."""
    loss: Value | UnsetType = UNSET
    """Loss at the peak of a spike or at a bad batch; of non-finite values 1 where the loss was one of them, else 0."""
    baseline: Value | UnsetType = UNSET
    """Usual loss before a spike, a bad batch or an outlier of the loss."""
    deviations: Value | UnsetType = UNSET
    """Height of an outlier of the loss in robust standard deviations."""
    outlier_step: int | UnsetType = UNSET
    """Step of the outlier with which a spike or a bad batch began."""
    coincidence: Coincidence | UnsetType = UNSET
    """Evidence of other runs about the step of an outlier, a spike or a bad batch; absent if none has passed it."""
    peak_step: int | UnsetType = UNSET
    """Step of a spike's peak."""
    recovered: int | UnsetType = UNSET
    """1 where the loss returned to its baseline after a spike, 0 where it stayed high."""
    grad_norm_ratio: Value | UnsetType = UNSET
    """Gradient norm of a bad batch over its usual size."""
    gradients: int | UnsetType = UNSET
    """Number of non-finite coordinates of the gradient."""
    before: Value | UnsetType = UNSET
    """Learning rate before a jump."""
    after: Value | UnsetType = UNSET
    """Learning rate after a jump."""
    action: str | UnsetType = UNSET
    """Action of the guard (`client_sdk.vocabulary.GUARD_ACTIONS`)."""
    is_done: int | UnsetType = UNSET
    """1 where the guard acted, 0 where it advised alone."""
    factor: Value | UnsetType = UNSET
    """Factor on what the guard changed; null where the action has none."""
    steps: int | UnsetType = UNSET
    """Number of steps that the guard touched."""
    height: Value | UnsetType = UNSET
    """Forecast rise of the loss for which the guard acted, in units of its level; null where it is not known."""
    from_step: int | UnsetType | None = UNSET
    """Last step before a rollback, or first step without complete statistics."""
    to_step: int | UnsetType | None = UNSET
    """Last step without complete statistics."""
    records: int | UnsetType = UNSET
    """Number of records without complete statistics."""
    check: str | UnsetType = UNSET
    """Check of the audit that found something."""
    message: str | UnsetType = UNSET
    """Finding of a check of the audit in words."""
    step: int
    kind: Annotated[str, _one_of(EventKind)]
    attempt: int = 0

    @classmethod
    def of(cls, step: int, kind: str, attempt: int, detail: Mapping[str, Any], **others: Any) -> Self:
        """Return the event with the entries of ``detail`` as fields. They never replace the other arguments.

        >>> Event.of(7, "stage", 0, {"stage": "decoupled"}).stage
        'decoupled'
        """
        return msgspec.convert({**detail, "step": step, "kind": kind, "attempt": attempt, **others}, cls)


class AuditCheckRuns(msgspec.Struct, frozen=True, kw_only=True):
    """A check of the audit that has run."""

    name: str
    """Stable name of the check."""
    claim: str
    """Claim that holds in a training that passes."""
    runs: int
    """Number of times that it has run."""
    last_step: int
    """Step up to which the runs are counted."""

    @classmethod
    def of(cls, name: str, runs: int, last_step: int) -> Self:
        """Return the check with its words; one of a newer client has its name alone.

        >>> AuditCheckRuns.of("tied-weights", 3, 7).claim
        'tied weights stay one tensor'
        """
        known = AUDIT_CHECKS.get(name)
        return cls(name=name, claim=name if known is None else known.claim, runs=runs, last_step=last_step)


class AuditFinding(msgspec.Struct, frozen=True, kw_only=True):
    """Finding of a check of the audit, stored once for each run and check."""

    check: str
    """Stable name of the check."""
    title: str
    """Headline of the fault."""
    message: str
    """Finding as a sentence with numbers."""
    step: int
    """Step of the record that reported it."""
    attempt: int = 0
    layers: tuple[str, ...] = ()
    """Layers or parameters that it was found at, at most eight."""
    evidence: dict[str, Value] = {}
    source: str = ""
    """Publication, documentation or formula that the check rests on."""
    advice: str = ""
    """Action that is recommended."""
    found_at: float = 0.0
    """Unix time at which the finding was stored."""
    dismissed: bool = False
    """Whether the project has dismissed the findings of this check."""

    @classmethod
    def of(cls, name: str, **values: Any) -> Self:
        """Return the finding with the words of its check; one of a newer client has its name alone."""
        known = AUDIT_CHECKS.get(name)
        if known is None:
            return cls(check=name, title=name, **values)
        return cls(check=name, title=known.fault, source=known.source, advice=known.advice, **values)


class RunAudit(msgspec.Struct, frozen=True, kw_only=True):
    """Checks of a run, when they ran last, and their findings."""

    checks: tuple[AuditCheckRuns, ...] = ()
    """Checks that have run, those of settings first."""
    findings: tuple[AuditFinding, ...] = ()
    """Findings in the order in which they were stored, dismissed ones included."""

    @property
    def open_findings(self) -> tuple[AuditFinding, ...]:
        """Findings that the project has not dismissed."""
        return tuple(finding for finding in self.findings if not finding.dismissed)

    @property
    def sentence(self) -> str:
        """Sentence that says how much was checked and when last.

        >>> checks = (AuditCheckRuns.of("tied-weights", 4_000, 84_200), AuditCheckRuns.of("dead-layer", 210, 84_200))
        >>> RunAudit(checks=checks).sentence
        '2 checks ran 4,210 times; last at step 84,200'
        """
        if not self.checks:
            return "nothing was checked: the run was not watched by an SDK that checks it"
        times = sum(check.runs for check in self.checks)
        last = max(check.last_step for check in self.checks)
        one = len(self.checks) == 1
        return f"{len(self.checks)} check{'' if one else 's'} ran {times:,} times; last at step {last:,}"


class Dismissals(msgspec.Struct, frozen=True, kw_only=True):
    """Checks of the audit whose findings a project has dismissed."""

    project: str
    checks: tuple[str, ...] = ()


class ArchivedEvent(Event, frozen=True, kw_only=True):
    """An event in the archive of a run."""

    rank: int
    created_at: float
    """Unix time at which the event was stored."""


class Alert(protocol.Alert, frozen=True, kw_only=True):
    """An alert with its evidence and advice, as people see it."""

    state: Annotated[str, _one_of(AlertState)]
    acknowledged_at: float | None = None
    """Unix time of the first acknowledgement."""
    silenced_until: float | None = None
    """Unix time until which nobody is notified of this alert."""
    coincidence: Coincidence | None = None
    """Evidence of other runs about the step of the outlier; None if none has passed it."""

    @property
    def is_open(self) -> bool:
        """Whether the alert lasts in a run that goes on; an acknowledged alert is still open."""
        return self.state in (AlertState.OPEN, AlertState.ACKNOWLEDGED)


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """A change of an alert and one channel that is notified of it."""

    channel: str
    """Name of the channel."""
    message_id: str
    change: str
    state: Annotated[str, Meta(extra_json_schema={"enum": ["pending", "sent", "skipped", "failed"]})]
    note: str | None
    """Why the notification was skipped or given up."""
    attempts: int
    created_at: float
    """Unix time at which the change was stored."""
    done_at: float | None
    """Unix time at which the receiving service answered, or the notification was given up."""


class Lead(msgspec.Struct, frozen=True, kw_only=True):
    """Steps from the first warnings of predictions to the spikes that came."""

    count: int = 0
    median: float | None = None
    p10: float | None = None
    p90: float | None = None


class Precision(msgspec.Struct, frozen=True, kw_only=True):
    """Outcomes of the predictions above the level watch."""

    settled: int = 0
    """Number of predictions with an outcome."""
    hit: int = 0
    early: int = 0
    late: int = 0
    false: int = 0
    open: int = 0
    unsettled: int = 0
    """Number of predictions that were resolved without an outcome: the run ended before the predicted step."""
    precision: float | None = None
    """Share of the settled predictions whose spike came."""
    lead_steps: Lead = Lead()


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of a process that is alive."""

    status: str = "ok"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """State of the process and of what it depends on."""

    status: Annotated[str, Meta(extra_json_schema={"enum": ["ok", "degraded", "unavailable"]})]
    checks: dict[str, str]
    """State of each dependency: "ok", or what is wrong."""


class ChannelField(msgspec.Struct, frozen=True, kw_only=True):
    """An input field of the form in which a channel is entered."""

    name: str
    """Key of the value in the channel, or in its settings if `in_settings` is true."""
    label: str
    type: Literal["text", "boolean"] = "text"
    in_settings: bool = False
    secret: bool = False
    """Whether the value is a credential: it is encrypted and never returned."""
    required: bool = False
    default: bool | None = None
    """Value if none is given, for fields of the type "boolean"."""
    advanced: bool = False
    """Whether the value is set over the API alone; the form of the dashboard leaves it as it is."""
    placeholder: str = ""
    help: str = ""


class ChannelKind(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of channel."""

    name: str
    label: str
    fields: tuple[ChannelField, ...] = ()


class ChannelKinds(msgspec.Struct, frozen=True, kw_only=True):
    """The kinds of channels in the order in which they are offered."""

    kinds: tuple[ChannelKind, ...]


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """A destination of notifications. Its secrets are never shown."""

    id: str
    name: str
    kind: str
    """Name of a kind of channel; GET /channels/kinds lists the kinds."""
    target: str = ""
    """Hint at the destination, without any secret."""
    project: str | None = None
    """The one project whose alerts it receives; null for all projects."""
    min_level: Annotated[str, _one_of(AlertLevel)] = AlertLevel.WARNING.value
    kinds: tuple[str, ...] | None = None
    """Kinds of alerts that it receives; null for all kinds."""
    enabled: bool = True
    disabled_reason: str | None = None
    """Why the server has disabled it."""
    settings: dict[str, Any] = {}
    created_at: float = 0.0
    last_sent_at: float | None = None
    last_error: str | None = None
    failures: int = 0
    """Number of failed attempts since the last success."""
    signing_key: str | UnsetType = UNSET
    """Key that signs the messages of a webhook; only in the answer to the request that created the key."""


class Channels(msgspec.Struct, frozen=True, kw_only=True):
    """List of all channels."""

    channels: tuple[Channel, ...]


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was removed."""

    id: str
    removed: bool = True


class ChannelTest(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a test message."""

    ok: bool
    answer: str = ""
    """Answer of the receiving service, or why it did not answer."""
    seconds: float = 0.0


class QuietHours(msgspec.Struct, frozen=True, kw_only=True):
    """Hours in which only severe alerts are sent."""

    start: str
    """Time of day in `timezone`, "HH:MM"."""
    end: str
    """Time of day, "HH:MM"; on the next day where it is before `start`."""
    timezone: str = "UTC"
    min_level: Annotated[str, _one_of(AlertLevel)] = AlertLevel.CRITICAL.value
    """Lowest level that is sent in spite of the quiet hours."""


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """When alerts of many runs are sent as one message."""

    window_seconds: float = 60.0
    threshold: int = 5
    """Number of runs with new alerts within the window from which on they share a message."""


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts of which nobody is notified for a while; a field that is null matches every alert."""

    id: str
    until: float
    """Unix time at which the silence ends."""
    run_id: str | None = None
    project: str | None = None
    kind: str | None = None
    reason: str = ""


class Notifications(msgspec.Struct, frozen=True, kw_only=True):
    """Notification settings that hold for all channels."""

    quiet_hours: QuietHours | None = None
    digest: Digest = Digest()
    cooldown_seconds: float = 600.0
    silences: tuple[Silence, ...] = ()


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """An alert rule that a user has written; docs/how-to/write-rules.md explains the fields."""

    id: str
    name: str
    condition: Annotated[str, _one_of(Condition)]
    value: float
    enabled: bool = True
    level: Annotated[str, _one_of(AlertLevel)] = AlertLevel.WARNING.value
    project: str | None = None
    tag: str | None = None
    run_name: str | None = None
    scalar: str | None = None
    statistic: str | None = None
    layers: str = "*"
    reduce: Annotated[str, _one_of(Reduce)] = Reduce.MAX.value
    change_by: Annotated[str, _one_of(ChangeBy)] = ChangeBy.FACTOR.value
    direction: Annotated[str, _one_of(Direction)] = Direction.UP.value
    window: int = 100
    for_steps: int = 1
    cooldown_minutes: float = 30.0


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """All alert rules, in their order."""

    rules: tuple[Rule, ...]


class Firing(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that a rule would have opened."""

    step: int
    until_step: int | None = None
    """Step at which the alert would have closed; null where it is still open at the end."""
    time: float | None = None
    """Unix time of the step by the clock of the training process."""
    value: float | None = None
    title: str = ""
    message: str = ""
    layers: tuple[str, ...] = ()


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """Values that a rule watches, in buckets; infinite values are left out."""

    bucket_steps: int
    step: tuple[int, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]


class RunBacktest(msgspec.Struct, frozen=True, kw_only=True):
    """An alert rule run over the history of one run."""

    run_id: str
    name: str
    project: str = ""
    chosen: bool = True
    """Whether the rule applies to this run."""
    fired: int
    """Number of alerts that the rule would have opened."""
    firings: tuple[Firing, ...]
    """The first 200 of them."""
    swallowed: tuple[Firing, ...] = ()
    """Alerts that the cooldown of the rule has swallowed, among the first 200 without it."""
    records: int = 0
    values: int
    """Number of records with the values that the rule watches."""
    last_step: int | None
    complete: bool
    """Whether the whole history was read before the time limit."""
    series: Outline


class Backtest(msgspec.Struct, frozen=True, kw_only=True):
    """An alert rule run over the history of several runs."""

    fired: int
    runs: tuple[RunBacktest, ...]


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """An alert in the list of a replay."""

    step: int
    """Step at which the alert opened."""
    kind: Annotated[str, _one_of(AlertKind)]
    level: Annotated[str, _one_of(AlertLevel)]
    """Highest level that the alert reached."""
    title: str
    cause: str = "unknown"
    warned_at_step: int | None = None
    """Step at which a prediction first reached level warning; null if it never did, and for other kinds."""
    predicted_step: protocol.PredictedStep | None = None
    """Forecast at that step, or at the opening of a prediction that stayed a watch."""
    result: str | None = None
    """Outcome of a prediction: "hit", "early", "late" or "false"; null while it is open and for other kinds."""
    until_step: int | None = None
    """Step at which the alert closed; null where it is open at the end."""


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """A stored run through the present detectors: what would have been told, beside what was told."""

    run_id: str
    sensitivity: Annotated[str, _one_of(Sensitivity)]
    would: tuple[Told, ...]
    """Alerts that the present detectors would have opened, oldest first, at most 200."""
    told: tuple[Told, ...]
    """Alerts that were opened while the run was live, oldest first, at most 200."""
    would_count: int = 0
    """Number of alerts that the present detectors would have opened."""
    records: int = 0
    """Number of records that were read."""
    last_step: int | None = None
    complete: bool = True
    """Whether the whole history was read before the time limit."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Rights of a credential."""

    session: str | UnsetType = UNSET
    """Credential of a new login; only in the answer to the request that logged in."""
    scope: Annotated[str, _one_of(Scope)] = Scope.READ.value
    project: str | None = None
    """The one project that the credential opens; null for all projects."""
    label: str = ""
    token_id: int | None = None
    expires_at: float | None = None
    """Unix time at which a login ends; null for a token."""


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """An access token."""

    token: str | UnsetType = UNSET
    """The secret; only in the answer to the request that created the token."""
    id: int
    scope: Annotated[str, _one_of(Scope)]
    project: str | None = None
    label: str = ""
    created_at: float = 0.0
    last_used_at: float | None = None
    revoked_at: float | None = None


class LiveFrame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A frame of the live socket; `type` decides which fields it has."""

    type: str
    run: RunSummary | None = None
    alert: Alert | None = None
    run_id: str | None = None
    event: Event | None = None
    attempt: int | None = None
    step_from: int | None = None
    step_to: int | None = None
    committed_at: float | None = None
    """Unix time at which the server committed the records of an advance."""
    runs: tuple[str, ...] | UnsetType | None = UNSET
    """Runs of the subscription; null for all runs."""
    resumed: bool | None = None
    """Whether everything since the requested cursor follows, of `subscribed`."""
    cursor: str | None = None
    """Position after this message, to resume from."""
    code: str | None = None
    message: str | None = None
    retryable: bool | None = None
