"""Statistics of each layer: a `Meter` reads an optimizer after its step and sends one packed array to the host."""

from client_sdk.stats.layer_statistics import AMOUNTS
from client_sdk.stats.meter import Meter, StepCopy
from client_sdk.stats.parted_meter import PartedMeter, UnitedCopy
from client_sdk.stats.shared_copy import SharedCopy, share

__all__ = ["AMOUNTS", "Meter", "PartedMeter", "SharedCopy", "StepCopy", "UnitedCopy", "share"]
