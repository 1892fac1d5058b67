"""The auditor of one watcher: runs the checks when what they read is there, and tells the ledger.

Owns the order and the rates. Nothing here raises into training, changes it, or waits for a device, except to confirm a
rare suspicion. `note_measured` and `note_record` may be called from any thread, by one at a time; everything else is
called on the training thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_sdk.audit.closure_batches import JoinedGradients, RepeatedBatch
from client_sdk.audit.fault import Fault
from client_sdk.audit.fresh_gradients import FreshGradients
from client_sdk.audit.layer_history import LayerHistory
from client_sdk.audit.ledger import Ledger
from client_sdk.audit.logged_values import RATES, LoggedValues, RateOfLog
from client_sdk.audit.loss_scale import LossScale
from client_sdk.audit.ownership import Ownership
from client_sdk.audit.recompute import recompute
from client_sdk.audit.settings import (
    ACCUMULATION,
    ADAM,
    NORMS,
    TOTALS,
    lost_eps,
    number_among,
    settings_faults,
    uncorrected,
)
from client_sdk.audit.state import MomentLoss, WeightChanges
from client_sdk.audit.structure import TiedWeights, TrainingMode
from client_sdk.curvature.sandbox import Sandbox
from client_sdk.layers import Layers
from client_sdk.optimizers import Kind, UpdateRule, Watched, has_own_step, read_update_rule, second_moment
from client_sdk.protocol import Layout
from client_sdk.stats import Refutation
from client_sdk.warner import Warner

WARM: Final = 10  # steps after which the warm-up of a run without bias correction would be seen
PLAIN_RATES: Final = frozenset({*ADAM, "adamax", "rmsprop", "adagrad", "sgd", "lion"})
"""Kinds of optimizers whose learning rate is that of their groups."""
FACTOR_COSINE: Final = 0.9999  # of the movement and the formula, above which only the learning rate differs


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Facts about the rest of its run that an auditor needs."""

    owned: Callable[[], set[int]]
    """Function that returns the ids of the parameters of all watched optimizers."""
    is_sole: Callable[[], bool]
    """Function that returns whether the run watches one optimizer."""
    config: Mapping[str, Any]
    loss: str | None
    """Name of the scalar that was chosen as the loss."""
    is_divided: bool
    """Whether the optimizer steps pieces of flat tensors."""


class Auditor:
    """Audit of one optimizer and its model."""

    def __init__(
        self,
        model: torch.nn.Module,
        watched: Watched,
        kind: Kind,
        layers: Layers,
        *,
        surroundings: Surroundings,
        ledger: Ledger,
        warner: Warner,
    ) -> None:
        """Check the settings, and prepare the other checks."""
        self.ledger = ledger
        """Ledger of the run, which its auditors share."""
        self._model, self._kind, self._layers = model, kind, layers
        self._optimizer = watched.optimizer
        self._surroundings, self._warner = surroundings, warner
        distributed = torch.distributed
        is_together = distributed.is_available() and distributed.is_initialized()
        ranks = distributed.get_world_size() if is_together else 1
        is_alone = ranks == 1 and not surroundings.is_divided
        # A wrapper or an optimizer that averages weights moves them between the steps that are seen.
        is_simple = is_alone and watched.wrapper is None and kind in PLAIN_RATES
        has_own = watched.wrapper is not None or has_own_step(kind, watched.optimizer) or surroundings.is_divided
        self._judges_formula = not has_own and type(watched.optimizer).__module__.startswith("torch.optim")
        self._ownership = Ownership(model) if is_alone else None
        self._ties = TiedWeights(model) if is_alone else None
        self._mode = TrainingMode(model)
        self._fresh = FreshGradients(self._mode.note_arrival)
        self._judges_zeroing = is_alone
        self._weights = WeightChanges(model, layers) if is_simple else None
        self._moments = MomentLoss()
        self._rate = RateOfLog() if is_simple else None
        self._scale = LossScale()
        self._batch, self._joined = RepeatedBatch(), JoinedGradients() if is_alone else None
        config = surroundings.config
        micro_batches = number_among(config, ACCUMULATION)
        self._values = LoggedValues(
            max_norm=number_among(config, NORMS), micro_batches=micro_batches, ranks=ranks, loss=surroundings.loss
        )
        self._has_max_norm = number_among(config, NORMS) is not None
        self._knows_factors = ranks > 1 or micro_batches is not None
        self._history: LayerHistory | None = None
        self._step = 0
        self._first_rate: float | None = None
        self._logs_norm = self._logs_rate = self._has_closure = False
        self._micro_batches: int | None = None
        self._judged = 0
        self._is_lost = False  # whether the second moment's type has been looked at
        self._matrices = frozenset(
            layers.names[layers.row_of[id(parameter)]] for parameter in layers.parameters if parameter.dim() > 1
        )
        self._guarded(self._check_settings)
        self._guarded(self._fresh.begin, self._optimizer)

    # -- at watch --

    def _check_settings(self) -> None:
        rules = self._rules(self._optimizer)
        for fault in settings_faults(rules, number_among(self._surroundings.config, TOTALS)):
            self.ledger.found(fault)
        self.ledger.ran("weight-decay-rate")
        if any(rule.kind in ADAM for rule in rules):
            self.ledger.ran("betas-coupled", "second-moment-too-long")

    def _rules(self, optimizer: torch.optim.Optimizer) -> list[UpdateRule]:
        return [read_update_rule(self._kind, optimizer, group) for group in optimizer.param_groups]

    # -- at each step --

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Check what happened since the last step. Called before each step of the optimizer."""
        self._guarded(self._before_step, optimizer)

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._step += 1
        step, ran = self._step, ["moments-lost"]
        self._moments.before_step(optimizer)
        if self._ties:
            ran.append("tied-weights")
            self._tell(self._ties.fault())
        if self._weights is not None and step > 1 and not self._weights.is_usual:
            ran.append("weights-changed")
            self._tell(self._weights.before_step(optimizer, step))
        never_zeroed = self._fresh.before_step(step)
        if self._fresh.arrivals:
            if self._judges_zeroing:
                ran.append("gradients-not-zeroed")
                self._tell(never_zeroed)
            if self._mode:
                ran.append("evaluation-mode")
                self._tell(self._mode.fault())
        if self._mode and self._mode.is_off and not self.ledger.has_found("evaluation-mode"):
            self._fresh.extend()
        self._micro_batches = self._fresh.arrivals or self._micro_batches
        if self._joined is not None and self._has_closure:
            self._joined.before_step(optimizer, self._micro_batches)
        if self._ownership is not None and not self._ownership.is_done:
            owned = self._surroundings.owned()
            self._tell(self._ownership.dead(optimizer, owned))
            self._tell_all(self._ownership.observe(optimizer, owned))
            ran += ["dead-parameters", "unowned-parameters", "unused-parameters"]
        if not self._scale.is_known:
            self._scale.look()
        self.ledger.ran(*ran)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note what the next step will be compared with. Called after each step."""
        self._guarded(self._after_step, optimizer)

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._moments.after_step(optimizer)
        if self._weights is not None:
            self._weights.after_step(optimizer)
        self._fresh.after_step(optimizer, self._step)
        if (self._rate is not None and self._logs_rate) or (self._rate is not None and self._step == 1):
            self._rate.note_step(_rates(optimizer))
        if self._step <= WARM:
            self._at_start(optimizer)

    def _at_start(self, optimizer: torch.optim.Optimizer) -> None:
        rules = self._rules(optimizer)
        rates = [rule.lr for rule in rules if isinstance(rule.lr, float)]
        if self._step == 1:
            self._first_rate = max(rates, default=None)
            for rule, group in zip(rules, optimizer.param_groups, strict=True):
                parameter = next((p for p in group["params"] if p in optimizer.state), None)
                if parameter is None or rule.kind not in ADAM:
                    continue
                moment = second_moment(rule, optimizer.state[parameter], parameter)
                if isinstance(moment, Tensor):
                    self.ledger.ran("eps-lost")
                    self._tell(lost_eps(rule, str(moment.dtype)))
        elif self._step == WARM and rates and self._first_rate is not None and rules[0].kind in ADAM:
            self.ledger.ran("no-bias-correction")
            self._tell_all(uncorrected(rule, self._first_rate, max(rates)) for rule in rules)

    # -- at each log --

    def note_log(self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None) -> None:
        """Check what a record says. Called within `log`."""
        self._guarded(self._note_log, step, metrics, closure)

    def _note_log(self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None) -> None:
        self._tell(self._moments.note_log(step), step)
        self._logs_norm = self._logs_norm or "grad_norm" in metrics
        if self._rate is not None and any(name in metrics for name in RATES):
            self._logs_rate = True
            if self._surroundings.is_sole():
                self.ledger.ran("learning-rate-unused")
                self._tell(self._rate.note_log(metrics, _rates(self._optimizer)), step)
        if not self._scale.is_known:
            self._scale.look()
        if self._scale.is_known:
            self.ledger.ran("loss-scale")
            self._tell(self._scale.read(), step)
        self._has_closure = callable(closure)
        if callable(closure) and self._step:
            if not self._batch.is_moot:
                self.ledger.ran("batch-repeated")
                self._tell(self._batch.observe(closure, step), step)
            self._probe(step, metrics, closure)

    def _probe(self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any]) -> None:
        if self._joined is None:
            return
        loss = metrics.get(self._surroundings.loss or "loss")

        def evaluate(parameters: Any) -> tuple[float, list[Tensor]]:
            with self.set_aside(), Sandbox(self._model, parameters) as sandbox:
                value = sandbox.evaluate(closure, derivatives=1)
                found = sandbox.gradients(value, parameters)
                kept = [
                    torch.zeros_like(parameter) if gradient is None else gradient.detach().clone()
                    for parameter, gradient in zip(parameters, found, strict=True)
                ]
                return float(value.detach()), kept

        number = None
        if self._joined.is_due and isinstance(loss, int | float | Tensor):
            number = float(loss.detach() if isinstance(loss, Tensor) else loss)
        fault = self._joined.probe(evaluate, number, self._micro_batches, step)
        if self._joined.is_probed:
            self.ledger.ran("micro-batches-summed")
        self._tell(fault, step)

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Leave out the gradients that are computed within the context, which are those of a probe."""
        self._fresh.is_aside = True
        try:
            yield
        finally:
            self._fresh.is_aside = False

    # -- at each measured step, on any thread --

    def note_measured(self, step: int, block: NDArray[np.float32], layout: Layout, lr: float | None) -> None:
        """Check the block of a measured step of the optimizer, with the layout of its rows and columns."""
        self._guarded(self._note_measured, step, block, layout, lr)

    def _note_measured(self, step: int, block: NDArray[np.float32], layout: Layout, lr: float | None) -> None:
        history = self._history
        if history is None or not history.fits(layout):
            history = self._history = LayerHistory(layout, self._matrices)
        self.ledger.ran(*history.checks)
        self._tell_all(history.observe(step, block, lr))

    def note_formula(self, judged: int, refutation: Refutation | None) -> None:
        """Take in the number of comparisons of the movement with the formula, and what refuted it."""
        if not self._judges_formula:
            return
        if judged > self._judged:
            self.ledger.ran("update-formula", "learning-rate-unused", times=judged - self._judged)
            self._judged = judged
        if refutation is not None and not self._has_other_hooks():
            self._tell(_formula_fault(type(self._optimizer).__name__, refutation))

    def _has_other_hooks(self) -> bool:
        """Return whether code of others is called within the step, which may change the weights on purpose."""
        hooks = (self._optimizer._optimizer_step_pre_hooks, self._optimizer._optimizer_step_post_hooks)
        return any(len(each) > 1 for each in hooks)

    def note_record(self, step: int, scalars: Mapping[str, float]) -> None:
        """Check all scalars of a record once they have reached the host."""
        self._guarded(self._note_record, step, scalars)

    def _note_record(self, step: int, scalars: Mapping[str, float]) -> None:
        history = self._history
        is_sole = self._surroundings.is_sole()
        has_norm = ("grad_norm_after_clip" if self._logs_norm else "grad_norm") in scalars
        ran = ["loss-constant"] if self._values.knows_loss else []
        has_scale = self._logs_norm and self._scale.value is not None
        if has_norm and is_sole and (self._has_max_norm or has_scale):
            ran.append("clipping-without-effect")
        if has_norm and is_sole and self._logs_norm and "grad_norm" in scalars:
            ran.append("clipping-constant")
            if self._knows_factors:
                ran.append("gradient-norm-off")
        if "replicas_differ" in scalars:
            ran.append("ranks-differ")
        if "lambda_max" in scalars and self._step <= WARM:
            ran.append("learning-rate-above-limit")
        self.ledger.ran(*ran)
        self._tell_all(
            self._values.observe(
                scalars,
                step=step,
                logs_norm=self._logs_norm,
                loss_scale=self._scale.value,
                is_moving=history is not None and history.moves and history.grad_norm > 0,
                is_whole=is_sole,
            )
        )

    # -- internal --

    def _tell(self, fault: Fault | None, step: int | None = None) -> None:
        """Take in a fault that was found within a record of ``step``, or between two records."""
        if fault is not None:
            self.ledger.found(fault, step)

    def _tell_all(self, faults: Iterable[Fault | None]) -> None:
        for fault in faults:
            self._tell(fault)

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:
            self._warner.caught("audit", "checking the training", error)

    def recompute(self, closure: Callable[[], Any]) -> bool:
        """Compute a batch again, and return whether the results agree."""
        with self.set_aside():
            fault = recompute(self._model, self._layers.parameters, self._layers.parameter_names, closure)
        self.ledger.ran("hardware-error")
        self._tell(fault)
        return fault is None

    def leave(self) -> None:
        """Remove what was hooked into the training."""
        self._fresh.stop()


def _rates(optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
    """Return the learning rates of the groups, without those that are kept on a device."""
    rates = (group.get("lr") for group in optimizer.param_groups)
    return tuple(
        float(rate) for rate in rates if isinstance(rate, int | float) or (isinstance(rate, Tensor) and rate.is_cpu)
    )


def _formula_fault(name: str, found: Refutation) -> Fault:
    layers = found.layers
    if found.cosine > FACTOR_COSINE:
        return Fault(
            "learning-rate-unused",
            f"the weights move by the formula of {name}, but with {found.factor:.4g} times the learning rate of its "
            "groups",
            layers,
            {"factor": round(found.factor, 6)},
        )
    return Fault(
        "update-formula",
        f"the movement of the weights is {found.factor:.3g} times as long as the formula of {name} says, with a cosine "
        f"of {found.cosine:.4f} between the two",
        layers,
        {"factor": round(found.factor, 6), "cosine": round(found.cosine, 6)},
    )
