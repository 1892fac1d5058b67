"""Statistics of each layer: a `Meter` reads an optimizer after its step and sends one packed array to the host."""

from client_sdk.stats.meter import Meter, StepCopy

__all__ = ["Meter", "StepCopy"]
