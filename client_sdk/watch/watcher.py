"""The instrument of one `watch`: measures at the optimizer's steps and gives each `log` its measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import torch

from client_sdk.curvature import CurvatureCopy, Probe
from client_sdk.distributed import Participation
from client_sdk.layers import Layers
from client_sdk.optimizers import Watched, describe, kind_of, what_is_missing
from client_sdk.protocol import Layout
from client_sdk.run import Run
from client_sdk.stats import Meter, SharedCopy, StepCopy, share
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
        watched: Watched,
        layers: Layers,
        participation: Participation,
        *,
        every: int,
        histogram_every: int,
        curvature_every: int,
        is_compact: bool,
    ) -> None:
        optimizer = watched.optimizer
        kind = kind_of(optimizer) if watched.wrapper is None else "other"
        if (missing := what_is_missing(kind, watched)) is not None:
            run.warner.warn("optimizer", missing)
        self._is_compact = is_compact
        self._run = run
        self._warner: Warner = run.warner
        self._model, self._optimizer = model, optimizer
        self._rhythm = Rhythm(every=every, histogram_every=histogram_every)
        self._meter = Meter(optimizer, kind, layers, warner=run.warner, sees_movement=watched.wrapper is None)
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
        self._is_refuted = False
        self._participation = participation
        self._has_logged = False
        self._fresh: StepCopy | SharedCopy | None = None
        self._flying: list[StepCopy | SharedCopy] = []

    def before_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Decide whether to measure the step, and prepare the meter.

        A hook of `torch.optim.Optimizer.register_step_pre_hook`.
        """
        try:
            if not self._run.active:
                self._participation.leave()
                return
            self._follow_the_ranks()
            is_due = self._rhythm.begin_step() and self._participation.measures
            if is_due and not _is_capturing():
                self._meter.before_step(optimizer)
        except Exception as error:
            self._warner.caught("statistics", "reading the optimizer before its step", error)
        try:
            if self._run.active and self._probe.is_used and not _is_capturing():
                self._probe.before_step(largest_rate(optimizer))
                self._probe.directions.follow()
        except Exception as error:
            self._warner.caught("curvature", "following the unstable directions before a step", error)

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
        if not self._rhythm.end_step() or not self._participation.measures:
            return
        wants_histogram = self._rhythm.wants_histogram
        try:
            own = self._meter.measure(optimizer, histograms=wants_histogram)
        except Exception:
            self._participation.miss(self._rhythm.steps)
            raise
        finally:
            self._rhythm.note_measured(histograms=wants_histogram)
        self._fresh = own
        if self._participation.team is not None:
            self._fresh = share(
                self._participation,
                own,
                self._meter,
                step=self._rhythm.steps,
                next_in=self._rhythm.next_in,
                has_logged=self._has_logged,
            )
        if self._meter.is_refuted:
            self._note_refuted(optimizer)
        if self._meter.has_partial_gradients:
            self._warner.warn(
                "partial_gradients",
                "some gradients are partial sums over the ranks of tensor parallelism when the optimizer reads them; "
                "their parameters are not measured",
            )
        if self._meter.has_newcomers:
            self._warner.warn(
                "new_parameters",
                "the optimizer moves parameters that were missing or frozen when watch() was called; they are not "
                "measured. Call handle.remove() and watch() again after changing the model",
            )

    def _note_refuted(self, optimizer: torch.optim.Optimizer) -> None:
        """Say once that the weights do not move by the optimizer's rule, and probe no curvature that needs it."""
        if self._is_refuted:
            return
        self._is_refuted = True
        name = type(optimizer).__name__
        self._probe.distrust(f"the weights do not move by the update rule that is known for {name}")
        self._warner.warn(
            "update_rule",
            f"the weights move otherwise than the update rule of {name} says, as with a wrapper, a hook or a subclass "
            "that changes them within step(). update_norm is measured at the weights from now on; u_rms, histograms, "
            "λ_grad and λ_max are left out. Watch the optimizer that changes the weights last, if there is another",
        )

    def _follow_the_ranks(self) -> None:
        """Form the team before the first step, and measure when the team has decided to."""
        if not self._participation.is_settled:
            self._participation.settle()
            team = self._participation.team
            if team is not None:
                self._meter.histogram_layers = team.division.whole
                self._extend_layout(team.division.layers, team.division.sizes)
        interval = self._participation.decide()
        if interval is not None:
            self._rhythm.lead(interval)

    def _extend_layout(self, layers: tuple[str, ...], sizes: tuple[int, ...]) -> None:
        """Take the layers of all ranks into the layout, which the run learns before its first record."""
        if (layers, sizes) != (self.layout.layers, self.layout.sizes):
            self._run.detach(self)
            self.layout = msgspec.structs.replace(self.layout, layers=layers, sizes=sizes)
            self._run.attach(self)

    def leave(self) -> None:
        """Take no further part in a team of ranks; for the end of a watch."""
        self._participation.leave()

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
        self._has_logged = True
        fresh, self._fresh = self._fresh, None
        if isinstance(fresh, SharedCopy):
            fresh.note_record(step, self._warner)
        if fresh is not None and closure is not None:
            self._flying.append(fresh)
        lr = largest_rate(self._optimizer)
        curvature: CurvatureCopy | None = None
        if callable(closure):
            self._collect()
            curvature = self._probe.measure(step, closure, lr=lr if isinstance(lr, float) else None)
        elif closure is not None:
            self._warner.warn("closure", f"closure is {type(closure).__name__}; it must be a function of no arguments")
        mode = self._probe.directions.copy() if advance and self._probe.is_used else None
        return PendingMeasurement(fresh, curvature, mode, lr, self.layout.statistics if self._is_compact else None)

    def _collect(self) -> None:
        """Give the schedule the statistics that have reached the host."""
        while self._flying and self._flying[0].ready():
            totals = self._flying.pop(0).totals
            self._probe.schedule.observe_gradient(totals["grad_norm"], totals["decoupling"])


def _is_capturing() -> bool:
    """Return whether a CUDA graph is recording the step; anything measured now would become part of the graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
