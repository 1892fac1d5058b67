"""λ_step, the curvature along the last step of an optimizer, from the closure's loss before and after the step.

Owns the snapshot of the weights before the step and the evaluation at these weights. Both ends are evaluated on the
same batch, so clipping, gradient accumulation, loss scaling and dropout do not change what the value means, and the
update rule of the optimizer need not be known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from client_sdk.curvature.sandbox import Sandbox, held


class StepSnapshot:
    """Weights before an optimizer step, with the learning rate of that step."""

    @torch.no_grad()
    def __init__(self, parameters: Sequence[Tensor], lr: float | Tensor) -> None:
        """Copy the ``parameters``; ``lr`` is the largest learning rate η of the step."""
        self._parameters = tuple(parameters)
        self._before = [parameter.detach().clone() for parameter in self._parameters]
        self._lr = lr.detach().clone() if isinstance(lr, Tensor) else lr

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The parameters that the step moved."""
        return self._parameters

    @property
    def before(self) -> tuple[Tensor, ...]:
        """The values of the parameters before the step."""
        return tuple(self._before)

    @property
    def lr(self) -> float | Tensor:
        """The largest learning rate η of the step."""
        return self._lr

    def measure(self, sandbox: Sandbox, closure: Callable[[], Any]) -> dict[str, Tensor]:
        """Evaluate the closure at the weights before the step, and restore the present weights bit for bit.

        Returns 0-d tensors: `loss_before`, the loss L(θ − Δw); `slope`, the change gᵀΔw of the loss to first order; and
        `step_lr`, the learning rate η of the step. Raises `ClosureError` if the closure is unusable.
        """
        self._swap()
        try:
            loss = sandbox.evaluate(closure)
            grads = sandbox.gradients(loss, self._parameters)
        finally:
            self._swap()
        wide = torch.float32 if loss.device.type == "mps" else torch.float64
        slope = torch.zeros((), device=loss.device, dtype=wide)
        for grad, parameter, before in zip(grads, self._parameters, self._before, strict=True):
            if grad is not None and sandbox.counts(parameter):
                product = grad * (held(parameter) - held(before))
                slope = slope + product.sum(dtype=None if product.dtype == wide else torch.float32).to(slope)
        return {
            "loss_before": sandbox.whole_loss(loss),
            "slope": sandbox.add_parts(slope),
            "step_lr": torch.as_tensor(self._lr),
        }

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the values of the parameters and of the snapshot, without a new version of any parameter."""
        for parameter, before in zip(self._parameters, self._before, strict=True):
            present = held(parameter).clone()
            held(parameter).copy_(held(before))
            held(before).copy_(present)


def step_curvature(*, loss: float, loss_before: float, slope: float, lr: float, rounding: float) -> float | None:
    """Return λ_step = 2·(ΔL − gᵀΔw) / (−η·gᵀΔw), or None if the step did not descend.

    It is above 2/η exactly if the step raised the loss of its own batch, ΔL > 0. ``rounding`` is the relative size of
    the slope below which the difference of the losses is rounding.
    """
    if not slope < -rounding * abs(loss) or not lr > 0:
        return None
    curvature = 2.0 * (loss - loss_before - slope) / (-lr * slope)
    return curvature if abs(curvature) < float("inf") else None
