"""Tells an optimizer that is no longer used: the training goes on, but not by its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor

MAX_CHANGES: Final = 10  # logs in a row without a step, between which parameters changed
MAX_GRADIENTS: Final = 100  # the same between which gradients were computed; accumulation does this for a while
SAMPLE: Final = 8  # parameters that are looked at


class Disuse:
    """Logs since the last step of one optimizer, as far as they show that something else trains the model.

    Evaluation can log thousands of times without a step, so the logs alone show nothing.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        """Look at a few of ``parameters``, which are those that the optimizer is to move."""
        self._sample = tuple(parameters[:: max(1, len(parameters) // SAMPLE)][:SAMPLE])
        self._parameters: tuple[int, ...] | None = None
        self._gradients: tuple[tuple[int, int] | None, ...] | None = None
        self._changes = self._computed = 0
        self.is_disused = False
        """Whether the optimizer is no longer used."""

    def note_step(self) -> None:
        """Note a step, which refutes everything."""
        if self._parameters is not None:
            self._parameters = self._gradients = None
            self._changes = self._computed = 0
            self.is_disused = False

    def note_log(self) -> bool:
        """Note a log without a step since the last one, and return whether this one makes the optimizer disused."""
        parameters = tuple(_version(parameter) for parameter in self._sample)
        gradients = tuple(
            None if parameter.grad is None else (id(parameter.grad), _version(parameter.grad))
            for parameter in self._sample
        )
        if self._parameters is not None:
            self._changes += parameters != self._parameters
            self._computed += gradients != self._gradients
        self._parameters, self._gradients = parameters, gradients
        if self.is_disused:
            return False
        self.is_disused = self._changes >= MAX_CHANGES or self._computed >= MAX_GRADIENTS
        return self.is_disused


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
