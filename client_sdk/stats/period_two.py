"""The period-two component of the gradient: what changes its sign at every step, without any second derivative.

Owns the filter e_t = −β·e_{t−1} + (1−β)·y_t of the preconditioned gradient y = D^½·g at sampled coordinates
(`gradient_sample`), on the devices of the tensors. `period_two_reading` derives the values that are reported. A filter
that has missed a step begins anew, because the sign of what it remembers is only known from one step to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_sdk.host import TensorCopy
from client_sdk.layers import Layers
from client_sdk.optimizers import (
    GradientResponse,
    Kind,
    UpdateRule,
    gradient_response,
    has_limit,
    read_update_rule,
)
from client_sdk.stats.gradient_sample import GradientSample, sample
from client_sdk.stats.period_two_reading import DECAY, REACH, period_two_scalars, settled
from client_sdk.stats.sum_table import wide_dtype

SAME_RATES: Final = 0.01
"""Relative change of the ratio of two learning rates that is not followed."""


class PeriodTwoCopy:
    """The size of the component at the last steps, on its way to the host."""

    def __init__(self, parts: Sequence[Tensor], last: int, steps: int, response: GradientResponse | None) -> None:
        """Start copying ``parts``, rings [REACH, 2] whose newest row is number ``last`` of ``steps`` steps so far."""
        self._copies = [TensorCopy(part.clone()) for part in parts]
        self._order = (np.arange(REACH) + last + 1) % REACH
        self._steps = steps
        self._response = response

    def ready(self) -> bool:
        """Return whether all values have reached the host. Never synchronises a device."""
        return all(copy.ready() for copy in self._copies)

    def scalars(self) -> dict[str, float]:
        """Return the scalars of the last step (see `period_two_reading.period_two_scalars`)."""
        rows = np.sum([copy.array() for copy in self._copies], axis=0)[self._order]
        return period_two_scalars(rows[:, 0], rows[:, 1], self._steps, self._response)


class LayerCopy:
    """The component of each parameter at one step, on its way to the host."""

    def __init__(self, parts: Sequence[tuple[Sequence[int], Tensor]], steps: int) -> None:
        """Start copying ``parts``: positions in `Layers.parameters`, and Σ e² and the level of each, [P, 2]."""
        self._parts = [(np.array(positions, np.intp), TensorCopy(values)) for positions, values in parts]
        self._steps = steps

    def ready(self) -> bool:
        """Return whether all values have reached the host. Never synchronises a device."""
        return all(copy.ready() for _, copy in self._parts)

    def squares(self, parameters: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return Σ e² and the level of each of ``parameters``, [P, 2]; NaN where they are not known.

        ``parameters`` are positions in `Layers.parameters`.
        """
        found = np.full((max([-1, *parameters]) + 1, 2), np.nan)
        for positions, copy in self._parts:
            is_wanted = positions < len(found)
            values = copy.array()[is_wanted]
            found[positions[is_wanted]] = np.stack(settled(values[:, 0], values[:, 1], self._steps), axis=1)
        return found[parameters]


class PeriodTwo:
    """The filter of one optimizer's gradients. Used on the training thread; never synchronises a device."""

    def __init__(self, kind: Kind, layers: Layers) -> None:
        """Prepare to follow ``layers``, which an optimizer of the given ``kind`` moves."""
        self._kind = kind
        self._layers = layers
        self._banks: list[_Bank] = []
        self._roster: tuple[int, ...] | None = None
        self._leading = 0
        self._has_limit = False
        self._ratios: tuple[float, ...] = ()
        self._step: int | None = None
        self._steps = 0
        self._response: GradientResponse | None = None
        self._is_current = False  # whether the last step was followed
        self._before: tuple[Tensor, int, int] | None = None  # a parameter, its gradient's id and version

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note a gradient that the step may overwrite: that of Nesterov's method, to which SGD may add its momentum.

        Without this call before a step, `follow` takes the gradients for those that the optimizer was given. After it
        there are no readings until `follow` is called.
        """
        self._is_current = False
        self._before = None
        for group in optimizer.param_groups:
            if group.get("nesterov"):
                parameter = next((one for one in group["params"] if one.grad is not None), None)
                if parameter is not None:
                    self._before = parameter, id(parameter.grad), parameter.grad._version
                    return

    @torch.no_grad()
    def follow(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Take in the gradients of the optimizer's step number ``step``, which has just been made."""
        roster = tuple(len(group["params"]) for group in optimizer.param_groups)
        rules = [read_update_rule(self._kind, optimizer, group) for group in optimizer.param_groups]
        if roster != self._roster:
            self._roster = roster
            self._begin(optimizer, rules)
        elif step != (self._step or 0) + 1:
            for bank in self._banks:
                bank.forget()
            self._steps = 0
        ratios = _ratios(rules)
        if ratios != self._ratios and not np.allclose(ratios, self._ratios, rtol=SAME_RATES):
            self._ratios = ratios
            for bank in self._banks:
                bank.sample.set_rates(ratios)
        self._is_current = True
        self._step, at = step, self._steps % REACH
        self._steps += 1
        is_folded = self._is_folded()
        for bank in self._banks:
            bank.follow(bank.sample.read(optimizer, rules, is_folded=is_folded), at)
        self._response = self._response_of(optimizer, rules[self._leading]) if self._has_limit else None

    def copy(self, *, is_trusted: bool) -> PeriodTwoCopy | None:
        """Return the last steps on their way to the host, or None if the last one was not followed.

        Without ``is_trusted`` the weights do not move by the optimizer's rule, and no stability ratio follows.
        """
        if not self._is_current or not self._banks:
            return None
        rings = [bank.ring for bank in self._banks]
        return PeriodTwoCopy(rings, (self._steps - 1) % REACH, self._steps, self._response if is_trusted else None)

    def layers(self) -> LayerCopy | None:
        """Return the components of the parameters after the last step on their way to the host, or None."""
        if not self._is_current or not self._banks:
            return None
        return LayerCopy([bank.by_tensor() for bank in self._banks], self._steps)

    def _begin(self, optimizer: torch.optim.Optimizer, rules: Sequence[UpdateRule]) -> None:
        index_of = {id(parameter): index for index, parameter in enumerate(self._layers.parameters)}
        members = [
            (parameter, index_of[id(parameter)], at)
            for at, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
            if id(parameter) in index_of
        ]
        samples, sizes = sample(members, rules)
        self._banks = [_Bank(found) for found in samples]
        self._leading = max(sizes, key=sizes.__getitem__, default=0)
        self._has_limit = has_limit(self._kind, optimizer)
        self._ratios = tuple(1.0 for _ in rules)
        self._steps = 0

    def _is_folded(self) -> bool:
        """Return whether the step has written into the gradients of Nesterov's method."""
        before, self._before = self._before, None
        if before is None:
            return False
        parameter, grad, version = before
        return parameter.grad is not None and (id(parameter.grad), parameter.grad._version) != (grad, version)

    def _response_of(self, optimizer: torch.optim.Optimizer, rule: UpdateRule) -> GradientResponse | None:
        return gradient_response(optimizer, optimizer.param_groups[self._leading], rule)


class _Bank:
    """The filter of the tensors of one sample."""

    def __init__(self, found: GradientSample) -> None:
        self.sample = found
        size = len(found.owner)
        self._filtered = torch.zeros(size, device=found.device, dtype=found.dtype)
        self._level = torch.zeros_like(self._filtered)
        self.ring = torch.full((REACH, 2), torch.nan, device=found.device, dtype=found.dtype)
        """Σ e² and Σ y² of the last steps, [REACH, 2]."""
        self._cells = [(row[0], row[1]) for row in self.ring]

    def forget(self) -> None:
        """Begin the filter anew."""
        self._filtered.zero_()
        self._level.zero_()

    def follow(self, y: Tensor, at: int) -> None:
        """Take in the gradient of a step, [N], which is overwritten; row ``at`` of the ring is for this step."""
        squared, total = self._cells[at]
        torch.dot(y, y, out=total)  # tells later whether the gradient was finite
        torch.nan_to_num(y, 0.0, 0.0, 0.0, out=y)
        self._filtered.mul_(-DECAY).add_(y, alpha=1.0 - DECAY)
        self._level.mul_(DECAY).addcmul_(y, y, value=1.0 - DECAY)
        torch.dot(self._filtered, self._filtered, out=squared)

    def by_tensor(self) -> tuple[list[int], Tensor]:
        """Return the positions of the tensors in `Layers.parameters`, and Σ e² and the level of each, [P, 2]."""
        wide = wide_dtype(self.sample.device)
        values = torch.zeros(len(self.sample.tensors), 2, device=self.sample.device, dtype=wide)
        rows = torch.stack([self._filtered.square(), self._level], dim=1).to(wide)
        values.index_add_(0, self.sample.owner, rows)
        return [tensor.index for tensor in self.sample.tensors], values


def _ratios(rules: Sequence[UpdateRule]) -> tuple[float, ...]:
    """Return the learning rate of each group divided by the largest one; ones if they are not known on the host."""
    rates = [float(rule.lr) if not isinstance(rule.lr, Tensor) else float("nan") for rule in rules]
    largest = max(rates)
    if not (largest > 0 and all(rate >= 0 for rate in rates)):
        return tuple(1.0 for _ in rules)
    return tuple(rate / largest for rate in rates)
