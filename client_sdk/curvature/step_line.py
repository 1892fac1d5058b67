"""The losses of a closure along an optimizer step that has been made: at the weights before it plus a multiple of it.

Owns the movement of the weights along the line and what rounding leaves of it. Needs no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.curvature.sandbox import ClosureError, Derivatives, Sandbox, held
from client_sdk.curvature.step_probe import StepSnapshot

FAITHFUL: Final = 0.9  # cosine between the wanted and the rounded movement below which the movement is lost
UNREPEATED: Final = 1e-3  # relative difference of two losses at the same weights that no order of additions explains


@dataclass(frozen=True, kw_only=True)
class MadeStep:
    """A step that an optimizer has made, with the weights at both ends."""

    parameters: tuple[Tensor, ...]
    before: tuple[Tensor, ...]
    """Values before the step; local parts where they are sharded, as in ``after``."""
    after: tuple[Tensor, ...]
    lr: float
    """Largest learning rate η of the step, which is the length of the step."""

    @classmethod
    def read(cls, snapshot: StepSnapshot, sandbox: Sandbox) -> MadeStep:
        """Return the step from the weights of ``snapshot`` to those at the start of ``sandbox``, without a copy.

        Waits for the device if the learning rate is kept there.
        """
        return cls(
            parameters=snapshot.parameters,
            before=tuple(held(before) for before in snapshot.before),
            after=tuple(sandbox.saved(parameter) for parameter in snapshot.parameters),
            lr=float(snapshot.lr),
        )


class StepLine:
    """Evaluations along one step inside one sandbox. Each of them waits for the device."""

    def __init__(
        self,
        sandbox: Sandbox,
        closure: Callable[[], Any],
        step: MadeStep,
        *,
        mean: Callable[[Tensor], Tensor] | None = None,
        derivatives: Derivatives = 0,
    ) -> None:
        """Prepare evaluations of ``closure`` along ``step``.

        ``mean`` averages a small vector over the processes of a training. ``derivatives`` is 1 for a closure that takes
        gradients itself.
        """
        self._sandbox, self._closure, self._mean = sandbox, closure, mean
        self._step = step
        self.derivatives = derivatives
        """0, or 1 once the closure has turned out to take gradients itself."""
        self.lr = step.lr
        """Largest learning rate η of the step, which is its length."""
        self.forwards = 0
        """Number of evaluations so far."""
        self.loss = math.nan
        """Loss before the step, once `evaluate_origin` has been called."""
        self.rounding = 0.0
        """Relative rounding of the type of the loss."""
        self.movement = self.weights = 0.0
        """Length of the step in the space of the weights, and that of the weights, at the larger end of each."""

    def evaluate_origin(self) -> None:
        """Evaluate the loss before the step, and measure the lengths of the step and of the weights.

        Raises `ClosureError` if the closure is unusable.
        """
        loss = self._evaluate(0.0)
        self.rounding = torch.finfo(loss.dtype).eps
        movement = _sum((after - before).square().sum() for _, before, after in self._ends())
        weights = _sum(torch.maximum(before.square().sum(), after.square().sum()) for _, before, after in self._ends())
        self.loss, movement_square, weights_square = self._read(loss, movement, weights)
        self.movement, self.weights = math.sqrt(movement_square), math.sqrt(weights_square)

    def check_repeated(self) -> None:
        """Evaluate the loss before the step again, and raise `ClosureError` if it is another one."""
        (again,) = self._read(self._evaluate(0.0))
        if math.isfinite(self.loss) and not abs(again - self.loss) <= max(UNREPEATED, self.rounding) * abs(self.loss):
            raise ClosureError(
                f"the closure computed the losses {self.loss:.6g} and {again:.6g} at the same weights; it must compute "
                "the loss of the same batch at every call"
            )

    def rise(self, length: float) -> tuple[float, float] | None:
        """Return the length of a step after rounding of the weights, and by how much it raises the loss.

        ``length`` is that of the wanted step in the units of η. Return None if rounding of the weights turns the step
        into another direction.
        """
        loss = self._evaluate(length / self.lr)
        along = _sum(((_wide(at) - before) * (after - before)).sum() for at, before, after in self._ends())
        moved = _sum((_wide(at) - before).square().sum() for at, before, _ in self._ends())
        found, dot, moved_square = self._read(loss, along, moved)
        if not dot > FAITHFUL * self.movement * math.sqrt(moved_square):
            return None
        return self.lr * dot / self.movement**2, found - self.loss

    def _evaluate(self, multiple: float) -> Tensor:
        """Return the loss at the weights before the step plus a ``multiple`` of it."""
        self._sandbox.place(self._step.parameters, self._values(multiple))
        self.forwards += 1
        try:
            return self._sandbox.evaluate(self._closure, derivatives=self.derivatives).detach()
        except ClosureError:
            if self.derivatives:
                raise
        # A loss that itself contains gradients cannot be computed under no_grad().
        loss = self._sandbox.evaluate(self._closure, derivatives=1).detach()
        self.derivatives = 1
        return loss

    def _values(self, multiple: float) -> Iterator[Tensor]:
        for _, before, after in self._ends():
            yield before if multiple == 0.0 else torch.lerp(before, after, multiple)

    def _ends(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the present values of each parameter, and both ends of the step, in at least float32."""
        for parameter, before, after in zip(self._step.parameters, self._step.before, self._step.after, strict=True):
            yield held(parameter), _wide(before), _wide(after)

    def _read(self, *scalars: Tensor) -> list[float]:
        """Return 0-d tensors as numbers, averaged over the processes of the training."""
        wide = torch.float32 if scalars[0].device.type == "mps" else torch.float64
        vector = torch.stack([scalar.to(wide) for scalar in scalars])
        values: list[float] = (vector if self._mean is None else self._mean(vector)).tolist()
        return values


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


@torch.no_grad()
def _sum(scalars: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(scalars)).sum()
