"""The instrument of one `watch`: measures at the optimizer's steps and gives each `log` its measurements."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from client_sdk.audit import Auditor, Ledger, Surroundings
from client_sdk.budget import Budget
from client_sdk.curvature import CurvatureCopy, Method, SharedProbe
from client_sdk.distributed import Participation, Partition
from client_sdk.errors import ConfigurationError
from client_sdk.layers import Group, Layers, map_layers
from client_sdk.optimizers import Watched, describe, kind_of, what_is_missing
from client_sdk.protocol import Audit, Layout
from client_sdk.run import Run
from client_sdk.run_status import WatchStatus
from client_sdk.stats import Meter, PartedMeter, PeriodTwoCopy, SharedCopy, StepCopy, UnitedCopy, share
from client_sdk.warner import Warner
from client_sdk.watch.census import Census
from client_sdk.watch.cost import CostMeter
from client_sdk.watch.disuse import Disuse
from client_sdk.watch.iteration import Iteration
from client_sdk.watch.pending import PendingMeasurement, Sink, TakenStep
from client_sdk.watch.rates import largest_rate
from client_sdk.watch.rhythm import Every, Rhythm
from client_sdk.watch.trigger import Trigger

MAX_FLYING: Final = 16  # measured steps whose totals the curvature's schedule has not read
REPORTED_EVERY: Final = 64  # measured steps after which the rhythm is logged again although it has not changed


class Watcher:
    """Instrument of one `watch`. Every method but `observe` is called on the training thread."""

    def __init__(
        self,
        run: Run,
        model: torch.nn.Module,
        watched: Watched,
        layers: Layers,
        participation: Participation,
        *,
        every: Every,
        histogram_every: int,
        curvature_every: int,
        curvature: Method,
        budget: float,
        group: Group,
        is_compact: bool,
        partition: Partition | None = None,
    ) -> None:
        optimizer = watched.optimizer
        self._partition = partition
        self._watched = watched
        self._kind = kind = kind_of(optimizer) if watched.wrapper is None else "other"
        if (missing := what_is_missing(kind, watched)) is not None:
            run.warner.warn("optimizer", missing)
        self._is_compact = is_compact
        self._run = run
        self._warner: Warner = run.warner
        self._model, self._optimizer, self._group = model, optimizer, group
        self._budget = Budget(budget)
        self._has_cuda = torch.cuda.is_available()
        self.rhythm = Rhythm(every=every, histogram_every=histogram_every, budget=self._budget)
        """Decision which steps are measured."""
        self._trigger = Trigger(run.settings.loss)
        self._cost = CostMeter(layers.parameters[0].device)
        self._sink = Sink(self._observe_totals, self._cost.spent, run.warner, self._audit_measured)
        self._meter = self._new_meter(layers)
        self._participation = participation
        self._has_logged = False
        self._disuse = Disuse(layers.parameters)
        self._probe = SharedProbe(
            model,
            optimizer,
            kind,
            every=curvature_every,
            method=curvature,
            warner=run.warner,
            budget=self._budget,
            is_alone=lambda: run.instrument_count < 2,
        )
        if partition is not None and partition.obstacle_to_curvature:
            self._probe.refuse(partition.obstacle_to_curvature)
        others = [other for other in run.instruments if isinstance(other, Watcher)]
        self.iteration: Iteration = others[0].iteration if others else Iteration()
        """Position within the training loop, which all watchers of a run share."""
        surroundings = Surroundings(
            owned=self._owned,
            is_sole=lambda: run.instrument_count < 2,
            config=run.settings.config,
            loss=run.settings.loss,
            is_divided=partition is not None,
        )
        ledger: Ledger = others[0].auditor.ledger if others else Ledger()
        self.auditor: Auditor = Auditor(
            model, watched, kind, layers, surroundings=surroundings, ledger=ledger, warner=run.warner
        )
        """Audit of the optimizer; all watchers of a run share its ledger."""
        self.layout = _layout_of(optimizer, layers, self._meter)
        """Layout of the blocks; implements `measurement.Instrument`."""
        self._census = Census(optimizer if partition is None else partition.whole, layers)
        self._is_refuted = False
        self._fresh: TakenStep | None = None  # the last step, if no record has it
        self._held: PendingMeasurement | None = None  # that of the last record, if its step is still to come
        self._logs_first = False  # whether records precede their steps
        self._has_stepped_since_probe = False
        self._flying: deque[StepCopy | UnitedCopy | SharedCopy] = deque(maxlen=MAX_FLYING)
        self._alerts_seen = run.inbox.received
        self._curvature_records = 0  # records with a closure
        self._reported = 0, 0  # interval, and measured steps since it was logged

    # -- hooks of the optimizer --

    def before_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Decide whether to measure the step, and prepare the meter.

        A hook of `torch.optim.Optimizer.register_step_pre_hook`.
        """
        try:
            if not self._run.active:
                self._participation.leave()
                return
            self._audit_before_step(optimizer)
            self._follow_the_ranks()
            self._follow_parameters(optimizer)
            is_read = self._held is not None
            # Where records precede their steps, it is known which steps are read. Elsewhere the rhythm predicts it.
            is_due = self.rhythm.begin_step(is_read=is_read if is_read or self._logs_first else None)
            if self.rhythm.is_followed and isinstance(self._meter, Meter):
                self._meter.period_two.before_step(optimizer)
            if is_due and self._participation.measures and not (self._has_cuda and _is_capturing()):
                with self._cost.part():
                    self._meter.before_step(optimizer, has_closure=_has_closure(args, kwargs))
        except Exception as error:
            self._warner.caught("statistics", "reading the optimizer before its step", error)
        try:
            if self._probe.is_resting:
                self._probe.pass_step()
            elif self._run.active and self._probe.is_used and not (self._has_cuda and _is_capturing()):
                began = time.perf_counter()
                self._probe.before_step(largest_rate(optimizer))
                self._probe.follow()
                self._charge_curvature(time.perf_counter() - began)
        except Exception as error:
            self._warner.caught("curvature", "following the unstable directions before a step", error)

    def _charge_curvature(self, seconds: float) -> None:
        self._cost.excluded(seconds)
        self._budget.spend(seconds, "curvature")

    def after_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Measure the step, whose gradients and new state are available now.

        A hook of `torch.optim.Optimizer.register_step_post_hook`.
        """
        try:
            if self._run.active and not (self._has_cuda and _is_capturing()):
                self._after_step(optimizer)
        except Exception as error:
            self._warner.caught("statistics", "measuring layer statistics", error)

    def before_part(self) -> None:
        """Prepare the meter for the next part of a step; see `part_steps.PartObserver`."""
        if isinstance(self._meter, PartedMeter) and self._meter.is_measuring:
            with self._cost.part():
                self._meter.before_part()

    def after_part(self) -> None:
        """Measure a part of a step; see `part_steps.PartObserver`."""
        if isinstance(self._meter, PartedMeter) and self._meter.is_measuring:
            with self._cost.part():
                self._meter.measure_part()

    def cancel_step(self) -> None:
        """Forget a step that was not completed; see `part_steps.PartObserver`."""
        if isinstance(self._meter, PartedMeter):
            self._meter.cancel()

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        is_due = self.rhythm.end_step()
        self._disuse.note_step()
        self._has_stepped_since_probe = True
        is_awaited = self.iteration.is_step_of_last_log()
        is_measured = is_due and self._participation.measures
        period_two = self._follow_period_two(optimizer, is_measured=is_measured)
        statistics = self._measure_step(optimizer) if is_measured else None
        step = TakenStep(
            lr=largest_rate(optimizer),
            statistics=statistics,
            mode=self._probe.modes(
                self.rhythm.steps, statistics.shared if isinstance(statistics, SharedCopy) else None
            ),
            period_two=period_two if self._holds_whole_model else None,
            scalars={} if statistics is None else self._rhythm_scalars(),
            number=self.rhythm.steps,
        )
        self._take(step, is_awaited=is_awaited)
        if statistics is not None and self._probe.is_used:
            self._flying.append(statistics)
        if is_due and self._fresh is None:
            self._follow_parameters(optimizer)
        self._audit_after_step(optimizer)
        self.iteration.note_step()
        seconds = self._cost.end_step()
        if seconds is not None:
            self.rhythm.observe_step_time(seconds)
        for cost in self._cost.costs():
            self.rhythm.observe_cost(cost)

    # -- audit --

    def _audit_before_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._has_cuda and _is_capturing():
            return
        began = time.perf_counter()
        self.auditor.before_step(optimizer)
        self._cost.excluded(time.perf_counter() - began)

    def _audit_after_step(self, optimizer: torch.optim.Optimizer) -> None:
        began = time.perf_counter()
        self.auditor.after_step(optimizer)
        self._cost.excluded(time.perf_counter() - began)

    def _audit_log(self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None) -> None:
        began = time.perf_counter()
        with self.iteration.set_aside():
            self.auditor.note_log(step, metrics, closure)
        self._cost.excluded(time.perf_counter() - began)

    def _audit_measured(self, step: TakenStep, block: NDArray[np.float32], lr: float | None) -> None:
        """Show a measured step to the audit. Called from any thread."""
        meter = self._meter
        self.auditor.note_measured(step.number, block, self.layout, lr)
        if isinstance(meter, Meter):
            self.auditor.note_formula(meter.judged, meter.refutation)

    def _owned(self) -> set[int]:
        """Return the ids of the parameters of all watched optimizers of the run."""
        watchers = {id(one): one for one in (self, *self._run.instruments) if isinstance(one, Watcher)}
        return {
            id(parameter)
            for one in watchers.values()
            for group in one.optimizer.param_groups
            for parameter in group["params"]
        }

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Optimizer whose steps are watched."""
        return self._optimizer

    def recompute(self, closure: Callable[[], Any]) -> bool:
        """Compute a batch again, and return whether the results agree; see `Handle.recompute`."""
        with self.iteration.set_aside():
            return self.auditor.recompute(closure)

    def audit(self, step: int, scalars: Mapping[str, float]) -> Audit | None:
        """Return what a record is to say about the audit. Called from any thread."""
        self.auditor.note_record(step, scalars)
        return self.auditor.ledger.report()

    @property
    def _holds_whole_model(self) -> bool:
        """Whether the gradients of this rank are those of the whole model, so that their scalars are the run's."""
        team = self._participation.team
        if team is None:
            return self._participation.measures
        return len(team.division.whole) == len(team.division.layers)

    def _follow_period_two(self, optimizer: torch.optim.Optimizer, *, is_measured: bool) -> PeriodTwoCopy | None:
        """Follow the gradients of the step if that is wanted, and return the readings on their way to the host."""
        if isinstance(self._meter, PartedMeter):
            return None  # its parts are followed where they are measured, as their gradients are gone by now
        if not self.rhythm.wants_following(is_measured=is_measured):
            return None
        began = time.perf_counter()
        try:
            self._meter.period_two.follow(optimizer, self.rhythm.steps)
            return self._meter.period_two.copy(is_trusted=not self._meter.is_refuted)
        except Exception as error:
            self._warner.caught("period_two", "following the gradients of successive steps", error)
            return None
        finally:
            seconds = time.perf_counter() - began
            if is_measured:
                self._cost.spent(seconds)
            else:
                self._cost.excluded(seconds)
            self.rhythm.observe_following(seconds, is_measured=is_measured)

    def _measure_step(self, optimizer: torch.optim.Optimizer) -> StepCopy | UnitedCopy | SharedCopy | None:
        wants_histogram = self.rhythm.wants_histogram
        try:
            with self._cost.part():
                own = self._meter.measure(optimizer, histograms=wants_histogram)
        except Exception as error:
            self._participation.miss(self.rhythm.steps)
            self._warner.caught("statistics", "measuring layer statistics", error)
            return None
        finally:
            # The ranks of a team must count alike, whether or not one of them found a gradient.
            self.rhythm.note_measured(histograms=wants_histogram)
            self._cost.end_measurement()
        if self._meter.is_refuted:
            self._note_refuted(optimizer)
        if self._meter.has_partial_gradients:
            self._warner.warn(
                "partial_gradients",
                "some gradients are partial sums over the ranks of tensor parallelism when the optimizer reads them; "
                "their parameters are not measured",
            )
        if self._participation.team is None:
            return own
        return share(
            self._participation,
            own,
            self._meter,
            step=self.rhythm.steps,
            next_in=self.rhythm.next_in,
            has_logged=self._has_logged,
            modes=self._probe.amplitudes(),
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
            self._probe.join(self._participation)
            team = self._participation.team
            if team is not None:
                self._meter.histogram_layers = team.division.whole
                self._extend_layout(team.division.layers, team.division.sizes)
        interval = self._participation.decide()
        if interval is not None:
            self.rhythm.lead(interval)
        self._probe.follow_ranks()

    def _extend_layout(self, layers: tuple[str, ...], sizes: tuple[int, ...]) -> None:
        """Take the layers of all ranks into the layout, which the run learns before its first record."""
        if (layers, sizes) != (self.layout.layers, self.layout.sizes):
            self._announce(msgspec.structs.replace(self.layout, layers=layers, sizes=sizes))

    def leave(self) -> None:
        """Take no further part in a team of ranks; for the end of a watch."""
        self._participation.leave()
        self.auditor.leave()

    def _take(self, step: TakenStep, *, is_awaited: bool) -> None:
        """Give a step to the record that waits for it, or keep it for the next record."""
        held, self._fresh = self._held, step
        if held is None:
            return
        if is_awaited:
            self._fresh, self._logs_first = None, True
            self._release(step)
        elif held.fallback is None and held.candidate is None:
            held.candidate = step
            return
        else:
            self._release(held.fallback)
        self._run.write_ready()

    # -- measurement.Instrument --

    @property
    def has_stepped(self) -> bool:
        """Whether the optimizer has made a step since the last measured `log`."""
        return self.rhythm.steps > self.rhythm.logged_at

    @property
    def status(self) -> WatchStatus:
        """The present rhythm and what it takes."""
        rhythm = self.rhythm
        return WatchStatus(
            every=rhythm.interval,
            share=rhythm.share,
            is_dense=rhythm.is_dense,
            is_automatic=rhythm.every == "auto",
            curvature_share=self._budget.used("curvature") if self._probe.is_used else None,
        )

    def measure(
        self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None
    ) -> PendingMeasurement | None:
        """Start the measurement of ``step``."""
        try:
            return self._measure(step, metrics, closure)
        except Exception as error:
            self._warner.caught("measure", "measuring", error)
            self.settle()
            return None

    def settle(self) -> None:
        """Complete the measurement that waits for the optimizer's next step, without that step."""
        held = self._held
        if held is not None:
            self._release(held.candidate if self._logs_first and held.candidate is not None else held.fallback)

    def observe(self, scalars: Mapping[str, float]) -> None:
        """Look for signs in the values of a record. Called from any thread."""
        if self.rhythm.every == "auto" and self._trigger.observe(scalars):
            self.rhythm.stir()

    def _measure(self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None) -> PendingMeasurement:
        is_of_next_step = self.iteration.is_log_of_next_step() and not self._disuse.is_disused
        self._complete_last(is_of_next_step=is_of_next_step)
        self._has_logged = True
        if not self.rhythm.note_logged(is_of_next_step=is_of_next_step):
            self._look_for_disuse()
        if self._run.inbox.received != self._alerts_seen:
            self._alerts_seen = self._run.inbox.received
            self.rhythm.stir()
        self._audit_log(step, metrics, closure)
        fresh, self._fresh = self._fresh, None
        pending = PendingMeasurement(
            step, sink=self._sink, compact_columns=self.layout.statistics if self._is_compact else None
        )
        if closure is not None and self._probe.is_resting:
            self._has_stepped_since_probe = False
            self._probe.pass_by(step)
            pending.add_curvature(None, self._curvature_scalars(step))
        elif closure is not None:
            began = time.perf_counter()
            last = None if is_of_next_step else fresh
            pending.add_curvature(self._probe_curvature(step, closure, last), self._curvature_scalars(step))
            self._charge_curvature(time.perf_counter() - began)
        self.iteration.note_log()
        if is_of_next_step:
            pending.fallback = fresh
            self._held = pending
        else:
            pending.give(fresh)
            self._logs_first = self._logs_first and fresh is None
        return pending

    def _complete_last(self, *, is_of_next_step: bool) -> None:
        """Complete the measurement of the previous record, whose step would have come by now."""
        held = self._held
        if held is None:
            return
        # A forward pass before the step spoke against it (a recomputed activation has one too), but one after the step
        # speaks against the present record.
        if held.candidate is not None and held.candidate is self._fresh and is_of_next_step:
            self._fresh, self._logs_first = None, True
            self._release(held.candidate)
        else:
            self._release(held.fallback)

    def _release(self, step: TakenStep | None) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.give(step)

    def _look_for_disuse(self) -> None:
        if self._disuse.note_log():
            self._warner.warn(
                "no_steps",
                f"the watched {type(self._optimizer).__name__} makes no steps, but something else trains the model: "
                "its layer statistics, learning rate and curvature are not recorded. If the optimizer was replaced, or "
                "if it steps through other methods than step() (as SAM's first_step and second_step), call "
                "handle.remove() and watch(model, the optimizer whose step() is called)",
            )

    def _probe_curvature(self, step: int, closure: object, last: TakenStep | None) -> CurvatureCopy | None:
        """Start a probe if one is due. ``last`` is the optimizer's step right before this record, if there is one."""
        if not callable(closure):
            self._warner.warn("closure", f"closure is {type(closure).__name__}; it must be a function of no arguments")
            return None
        self._collect()
        if self._disuse.is_disused or (self.rhythm.steps and not self._has_stepped_since_probe):
            return None  # the same parameters again, or an optimizer that no longer moves them
        self._has_stepped_since_probe = False
        lr = last.lr if last is not None else largest_rate(self._optimizer)
        self._probe.note_closure(self.rhythm.steps)
        with self.iteration.set_aside(), self.auditor.set_aside():
            return self._probe.measure(step, closure, lr=lr if isinstance(lr, float) else None)

    def _collect(self) -> None:
        """Give the schedule the statistics that have reached the host."""
        while self._flying and self._flying[0].ready():
            totals = self._flying.popleft().totals
            self._probe.schedule.observe_gradient(totals["grad_norm"], totals["decoupling"])

    def _observe_totals(self, totals: Mapping[str, float]) -> None:
        """Look for signs in the totals of a step. Called from any thread."""
        if self.rhythm.every == "auto" and self._trigger.observe_statistics(totals):
            self.rhythm.stir()

    def _rhythm_scalars(self) -> dict[str, float]:
        """Return the rhythm as scalars if it has changed since they were logged, or if that was long ago."""
        if self.rhythm.every != "auto":
            return {}
        interval = self.rhythm.interval
        reported, since = self._reported
        if reported == interval and since < REPORTED_EVERY:
            self._reported = interval, since + 1
            return {}
        self._reported = interval, 1
        return {"watch_every": float(interval), "watch_share": self.rhythm.share}

    def _curvature_scalars(self, step: int) -> dict[str, float]:
        """Return the age of the last λ_max, and at times the share of the time that curvature takes."""
        age = self._probe.age(step)
        scalars = {} if age is None else {"lambda_max_age": float(age)}
        if self._curvature_records % REPORTED_EVERY == 0 and self._budget.step_time > 0:
            scalars["curvature_share"] = self._budget.used("curvature")
        self._curvature_records += 1
        return scalars

    # -- parameters that come and go --

    def _follow_parameters(self, optimizer: torch.optim.Optimizer) -> None:
        """Map the optimizer's parameters to new layers if they have changed.

        While a record waits for a step it has the present layout, so its step is measured in that one.
        """
        if self._held is not None or not self._census.is_outdated(optimizer, has_newcomers=self._meter.has_newcomers):
            return
        try:
            if self._participation.team is not None:
                raise ConfigurationError("in a distributed training they are agreed on before the first step")
            layers = map_layers(self._model, optimizer, self._group)
            if layers.row_of == self._meter.layers.row_of and layers.names == self._meter.layers.names:
                self._census.keep(optimizer)
                return
            meter = self._new_meter(layers)
            self._announce(_layout_of(optimizer, layers, meter))
        except Exception as error:
            self._census.keep(optimizer)
            self._warner.warn(
                "new_parameters",
                "the optimizer moves other parameters than when watch() was called, but the layers stay as they were: "
                f"{error}",
            )
            return
        if self._fresh is not None:
            self._fresh = dataclasses.replace(self._fresh, statistics=None)  # it has the layout of before
        self._meter, self._census, self._disuse = meter, Census(optimizer, layers), Disuse(layers.parameters)

    def _new_meter(self, layers: Layers) -> Meter | PartedMeter:
        watched = self._watched

        def make() -> Meter:
            return Meter(
                watched.optimizer,
                self._kind,
                layers,
                warner=self._warner,
                sees_movement=watched.wrapper is None,
            )

        return make() if self._partition is None else PartedMeter(self._partition, make)

    def _announce(self, layout: Layout) -> None:
        before, self.layout = self.layout, layout
        try:
            self._run.renew_layout()
        except Exception:
            self.layout = before
            raise


def _layout_of(optimizer: torch.optim.Optimizer, layers: Layers, meter: Meter | PartedMeter) -> Layout:
    return Layout(
        id=0, layers=layers.names, statistics=meter.statistics, sizes=layers.sizes, optimizer=describe(optimizer)
    )


def _has_closure(args: object, kwargs: object) -> bool:
    """Return whether `step` was called with a closure; ``args`` begin with the optimizer itself."""
    is_positional = isinstance(args, tuple) and len(args) > 1 and args[1] is not None
    return is_positional or (isinstance(kwargs, dict) and kwargs.get("closure") is not None)


def _is_capturing() -> bool:
    """Return whether a CUDA graph is recording the step; anything measured now would become part of the graph.

    Only where CUDA is available.
    """
    return torch.cuda.is_current_stream_capturing()
