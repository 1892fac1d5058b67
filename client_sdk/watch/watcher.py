"""The instrument of one `watch`: measures at the optimizer's steps and gives each `log` its measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from client_sdk.curvature import CurvatureCopy, Probe
from client_sdk.layers import Layers
from client_sdk.optimizers import describe, kind_of
from client_sdk.protocol import Layout
from client_sdk.run import Run
from client_sdk.stats import Meter, StepCopy
from client_sdk.warner import Warner
from client_sdk.watch.pending import PendingMeasurement
from client_sdk.watch.rates import largest_rate
from client_sdk.watch.rhythm import Rhythm


class Watcher:
    """Instrument of one `watch`. Every method is called on the training thread."""

    def __init__(
        self,
        run: Run,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        layers: Layers,
        *,
        every: int,
        histogram_every: int,
        curvature_every: int,
        is_compact: bool,
    ) -> None:
        kind = kind_of(optimizer)
        self._is_compact = is_compact
        self._run = run
        self._warner: Warner = run.warner
        self._model, self._optimizer = model, optimizer
        self._rhythm = Rhythm(every=every, histogram_every=histogram_every)
        self._meter = Meter(optimizer, kind, layers, warner=run.warner)
        self._probe = Probe(
            model,
            optimizer,
            kind,
            every=curvature_every,
            warner=run.warner,
            is_alone=lambda: run.instrument_count < 2,
        )
        self.layout = Layout(
            id=0,
            layers=layers.names,
            statistics=self._meter.statistics,
            sizes=layers.sizes,
            optimizer=describe(optimizer),
        )
        self._fresh: StepCopy | None = None
        self._flying: list[StepCopy] = []

    def before_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Decide whether to measure the step, and prepare the meter.

        A hook of `torch.optim.Optimizer.register_step_pre_hook`.
        """
        try:
            if self._run.active and self._rhythm.begin_step() and self._meter.watches_versions:
                self._meter.before_step(optimizer)
        except Exception as error:
            self._warner.caught("statistics", "reading the optimizer before its step", error)

    def after_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Measure the step, whose gradients and new state are available now.

        A hook of `torch.optim.Optimizer.register_step_post_hook`.
        """
        try:
            if self._run.active and not _is_capturing():
                self._after_step(optimizer)
        except Exception as error:
            self._warner.caught("statistics", "measuring layer statistics", error)

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._rhythm.end_step():
            return
        wants_histogram = self._rhythm.wants_histogram
        self._fresh = self._meter.measure(optimizer, histograms=wants_histogram)
        self._rhythm.note_measured(histograms=wants_histogram and self._fresh is not None)
        if self._meter.has_newcomers:
            self._warner.warn(
                "new_parameters",
                "the optimizer moves parameters that were missing or frozen when watch() was called; they are not "
                "measured. Call handle.remove() and watch() again after changing the model",
            )

    @property
    def has_stepped(self) -> bool:
        """Whether the optimizer has made a step since the last measured `log`; implements `measurement.Instrument`."""
        return self._rhythm.steps > self._rhythm.logged_at

    def measure(
        self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None
    ) -> PendingMeasurement | None:
        """Start the measurement of ``step``; implements `measurement.Instrument`."""
        try:
            return self._measure(step, metrics, closure)
        except Exception as error:
            self._warner.caught("measure", "measuring", error)
            return None

    def _measure(self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None) -> PendingMeasurement:
        advance = self._rhythm.note_logged()
        fresh, self._fresh = self._fresh, None
        if fresh is not None and closure is not None:
            self._flying.append(fresh)
        lr = largest_rate(self._optimizer)
        curvature: CurvatureCopy | None = None
        if callable(closure):
            self._meter.wants_slope = True
            self._collect()
            follows_one_step = advance == 1 and self._rhythm.measured_at == self._rhythm.steps
            curvature = self._probe.measure(
                step,
                closure,
                lr=lr if isinstance(lr, float) else None,
                loss=metrics.get("loss"),
                signals=fresh if follows_one_step else None,
            )
        elif closure is not None:
            self._warner.warn("closure", f"closure is {type(closure).__name__}; it must be a function of no arguments")
        return PendingMeasurement(fresh, curvature, lr, self.layout.statistics if self._is_compact else None)

    def _collect(self) -> None:
        """Give the schedule the statistics that have reached the host."""
        while self._flying and self._flying[0].ready():
            totals = self._flying.pop(0).totals
            self._probe.schedule.observe_gradient(totals["grad_norm"], totals["decoupling"])


def _is_capturing() -> bool:
    """Return whether a CUDA graph is recording the step; anything measured now would become part of the graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
