"""Frozen values that the rooms of the server pass to each other. No I/O, no behaviour beyond arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from client_sdk.protocol import Alert, Layout, Optimizer, Outcome, PredictedStep
from client_sdk.vocabulary import AlertKind, AlertLevel, AlertState, Cause, EventKind, RunState, Scope, Stage

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
    "PredictedStep",
    "Principal",
    "Progress",
    "RunState",
    "Sample",
    "Scope",
    "Stage",
    "Verdict",
]


DELETING: Final = "deleting"
"""State stored for a run that is being deleted. The run is hidden: no answer carries this state."""


class LayerColumns(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The layer statistics of a segment, and which record of it is meant."""

    statistics: Mapping[str, NDArray[np.float32]]
    """Name to (layers, records); absent where no layer was measured."""
    at: int


class LayerSums(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What the layers of one step say together; `detectors.layer_sums` makes it."""

    has_gradients: bool = False
    """Whether the layout has gradient norms, measured at this step or not."""
    squares: NDArray[np.float64] | None = None
    """g² of each layer, 0 where not measured; None where no layer's is."""
    known: NDArray[np.bool_] | None = None
    """Which layers' g² was measured; None for all."""
    square_sum: float = 0.0
    decoupling: float | None = None
    """Σg²/Σv̂."""
    is_fresh: bool = False
    """v̂ equals g² in every layer."""
    nonfinite: int = 0
    """Coordinates."""
    guilty: tuple[str, ...] = ()
    """The first layers with non-finite coordinates."""
    update_ratio: float | None = None
    """Largest of a layer."""
    eps_fraction: float | None = None
    """Mean over layers, weighted by size."""


class Sample(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One record, decoded, as the detectors see it: one writer, in the order of its sequence."""

    step: int
    time: float
    """Unix time by the training process's clock."""
    scalars: Mapping[str, float]
    attempt: int = 0
    layout: Layout | None = None
    block: NDArray[np.float32] | None = None
    """layers × statistics of `layout`; NaN where not measured."""
    columns: LayerColumns | None = None
    """In place of the block, where the sample is one of a segment."""
    layer_sums: LayerSums | None = None
    """Where they are known already."""

    @property
    def has_layers(self) -> bool:
        return self.block is not None or self.columns is not None

    def statistic(self, name: str) -> NDArray[np.float32] | None:
        """The column of one layer statistic, shape (layers,), or None where this sample has none."""
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
    """One of `EventKind`."""
    attempt: int = 0
    detail: Mapping[str, float | int | str | None] = msgspec.field(default_factory=dict)
    """For "stage": {"stage": …}; for "spike": {"loss": …, "baseline": …, "peak_step": …}."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a detector holds to be true at a step. `alerts.lifecycle` turns findings into alerts."""

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
    """Tells findings of one kind apart: the id of a rule. Empty: one of its kind at a time."""

    @property
    def slot(self) -> str:
        """What of a run at most one open alert is about."""
        return f"{self.kind.value}:{self.key}" if self.key else self.kind.value


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the detectors say after one sample."""

    step: int
    stage: Stage
    stability_ratio: float | None
    """λ_max·η/2, the last one measured."""
    forecast: PredictedStep | None = None
    findings: tuple[Finding, ...] = ()
    """Those that hold now; a kind (of a rule: a key) that is absent no longer holds."""
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Whoever holds a valid token."""

    scope: Scope
    project: str | None = None
    """The one project that the token opens, None for all."""
    key: str = field(default="", compare=False)
    """Names the token in limits and logs, never its secret. A login has that of its token."""
    label: str = field(default="", compare=False)
    """What its maker said that the token is for."""

    def may(self, scope: Scope) -> bool:
        order = list(Scope)
        return order.index(self.scope) >= order.index(scope)

    def may_see(self, project: str) -> bool:
        return self.project is None or self.project == project


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run's follower knows of it after the last sample: the columns of the fleet page."""

    step_rate: float | None = None
    """Steps a second by the clock of the training process."""
    loss: float | None = None
    lr: float | None = None
    stage: str | None = None
    stability_ratio: float | None = None
    sparkline: Mapping[str, Any] | None = None
    """{"first_step", "bucket_steps", "max": [greatest loss or null]}."""
