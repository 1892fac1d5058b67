"""Probe of a model that several ranks may train together; on one process it is a `Probe` like any other.

Owns the order of things on each rank: at a `log` with a closure the measurement that was agreed on is voted on and
made, and the next one is proposed. `Ranks` owns the agreement and the means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from client_sdk.curvature.exchange import Exchange
from client_sdk.curvature.flight import Flight
from client_sdk.curvature.forward_probe import ForwardProbe
from client_sdk.curvature.hessian import DifferenceHessian, Hessian, NoSecondDerivativeError
from client_sdk.curvature.preconditioner import Preconditioner, UnsupportedError, same_tensors
from client_sdk.curvature.probe import Probe
from client_sdk.curvature.rank_means import MeanHessian, mean_step
from client_sdk.curvature.ranks import Plan, Ranks
from client_sdk.curvature.reading import CurvatureCopy, rounding_of
from client_sdk.curvature.sandbox import Sandbox
from client_sdk.curvature.schedule import Choice
from client_sdk.curvature.shared_modes import SharedModeCopy, SharedModes
from client_sdk.curvature.shared_sandbox import SharedSandbox
from client_sdk.curvature.step_probe import StepSnapshot
from client_sdk.curvature.timer import Timer
from client_sdk.curvature.unstable_directions import ModeCopy
from client_sdk.distributed import Participation, SharedStep
from client_sdk.host import TensorCopy


@dataclass
class _Found:
    """Values of a measurement, which are the same on all ranks."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    loss: Tensor | None = None
    """Loss of this rank; None if it failed."""
    failure: Exception | None = None
    """Error of this rank."""


class SharedProbe(Probe):
    """Probe whose measurements are those of all ranks that train the model, if there are several."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take the arguments of `Probe`. `join` must be called before the first step of the optimizer."""
        super().__init__(*arguments, **options)
        self._modes = SharedModes()
        self._amplitudes: TensorCopy | None = None  # of the step under way
        self._ranks: Ranks | None = None
        self._plan: Plan | None = None  # of the measurement under way
        self._exchange: Exchange | None = None  # the same
        self._has_voted = False  # in the measurement under way
        self._sandbox: Sandbox  # of the measurement under way
        self._has_joined = False

    def join(self, participation: Participation) -> None:
        """Learn which ranks train the model, before its first step."""
        self._has_joined = True
        if self._refusal:
            return
        try:
            self._ranks = Ranks.of(participation, self._model, self._warner)
            if self._ranks is not None:
                self.schedule.decide_together()
                self._takes_parts = self._ranks.is_sharded
                self._forward = ForwardProbe(mean=self._mean_of_ranks)
        except UnsupportedError as error:
            self.refuse(str(error))

    def follow_ranks(self) -> None:
        """Take in what the ranks have agreed on. Called before every step of the optimizer, before `before_step`."""
        if self._ranks is not None:
            self._ranks.follow()

    @property
    def speaks(self) -> bool:
        """Whether this process reports what is measured."""
        return self._ranks is None or self._ranks.speaks

    def note_closure(self, at: int) -> None:
        """Note a `log` with a closure after ``at`` steps of the optimizer. Called before `measure`."""
        if self._ranks is not None and not self._is_refused:
            self._ranks.note_closure(at)

    def measure(self, step: int, closure: Callable[[], Any], *, lr: float | None) -> CurvatureCopy | None:
        """Make the measurement that is due, as `Probe.measure` does, or the one that the ranks agreed on."""
        if not self._has_joined and _process_count() > 1:
            return None  # before the first step
        ranks = self._ranks
        if ranks is None:
            return super().measure(step, closure, lr=lr)
        self._plan = None if self._is_refused else ranks.take()
        copy = super().measure(step, closure, lr=lr)
        if self._is_refused:
            ranks.withdraw()
            if ranks.take() is not None:
                ranks.vote(None)
        else:
            self._propose(step, lr)
        return copy if ranks.speaks else None

    def age(self, step: int) -> int | None:
        """Return the number of steps from the last λ_max that this process reported to ``step``; None without one."""
        return super().age(step) if self.speaks else None

    def amplitudes(self) -> tuple[int, TensorCopy] | None:
        """Return the number of the directions and this rank's amplitudes of the step under way, for all ranks' sum.

        None if the step was not followed, or if this process knows the amplitudes by itself.
        """
        latest = self.directions.take_latest()
        if not self._takes_parts or latest is None or not self.directions.number:
            self._amplitudes = None
            return None
        self._amplitudes = TensorCopy(latest)
        return self.directions.number, self._amplitudes

    def modes(self, step: int, shared: SharedStep | None) -> ModeCopy | SharedModeCopy | None:
        """Return the unstable directions of a ``step`` on their way to the host; None where this process has none.

        ``shared`` is the sum of all ranks in which the `amplitudes` of the step are.
        """
        if not self.is_used:
            return None
        if not self._takes_parts:
            return self.directions.copy() if self.speaks else None
        own, self._amplitudes = self._amplitudes, None
        if own is None or shared is None:
            return None
        copy = self._modes.take(step, shared, own)
        return copy if self.speaks else None

    def _propose(self, step: int, lr: float | None) -> None:
        """Propose what this process would measure next, unless a result is still on its way."""
        assert self._ranks is not None
        self._collect()
        choice = super()._choose(step, lr)
        if choice == "none" or lr == 0 or self._flying:
            self._ranks.propose(None)
            return
        aim = self._tracking.plan(is_scarce=self.schedule.is_scarce) if choice == "track" else None
        has_step = self.schedule.wants_step or (
            not self._methods.has_products and (choice != "track" or self._forward.needs_step)
        )
        self._ranks.propose(Plan(choice=choice, aim=aim, has_step=has_step))

    def _expects_step(self, lr: float | None) -> bool:
        if self._ranks is None:
            return super()._expects_step(lr)
        agreed = self._ranks.agreed
        return agreed is not None and agreed.has_step

    def _choose(self, step: int, lr: float | None) -> Choice:
        if self._ranks is None:
            return super()._choose(step, lr)
        if self._plan is None:
            return "none"
        if lr == 0:
            self._ranks.vote(None)
        return self._plan.choice

    def _measure(
        self, step: int, choice: Choice, closure: Callable[[], Any], snapshot: StepSnapshot | None
    ) -> CurvatureCopy | None:
        ranks, plan = self._ranks, self._plan
        if ranks is None or plan is None:
            return super()._measure(step, choice, closure, snapshot)
        while self._flying:  # so that all ranks go on from the same values
            self._observe(self._flying.pop(0))
        snapshot = snapshot if plan.has_step else None
        self._has_voted = False
        try:
            preconditioner = self._read_preconditioner()
            if preconditioner is None and self._methods.has_products:
                return None
            if preconditioner is not None and not same_tensors(self._parameters, preconditioner.parameters):
                self._forget()
                self._parameters = preconditioner.parameters
            if preconditioner is None or ranks.is_sharded:
                return self._measure_together(
                    ranks, plan, step, closure, snapshot=snapshot, preconditioner=preconditioner
                )
            return self._measure_copies(ranks, plan, step, closure, snapshot=snapshot, preconditioner=preconditioner)
        finally:
            if not self._has_voted:
                ranks.vote(None)

    def _is_agreed(self, ranks: Ranks, says: str, step: int) -> bool:
        """Vote for the measurement at ``step``, and return whether it is to be made."""
        self._has_voted = True
        if ranks.vote(says) != "agreed":
            self.schedule.failed(step)
            return False
        return True

    def _measure_copies(
        self,
        ranks: Ranks,
        plan: Plan,
        step: int,
        closure: Callable[[], Any],
        *,
        snapshot: StepSnapshot | None,
        preconditioner: Preconditioner,
    ) -> CurvatureCopy | None:
        """Measure a model of which every rank holds a copy, by the means of what each of them computes by itself."""
        device = next(self._model.parameters()).device
        timers: list[Timer] = []
        try:
            products = self._mean_hessian(ranks, plan, closure, preconditioner)
            with Sandbox(self._model, self._parameters) as self._sandbox:
                if not self._is_agreed(ranks, self._describe(plan, snapshot, preconditioner), step):
                    return None
                self.schedule.started(plan.choice, step)
                timers.append(Timer(device))
                found = self._evaluate_together(plan, products, preconditioner)
                timers[0].stop()
                if snapshot is not None:
                    timers.append(Timer(device))
                    self._add_step(ranks, snapshot, closure, found)
                    timers[1].stop()
        finally:
            if timers:
                self._account(plan.choice, timers[0], timers[1] if len(timers) > 1 else None)
        if found.failure is not None:
            self._forget()
            is_exact = self._methods.has_products and not self._methods.uses_differences
            if isinstance(found.failure, NoSecondDerivativeError) and is_exact:
                self._take_over(f"the model cannot be differentiated twice ({found.failure})")
            raise found.failure
        copy = CurvatureCopy(found.tensors, rounding_of(found.tensors["loss"]))
        self._flying.append(Flight(step=step, aim=plan.aim, choice=plan.choice, copy=copy))
        return copy

    def _measure_together(
        self,
        ranks: Ranks,
        plan: Plan,
        step: int,
        closure: Callable[[], Any],
        *,
        snapshot: StepSnapshot | None,
        preconditioner: Preconditioner | None,
    ) -> CurvatureCopy | None:
        """Measure by evaluations that all ranks make together: of shards, and without a preconditioner."""
        device = next(self._model.parameters()).device
        self._exchange = exchange = ranks.exchange()
        if preconditioner is not None:
            self._inner = ranks.inner_product(exchange, preconditioner)
            self._tracking.measure_in(self._inner)
        counts = ranks.counts if ranks.is_sharded else None
        timers: list[Timer] = []
        try:
            with SharedSandbox(self._model, self._parameters, exchange, counts=counts) as sandbox:
                if not self._is_agreed(ranks, self._describe(plan, snapshot, preconditioner), step):
                    return None
                exchange.begin()
                self.schedule.started(plan.choice, step)
                timers.append(Timer(device))
                if preconditioner is not None:
                    tensors = self._probe(plan.choice, plan.aim, sandbox, closure, preconditioner)
                else:
                    tensors = self._forward.measure(plan.choice, sandbox, closure, snapshot)
                timers[0].stop()
                if preconditioner is not None and snapshot is not None:
                    timers.append(Timer(device))
                    tensors |= snapshot.measure(sandbox, closure)
                    timers[1].stop()
                exchange.end()
        except BaseException as error:
            exchange.fail()
            self._forget()
            if isinstance(error, torch.OutOfMemoryError):
                raise UnsupportedError("there is not enough memory to measure curvature on this rank") from error
            raise
        finally:
            if timers:
                self._account(plan.choice, timers[0], timers[1] if len(timers) > 1 else None)
        if not tensors:
            return None
        if self.directions.is_known:
            self.directions.number = ranks.measured_at
        copy = CurvatureCopy(tensors, rounding_of(tensors["loss"], is_coarse=sandbox.is_coarse))
        self._flying.append(Flight(step=step, aim=plan.aim, choice=plan.choice, copy=copy))
        return copy

    def _mean_of_ranks(self, values: Tensor) -> Tensor:
        assert self._exchange is not None
        return self._exchange.mean(values)

    def _describe(self, plan: Plan, snapshot: StepSnapshot | None, preconditioner: Preconditioner | None) -> str:
        """Return everything on which the order of the collectives depends, and which all ranks must have alike."""
        size = 0 if preconditioner is None else sum(parameter.numel() for parameter in preconditioner.parameters)
        products = self._tracking.products_at_once if plan.choice == "both" else 1
        state = f"{self._tracking.has_vector} {self.directions.is_known} {self._forward.needs_step}"
        return f"{plan.code} {snapshot is not None} {size} {products} {state}"

    def _mean_hessian(
        self, ranks: Ranks, plan: Plan, closure: Callable[[], Any], preconditioner: Preconditioner
    ) -> MeanHessian:
        def make() -> Hessian:
            if not self._methods.uses_differences:
                try:
                    return self._exact(self._sandbox, closure, preconditioner)
                except NoSecondDerivativeError as error:
                    self._take_over(f"the model cannot be differentiated twice ({error})")
                    if not self._methods.has_products:
                        raise
            return DifferenceHessian(self._sandbox, closure, preconditioner)

        products = 1 + (self._tracking.products_at_once if plan.choice == "both" else 0)
        return MeanHessian(ranks, make, preconditioner.diagonal, products=products)

    def _evaluate_together(self, plan: Plan, hessian: MeanHessian, preconditioner: Preconditioner) -> _Found:
        found = _Found()
        try:
            found.tensors = self._evaluate(plan.choice, plan.aim, hessian, preconditioner)
            found.tensors["failures"] = hessian.failures
        except Exception as error:
            hessian.fail(error)
        hessian.finish()
        found.failure, found.loss = hessian.failure, hessian.own_loss
        return found

    def _add_step(self, ranks: Ranks, snapshot: StepSnapshot, closure: Callable[[], Any], found: _Found) -> None:
        """Add the means of λ_step to the values."""
        device = next(self._model.parameters()).device
        measure = partial(snapshot.measure, self._sandbox, closure)
        tensors, failure = mean_step(ranks, found.loss, measure, device)
        found.tensors |= tensors
        found.failure = found.failure or failure

    def _observe(self, flight: Flight) -> None:
        if flight.copy.values().get("failures", 0.0) > 0.0:
            self._forget()
            self.schedule.failed(flight.step)
            self._warner.note("closure", "curvature is not measured: the closure of another rank failed")
            return
        super()._observe(flight)


def _process_count() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
