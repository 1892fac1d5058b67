"""Curvature of a model without second derivatives: critical sharpness and λ_step, which need losses and one gradient.

It is used for optimizers whose stability limit is not known, and where no Hessian-vector product can be computed. Both
values belong to the step that was made, so that the update rule need not be known either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.curvature.critical_sharpness import CriticalSharpness
from client_sdk.curvature.sandbox import Sandbox
from client_sdk.curvature.schedule import Choice
from client_sdk.curvature.step_probe import StepSnapshot

FORWARDS: Final = 2  # evaluations of the closure in one record, which take less time than a gradient


class ForwardProbe:
    """Search for the critical sharpness that goes on from record to record. Used on the training thread."""

    def __init__(self, *, mean: Callable[[Tensor], Tensor] | None = None) -> None:
        """Begin without a search. ``mean`` averages a small vector over the processes of a training."""
        self._critical = CriticalSharpness(mean=mean)

    @property
    def needs_step(self) -> bool:
        """Whether the next search needs the weights before the step of its record."""
        return self._critical.needs_step

    def has_work(self, choice: Choice, *, has_step: bool) -> bool:
        """Return whether `measure` would find something; without the weights before a step, no search begins."""
        return has_step or (choice != "gradient" and not self._critical.needs_step)

    def measure(
        self, choice: Choice, sandbox: Sandbox, closure: Callable[[], Any], snapshot: StepSnapshot | None
    ) -> dict[str, Tensor]:
        """Return 0-d tensors for the host; none if there is no step to measure along.

        "track" goes on with the search for the critical sharpness, "gradient" measures λ_step, and "both" does both.
        The values are `loss`; of the search `is_over`, which is 1 when it has ended, and when it has found a value
        `critical_sharpness`, `critical_sharpness_error` and `step_lr`; and those of `StepSnapshot.measure`. The search
        waits for the device, because its next length depends on the losses.
        """
        values = {} if choice == "gradient" else self._search(sandbox, closure, snapshot)
        if snapshot is None or choice == "track":
            return values
        # The loss of the search is that before the step, and this one is that after it.
        loss = sandbox.whole_loss(sandbox.evaluate(closure, derivatives=0))
        return values | {"loss": loss} | snapshot.measure(sandbox, closure)

    def _search(self, sandbox: Sandbox, closure: Callable[[], Any], snapshot: StepSnapshot | None) -> dict[str, Tensor]:
        reading = self._critical.advance(sandbox, closure, snapshot, forwards=FORWARDS)
        if reading is None:
            return {}
        values = {"loss": reading.loss, "is_over": float(reading.is_done)}
        if reading.is_done and reading.sharpness is not None:
            values |= {
                "critical_sharpness": reading.sharpness,
                "critical_sharpness_error": reading.error if math.isfinite(reading.error) else math.nan,
                "step_lr": reading.lr,
            }
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
