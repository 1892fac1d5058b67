"""Values of one curvature measurement on their way to the host, and the scalars that are reported of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from client_sdk.curvature.step_probe import step_curvature
from client_sdk.curvature.tracking import WORST_ERROR
from client_sdk.host import ScalarCopy
from client_sdk.optimizers import stability_ratio

ROUNDING: Final = 64  # units of rounding of the loss below which a slope is meaningless


class CurvatureCopy:
    """Values of one measurement on their way to the host."""

    def __init__(self, tensors: dict[str, Tensor], rounding: float) -> None:
        """Start copying the 0-d ``tensors``, keyed by name, to the host.

        ``rounding`` is the size of the slope, relative to the loss, below which λ_step is not reported.
        """
        self._names = tuple(tensors)
        self._copy = ScalarCopy(list(tensors.values()))
        self._rounding = rounding

    def ready(self) -> bool:
        """Return whether all values have reached the host. Never synchronises a device."""
        return self._copy.ready()

    def values(self) -> dict[str, float]:
        """Return everything that was measured, by name, with NaN where a measurement failed.

        Always `loss`. With a Hessian-vector product also `lr`, `product_error` (see `Hessian.error`), and those of
        `Tracking.take`, or `lambda_grad`; without
        one those of `ForwardProbe`; with the weights before the step also those of `StepSnapshot.measure`.
        """
        return dict(zip(self._names, self._copy.array().tolist(), strict=True))

    def scalars(self) -> dict[str, float]:
        """Return the scalars to report, each only if it is meaningful.

        They are `lambda_grad`, `lambda_max` with `lambda_max_error` and `stability_ratio`, `critical_sharpness` with
        `critical_sharpness_error`, and `lambda_step`.
        """
        values = self.values()
        if is_flat(values):
            return {}  # the loss may have changed, but not because of this model's step
        reported = {}
        if math.isfinite(values.get("lambda_grad", math.nan)):
            reported["lambda_grad"] = values["lambda_grad"]
        if is_reportable(values):
            reported["lambda_max"] = values["lambda_max"]
            # More products reduce only the first part.
            reported["lambda_max_error"] = values["lambda_max_error"] + values.get("product_error", 0.0)
            if values["lr"] > 0:
                reported["stability_ratio"] = stability_ratio(values["lambda_max"], values["lr"])
        if math.isfinite(values.get("critical_sharpness", math.nan)):
            reported["critical_sharpness"] = values["critical_sharpness"]
            reported["critical_sharpness_error"] = values["critical_sharpness_error"]
        if "slope" in values:
            step = step_curvature(
                loss=values["loss"],
                loss_before=values["loss_before"],
                slope=values["slope"],
                lr=values["step_lr"],
                rounding=self._rounding,
            )
            if step is not None:
                reported["lambda_step"] = step
        return reported


def is_reportable(values: Mapping[str, float]) -> bool:
    """Return whether λ_max was read with an acceptable error."""
    return math.isfinite(values.get("lambda_max", math.nan)) and not values["lambda_max_error"] > WORST_ERROR


def is_flat(values: Mapping[str, float]) -> bool:
    """Return whether the loss is finite and its gradient exactly zero.

    The loss then does not depend on these parameters at the moment. There is no direction to measure along, and the
    closure is not at fault.
    """
    return math.isfinite(values["loss"]) and values.get("gradient_square") == 0


def rounding_of(loss: Tensor, *, is_coarse: bool = False) -> float:
    """Return the size of a slope, relative to the ``loss``, below which it is meaningless.

    ``is_coarse`` tells that the loss passed through 16 bits, whatever its type is.
    """
    return torch.finfo(torch.bfloat16).eps if is_coarse else ROUNDING * torch.finfo(loss.dtype).eps
