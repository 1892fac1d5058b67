"""Tensors to per-layer statistics: a `Meter` reads an optimizer after its step, one packed array goes to the host."""

from client_sdk.host import copy_to_host
from client_sdk.stats.meter import Meter, StepCopy

__all__ = ["Meter", "StepCopy", "copy_to_host"]
