"""The direction that oscillates: the period-two component of the gradient at all coordinates.

Owns the filter e_t = −β·e_{t−1} + (1−β)·y_t of the preconditioned gradient y = D^½·g, as
`client_sdk.stats.period_two` does for a sample of the coordinates, and the raise of the second moment where e sits. It
needs one buffer in the shape of the parameters, and no derivative beyond the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from client_sdk.host import TensorCopy
from client_sdk.optimizers import (
    TERM,
    GradientResponse,
    Kind,
    UpdateRule,
    read_steps,
    read_update_rule,
    second_moment,
    term_table,
)

DECAY: Final = 0.8
"""Decay β of the filter; it remembers some five steps."""
PIECE: Final = 2**24
"""Coordinates that are taken in at once, for which two temporary copies are needed."""


class Amounts(NamedTuple):
    """Sums over all coordinates after a step."""

    component: float
    """Sum of e² over all coordinates."""
    whole: float
    """Sum of y² over all coordinates."""
    gradient: float
    """Sum of g² over all coordinates."""
    second_moment: float
    """Sum of v̂ over all coordinates; 0 for an optimizer without a second moment."""
    gain: float
    """Response of the update to an alternating gradient times the largest learning rate, η·gain."""
    response: GradientResponse
    """Response of the group with the largest learning rate."""
    beta2: float
    """Decay of its second moment."""


@dataclass(frozen=True, kw_only=True)
class FollowedStep:
    """The sums of one step on their way to the host."""

    copy: TensorCopy
    gain: float
    response: GradientResponse
    beta2: float
    is_first: bool
    """Whether the filter has begun with this step."""

    def ready(self) -> bool:
        """Return whether `amounts` returns without waiting. Never synchronises a device."""
        return self.copy.ready()

    def amounts(self) -> Amounts:
        """Return the sums, after waiting for their copy if necessary."""
        component, whole, gradient, second = self.copy.array().tolist()
        return Amounts(component, whole, gradient, second, self.gain, self.response, self.beta2)


class _Part(NamedTuple):
    """The tensors of a group that have a gradient."""

    rule: UpdateRule
    grads: list[Tensor]
    seconds: list[Tensor]
    """Second moments; empty if the optimizer keeps none."""
    terms: Sequence[float]
    """Values of the columns `TERMS`, of the first tensor."""


class Direction:
    """The filter of one optimizer's gradients. Used on the training thread.

    It waits for a device only where the optimizer keeps learning rates or step counters there (``capturable=True``).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, kind: Kind) -> None:
        """Begin with nothing; ``kind`` is the family of ``optimizer``."""
        self._optimizer, self._kind = optimizer, kind
        self._filtered: dict[Tensor, Tensor] = {}
        self._owners: list[Tensor] = []
        self._roster: tuple[int, ...] = ()  # ids of the parameters that had a gradient at the last step
        self._steps = 0  # consecutive steps that the filter has taken in

    def forget(self) -> None:
        """Begin anew, because the next gradients do not follow upon the last ones."""
        self._filtered.clear()
        self._steps = 0

    @torch.no_grad()
    def follow(self) -> FollowedStep | None:
        """Take in the gradients of the step that has just been made; None if there are none."""
        parts = list(self._parts())
        rates = [_number(part.rule.lr) for part in parts]
        largest = max(rates, default=0.0)
        if not parts or not largest > 0:
            self.forget()
            return None
        roster = tuple(map(id, self._owners))
        if roster != self._roster:  # the sign of what a tensor remembers is only known from one step to the next
            self.forget()
            self._roster = roster
        sums: Tensor | None = None
        count = 0
        for part, rate in zip(parts, rates, strict=True):
            y = _preconditioned(part, math.sqrt(max(rate, 0.0) / largest))
            owners = self._owners[count : count + len(y)]
            if not self._steps:
                self._filtered |= {owner: torch.zeros_like(one) for owner, one in zip(owners, y, strict=True)}
            filtered = [self._filtered[owner] for owner in owners]
            torch._foreach_mul_(filtered, -DECAY)
            torch._foreach_add_(filtered, y, alpha=1.0 - DECAY)
            count += len(y)
            own = _sums(filtered, y, part)
            sums = own if sums is None else sums + own.to(sums.device)
        assert sums is not None
        self._steps += 1
        leading = parts[max(range(len(parts)), key=rates.__getitem__)]
        rule, terms = leading.rule, leading.terms
        return FollowedStep(
            copy=TensorCopy(sums),
            gain=largest * terms[TERM["gain"]],
            response=GradientResponse(
                direct=terms[TERM["direct"]], momentum=terms[TERM["momentum"]], intake=rule.intake, decay=rule.decay
            ),
            beta2=rule.beta2,
            is_first=self._steps == 1,
        )

    @torch.no_grad()
    def raise_second_moment(self, factor: float) -> Tensor | None:
        """Multiply v by ``factor`` where e² is above its mean; returns the share of the coordinates, [], or None.

        Nothing else is touched: neither the learning rate, nor m, nor the other coordinates.
        """
        held = [(self._filtered[owner], second) for owner, second in self._seconds() if owner in self._filtered]
        if not held:
            return None
        count = sum(one.numel() for one, _ in held)
        root_mean = (_norms([one for one, _ in held]).square().sum() / count).sqrt()
        touched = torch.zeros_like(root_mean)
        for one, second in held:
            is_on = one.abs() > root_mean.to(device=one.device, dtype=one.dtype)
            second.mul_(torch.where(is_on, factor, 1.0).to(second.dtype))
            touched += is_on.sum().to(touched.device)
        return touched / count

    def _parts(self) -> Iterator[_Part]:
        self._owners = []
        for group in self._optimizer.param_groups:
            rule = read_update_rule(self._kind, self._optimizer, group)
            owners = [one for one in group["params"] if one.grad is not None and _is_plain(one.grad)]
            states = [self._optimizer.state.get(one, {}) for one in owners]
            seconds: list[Tensor] = []
            if rule.second is not None:
                found = [second_moment(rule, state, one) for state, one in zip(states, owners, strict=True)]
                is_usable = [isinstance(one, Tensor) for one in found]
                owners = [one for one, usable in zip(owners, is_usable, strict=True) if usable]
                states = [one for one, usable in zip(states, is_usable, strict=True) if usable]
                seconds = [one for one in found if isinstance(one, Tensor)]
            if not owners:
                continue
            # The tensors of a group have made the same number of steps, or almost.
            terms = term_table(rule, read_steps(rule, states[:1]), states[:1])[0].tolist()
            grads = [one.grad.detach() for one in owners if one.grad is not None]
            self._owners += owners
            for piece in _pieces(owners):
                yield _Part(rule, grads[piece], seconds[piece], terms)

    def _seconds(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each parameter with its second moment."""
        for group in self._optimizer.param_groups:
            rule = read_update_rule(self._kind, self._optimizer, group)
            for parameter in group["params"]:
                found = second_moment(rule, self._optimizer.state.get(parameter, {}), parameter)
                if isinstance(found, Tensor):
                    yield parameter, found


def _pieces(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Yield slices of successive tensors of `PIECE` coordinates together, or of a single larger tensor."""
    first, size = 0, 0
    for at, tensor in enumerate(tensors):
        if size and size + tensor.numel() > PIECE:
            yield slice(first, at)
            first, size = at, 0
        size += tensor.numel()
    yield slice(first, len(tensors))


def _is_plain(grad: Tensor) -> bool:
    return not grad.is_sparse and not grad.is_complex()


def _preconditioned(part: _Part, scale: float) -> list[Tensor]:
    """Return y = D^½·g of each tensor times ``scale``."""
    if not part.seconds:
        return list(torch._foreach_mul(part.grads, scale))
    denominators = torch._foreach_sqrt(part.seconds) if part.rule.squared else [one.clone() for one in part.seconds]
    torch._foreach_mul_(denominators, part.terms[TERM["root"]])
    torch._foreach_add_(denominators, part.terms[TERM["floor"]])
    torch._foreach_sqrt_(denominators)
    y = list(torch._foreach_div(part.grads, denominators))
    if scale != 1.0:
        torch._foreach_mul_(y, scale)
    return y


def _sums(filtered: list[Tensor], y: list[Tensor], part: _Part) -> Tensor:
    """Return Σ e², Σ y², Σ g² and Σ v̂ over the tensors of a part, [4]."""
    of_squares = _norms([*filtered, *y, *part.grads]).view(3, -1).square().sum(dim=1)
    if part.seconds:
        second = _norms(part.seconds, 1).sum(dim=0, keepdim=True) * part.terms[TERM["root"]] ** 2
    else:
        second = torch.zeros_like(of_squares[:1])
    return torch.cat([of_squares, second.to(of_squares.device)])


def _norms(tensors: Sequence[Tensor], order: int = 2) -> Tensor:
    """Return the norm of each tensor, [n], in the widest type of the first one's device."""
    norms: list[Tensor] = list(torch._foreach_norm(list(tensors), order))
    device, dtype = norms[0].device, norms[0].dtype
    if any(norm.device != device or norm.dtype != dtype for norm in norms):
        dtype = _widest(device)
        norms = [norm.to(device=device, dtype=dtype) for norm in norms]
    return torch.stack(norms).to(_widest(device))


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _number(rate: float | Tensor) -> float:
    return float(rate)
