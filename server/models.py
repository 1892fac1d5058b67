"""Frozen values that the rooms of the server exchange. No I/O and no behaviour beyond arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from client_sdk.protocol import Alert, Layout, Optimizer, Outcome, PredictedStep
from client_sdk.vocabulary import (
    AlertKind,
    AlertLevel,
    AlertState,
    Cause,
    EventKind,
    RunState,
    Scope,
    Stage,
    StageReason,
)

__all__ = [
    "DELETING",
    "Alert",
    "AlertKind",
    "AlertLevel",
    "AlertState",
    "Cause",
    "Event",
    "EventKind",
    "Finding",
    "LayerColumns",
    "LayerSums",
    "Layout",
    "Optimizer",
    "Outcome",
    "Outlier",
    "PredictedStep",
    "Principal",
    "Progress",
    "RunState",
    "Sample",
    "Scope",
    "Stage",
    "StageReason",
    "Verdict",
]


DELETING: Final = "deleting"
"""State stored for a run that is being deleted. The run is hidden: no answer carries this state."""


class LayerColumns(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The layer statistics of a segment, with the index of one of its records."""

    statistics: Mapping[str, NDArray[np.float32]]
    """Values of each measured statistic, shape (layers, records), keyed by its name."""
    at: int
    """Index of the record."""


class LayerSums(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Sums and extremes over the layers of one step; `detectors.layer_sums` computes them."""

    has_gradients: bool = False
    """Whether the layout has gradient norms, measured at this step or not."""
    squares: NDArray[np.float64] | None = None
    """Squared gradient norm of each layer, 0 where not measured; None where no layer was measured."""
    known: NDArray[np.bool_] | None = None
    """Mask of the layers whose gradient norm was measured; None for all layers."""
    square_sum: float = 0.0
    """Sum of the squared gradient norms, Σg²."""
    decoupling: float | None = None
    """Ratio of the squared gradients to the second moments over all layers, Σg²/Σv̂."""
    descent: float | None = None
    """Σv̂·Σ(g²/√v̂)/Σg² over all layers: the loss's fall per learning rate if the gradient were as large as √v̂."""
    is_fresh: bool = False
    """Whether v̂ equals g² in every layer."""
    nonfinite: int = 0
    """Number of non-finite coordinates over all layers."""
    guilty: tuple[str, ...] = ()
    """The first layers with non-finite coordinates."""
    update_ratio: float | None = None
    """Largest update ratio of a layer."""
    eps_fraction: float | None = None
    """Mean of the layers' shares below ε, weighted by layer size."""


class Sample(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A decoded record for the detectors, which read the records of one writer in the order of their sequence."""

    step: int
    time: float
    """Unix time by the clock of the training process."""
    scalars: Mapping[str, float]
    attempt: int = 0
    is_late: bool = False
    """Whether the record belongs to an earlier step of the attempt, although training itself did not go back."""
    layout: Layout | None = None
    block: NDArray[np.float32] | None = None
    """Layer statistics, shape (layers, statistics) of `layout`; NaN where not measured."""
    columns: LayerColumns | None = None
    """Layer statistics of a sample that belongs to a segment, instead of `block`."""
    layer_sums: LayerSums | None = None
    """Sums over the layers, where they are already computed."""

    @property
    def has_layers(self) -> bool:
        """Whether the sample has layer statistics."""
        return self.block is not None or self.columns is not None

    def statistic(self, name: str) -> NDArray[np.float32] | None:
        """Return a layer statistic, shape (layers,), or None where this sample does not have it."""
        if self.layout is None or name not in self.layout.statistics:
            return None
        column: NDArray[np.float32]
        if self.block is not None:
            column = self.block[:, self.layout.statistics.index(name)]
        elif self.columns is None:
            return None
        elif name in self.columns.statistics:
            column = self.columns.statistics[name][:, self.columns.at]
        else:
            column = np.full(len(self.layout.layers), np.nan, dtype=np.float32)
        return column


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened at a step: a stage change, a spike, an lr jump, non-finite values, a rollback."""

    step: int
    kind: str
    """Kind of the event, an `EventKind`."""
    attempt: int = 0
    detail: Mapping[str, float | int | str | None] = msgspec.field(default_factory=dict)
    """Further values of the event; `client_sdk.answers.Event` lists the keys of each kind."""


class Outlier(msgspec.Struct, frozen=True, kw_only=True):
    """A loss far above its neighbours, or a mark; `detectors.outliers` finds both, other runs are compared to them."""

    step: int
    attempt: int = 0
    loss: float = 0.0
    baseline: float = 0.0
    """Median of the losses before it."""
    deviations: float = 0.0
    """Height above the median in robust standard deviations; 0 for a mark, which only has a pattern."""
    interval: int = 1
    """Number of steps since the loss before."""
    is_quiet: bool = True
    """Whether the outlier is too small to be an event."""
    pattern: bytes = b""
    """Differences of the losses before it as signed bytes, 25 for each robust deviation; empty if not known."""
    axis: str | None = None
    """Name of the scalar that gives the position in the data, None where the run logs none."""
    position: float | None = None
    """Position in the data on that axis."""
    spacing: float = 0.0
    """Difference of the position to that of the loss before."""


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the steps that the detectors of a run have read."""

    first_step: int
    last_step: int
    interval: int
    """Number of steps between two records."""
    axis: str | None = None
    """Name of the scalar that gives the position in the data, None where the run logs none."""
    first_position: float | None = None
    last_position: float | None = None


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A conclusion that a detector holds at a step. `alerts.lifecycle` turns findings into alerts."""

    kind: AlertKind
    level: AlertLevel
    step: int
    title: str
    message: str
    cause: Cause = Cause.UNKNOWN
    predicted_step: PredictedStep | None = None
    layers: tuple[str, ...] = ()
    layer_shares: tuple[float, ...] = ()
    evidence: Mapping[str, float | int | str | None] = msgspec.field(default_factory=dict)
    advice: tuple[str, ...] = ()
    key: str = ""
    """Id of the alert rule, which distinguishes findings of one kind; empty where a kind has one finding at a time."""

    @property
    def slot(self) -> str:
        """Identity of the finding within a run; at most one open alert has it."""
        return f"{self.kind.value}:{self.key}" if self.key else self.kind.value


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Conclusions of the detectors after one sample."""

    step: int
    stage: Stage
    stability_ratio: float | None
    """The last measured λ_max·η/2."""
    stage_reason: str | None = None
    """Reason for which the run is not judged, a `StageReason`; None in every other stage."""
    loss_name: str | None = None
    """Name of the scalar that is read as the loss; None until it has arrived."""
    forecast: PredictedStep | None = None
    findings: tuple[Finding, ...] = ()
    """Findings that hold now; a finding of an earlier verdict that is absent no longer holds."""
    events: tuple[Event, ...] = ()
    outlier: Outlier | None = None
    """Outlier of the loss at this step, or mark; None for most steps."""
    interval: int = 1
    """Number of steps between two records of the writer; a duration of n records is n·interval steps."""


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Rights of a valid token or login."""

    scope: Scope
    project: str | None = None
    """The one project that the token opens; None for all projects."""
    key: str = field(default="", compare=False)
    """Name of the token in limits and logs, without its secret. A login has the key of its token."""
    label: str = field(default="", compare=False)
    """Purpose of the token, given at its creation."""

    def may(self, scope: Scope) -> bool:
        """Return whether the rights include a scope."""
        order = list(Scope)
        return order.index(self.scope) >= order.index(scope)

    def may_see(self, project: str) -> bool:
        """Return whether the rights include a project."""
        return self.project is None or self.project == project


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State of a run after its last sample, as the follower reports it for the list of runs."""

    step_rate: float | None = None
    """Steps per second by the clock of the training process."""
    loss: float | None = None
    lr: float | None = None
    stage: str | None = None
    stage_reason: str | None = None
    """Reason for which the run is not judged, a `StageReason`."""
    loss_name: str | None = None
    """Name of the scalar that is read as the loss."""
    loss_since: int | None = None
    """First step that was judged with this loss, None if no other one was."""
    stability_ratio: float | None = None
    sparkline: Mapping[str, Any] | None = None
    """Largest loss of each bucket: {"first_step", "bucket_steps", "max": [loss or null]}."""
