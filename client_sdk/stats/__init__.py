"""Tensors to per-layer statistics: a `Meter` reads an optimizer after its step, one packed array goes to the host."""

from client_sdk.stats.meter import Meter, StepCopy

__all__ = ["Meter", "StepCopy"]
