"""What the HTTP API and the live socket answer, as frozen values. No I/O.

The names are those of the public contract; unknown fields are ignored, so that an older dashboard reads a newer server.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


class PredictedStep(msgspec.Struct, frozen=True, kw_only=True):
    """When a spike is expected: earliest, most likely, latest step."""

    low: int
    best: int
    high: int


class LastAlert(msgspec.Struct, frozen=True, kw_only=True):
    """The newest alert of a run, short."""

    id: str
    kind: str
    level: str
    state: str
    title: str
    step: int


class Optimizer(msgspec.Struct, frozen=True, kw_only=True):
    """The watched optimizer."""

    name: str
    lr: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    weight_decay: float | None = None


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One run as the fleet shows it."""

    id: str
    project: str = ""
    name: str | None = None
    state: str = "running"
    created_at: float | str | None = None
    last_seen_at: float | str | None = None
    last_step: int | None = None
    step_rate: float | None = None  # steps per second
    loss: float | None = None
    stage: str | None = None
    stability_ratio: float | None = None  # λ_max·η/2, limit 1
    open_alerts: int = 0
    layer_count: int | None = None
    sparkline: tuple[float | None, ...] = ()
    predicted_step: PredictedStep | None = None
    last_alert: LastAlert | None = None
    optimizer: Optimizer | None = None
    parameter_count: int | None = None
    lr: float | None = None

    @property
    def title(self) -> str:
        """The name its author gave, or the beginning of its id."""
        return self.name or self.id[:8]


class RunDetail(RunSummary, frozen=True, kw_only=True):
    """One run with the names of what it recorded."""

    layers: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()


class RunPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of the list of runs."""

    runs: tuple[RunSummary, ...]
    next_cursor: str | None = None


class Buckets(msgspec.Struct, frozen=True, kw_only=True):
    """One series, downsampled without losing its extremes; None where no finite value was."""

    step: tuple[int, ...]
    min: tuple[float | None, ...]
    max: tuple[float | None, ...]
    last: tuple[float | None, ...]
    nonfinite: tuple[int, ...] = ()


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Several series over one range of steps."""

    step_from: int | None = None
    step_to: int | None = None
    bucket_steps: int = 1
    series: dict[str, Buckets] = {}


class Heatmap(msgspec.Struct, frozen=True, kw_only=True):
    """One statistic of every layer: `z` is layers × columns, float32, NaN where nothing was measured."""

    layers: tuple[str, ...]
    step: tuple[int, ...]
    bucket_steps: int
    z: NDArray[np.float32]
    nonfinite: tuple[tuple[int, int, int], ...] = ()
    """Row, column and count of every cell with values that are not finite."""


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """Distribution of u or r in one layer at one step; `edges` has one entry more than `counts`."""

    layer: str
    step: int | None = None
    edges: tuple[float | None, ...] = ()
    counts: tuple[float, ...] = ()
    dip: float | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a prediction was settled: hit, early, late or false."""

    result: str
    step: int | None = None
    lead: int | None = None


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert with its evidence and advice."""

    id: str
    run_id: str
    kind: str
    level: str
    state: str
    step: int
    title: str = ""
    message: str = ""
    predicted_step: PredictedStep | None = None
    layers: tuple[str, ...] = ()
    layer_shares: tuple[float | None, ...] = ()
    cause: str = "unknown"
    evidence: dict[str, float | int | str | None] = {}
    advice: tuple[str, ...] = ()
    outcome: Outcome | None = None
    opened_at: float | str | None = None
    closed_at: float | str | None = None
    silenced_until: float | str | None = None

    @property
    def is_open(self) -> bool:
        """True until it is resolved; an acknowledged alert is still open."""
        return self.state != "resolved"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened at a step."""

    step: int
    kind: str
    stage: str | None = None
    loss: float | None = None
    baseline: float | None = None
    peak_step: int | None = None


class LiveMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One frame of the live socket; which fields are set depends on `type`."""

    type: str
    run: RunSummary | None = None
    alert: Alert | None = None
    event: Any = None
    run_id: str | None = None
    step_to: int | None = None
    committed_at: float | None = None
    cursor: str | None = None
    """Where to go on after this message."""
    resumed: bool = False
    """Of `subscribed`: what came since the cursor that was asked for follows, and nothing is missing."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a credential is."""

    scope: str = "read"
    project: str | None = None
    label: str = ""
    expires_at: float | None = None


class Login(Identity, frozen=True, kw_only=True):
    """A new login; `session` is its credential."""

    session: str


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that somebody wrote; docs/how-to/write-rules.md says what the fields mean."""

    id: str
    name: str
    condition: str
    value: float
    enabled: bool = True
    level: str = "warning"
    project: str | None = None
    tag: str | None = None
    run_name: str | None = None
    scalar: str | None = None
    statistic: str | None = None
    layers: str = "*"
    reduce: str = "max"
    change_by: str = "factor"
    direction: str = "up"
    window: int = 100
    for_steps: int = 1
    cooldown_minutes: float = 30.0


class Firing(msgspec.Struct, frozen=True, kw_only=True):
    """One alert that a rule would have opened."""

    step: int
    until_step: int | None = None
    value: float | None = None
    message: str = ""
    layers: tuple[str, ...] = ()


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule watches, in buckets."""

    bucket_steps: int
    step: tuple[int, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]


class TriedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A rule against the history of one run."""

    run_id: str
    name: str
    chosen: bool
    fired: int
    firings: tuple[Firing, ...]
    values: int
    last_step: int | None
    complete: bool
    series: Outline


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """A rule against history."""

    fired: int
    runs: tuple[TriedRun, ...]


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """Where alerts go. Its secret is never told."""

    id: str
    name: str
    kind: str
    target: str = ""
    project: str | None = None
    min_level: str = "warning"
    kinds: tuple[str, ...] | None = None
    enabled: bool = True
    disabled_reason: str | None = None
    settings: dict[str, Any] = {}
    last_sent_at: float | None = None
    last_error: str | None = None
    signing_key: str | None = None


class ChannelField(msgspec.Struct, frozen=True, kw_only=True):
    """Input field of the form of a channel."""

    name: str
    label: str
    in_settings: bool = False
    """Whether the value belongs into the channel's settings."""
    secret: bool = False
    required: bool = False
    advanced: bool = False
    """Whether the form leaves the field out."""
    placeholder: str = ""
    help: str = ""


class ChannelKind(msgspec.Struct, frozen=True, kw_only=True):
    """Kind of channel with the fields of its form."""

    name: str
    label: str
    fields: tuple[ChannelField, ...] = ()


class ChannelTest(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a test message."""

    ok: bool
    answer: str = ""


class QuietHours(msgspec.Struct, frozen=True, kw_only=True):
    """When only grave alerts are told; times are HH:MM."""

    start: str
    end: str
    timezone: str = "UTC"
    min_level: str = "critical"


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """Of many alerts within a window one message is made."""

    window_seconds: float = 60.0
    threshold: int = 5


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts that nobody is told of for a while."""

    id: str
    until: float
    run_id: str | None = None
    project: str | None = None
    kind: str | None = None
    reason: str = ""


class Notifications(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for all channels."""

    quiet_hours: QuietHours | None = None
    digest: Digest = Digest()
    cooldown_seconds: float = 600.0
    silences: tuple[Silence, ...] = ()


class Lead(msgspec.Struct, frozen=True, kw_only=True):
    """Steps from predictions to the spikes that came."""

    median: float | None = None


class Precision(msgspec.Struct, frozen=True, kw_only=True):
    """How the predictions above watch turned out."""

    settled: int = 0
    hit: int = 0
    early: int = 0
    late: int = 0
    false: int = 0
    lead_steps: Lead = Lead()


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token without its secret; a new one has it, this once."""

    id: int
    scope: str
    project: str | None = None
    label: str = ""
    last_used_at: float | None = None
    revoked_at: float | None = None
    token: str | None = None
