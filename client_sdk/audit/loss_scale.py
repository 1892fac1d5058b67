"""The loss scale of a training with GradScaler, which is found where it steps the optimizer. On the training thread."""

from __future__ import annotations

import weakref
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.audit.callers import find_in_callers
from client_sdk.audit.fault import Fault
from client_sdk.host import ScalarCopy

LOOKS: Final = 8  # times that a scaler is searched for
HALVINGS: Final = 12  # in a row
LEAST: Final = 1.0  # a scale below it makes gradients smaller


class LossScale:
    """The scale of the GradScaler that steps an optimizer."""

    def __init__(self) -> None:
        self._scaler: weakref.ReferenceType[Any] | None = None
        self._looks = 0
        self._copy: ScalarCopy | None = None
        self._halvings = 0
        self._largest = 0.0
        self.value: float | None = None
        """The last scale that has reached the host."""

    @property
    def is_known(self) -> bool:
        """Whether there is a GradScaler."""
        return self._scaler is not None

    def look(self) -> None:
        """Search the callers for a GradScaler; costs microseconds, a few times."""
        if self._scaler is not None or self._looks >= LOOKS:
            return
        self._looks += 1
        found = find_in_callers(lambda value: isinstance(value, torch.amp.GradScaler) and value.is_enabled())
        if found is not None:
            self._scaler = weakref.ref(found)

    def read(self) -> Fault | None:
        """Take in the scale, and return the fault of one that collapses. Never waits for a device."""
        scaler = None if self._scaler is None else self._scaler()
        if scaler is None:
            return None
        scale = getattr(scaler, "_scale", None)  # get_scale() would wait for the device
        fault = None
        if self._copy is not None and self._copy.ready():
            fault = self._take(float(self._copy.array()[0]))
            self._copy = None
        if self._copy is None and isinstance(scale, Tensor):
            copy = ScalarCopy([scale])
            if copy.ready():
                fault = fault or self._take(float(copy.array()[0]))
            else:
                self._copy = copy
        return fault

    def _take(self, value: float) -> Fault | None:
        before, self.value = self.value, value
        if before is not None and value > before:
            self._halvings, self._largest = 0, value
        elif before is not None and value < before:
            self._halvings += 1
        self._largest = max(self._largest, value)
        if self._halvings < HALVINGS and value >= LEAST:
            return None
        return Fault(
            "loss-scale",
            f"the loss scale fell from {self._largest:g} to {value:g}, {self._halvings} times in a row",
            evidence={"loss_scale": value, "largest": self._largest, "reductions": self._halvings},
        )
