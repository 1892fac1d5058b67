"""Statistics of each layer: a `Meter` reads an optimizer after its step and sends one packed array to the host."""

from client_sdk.stats.layer_statistics import AMOUNTS
from client_sdk.stats.meter import Meter, StepCopy
from client_sdk.stats.movement import Refutation
from client_sdk.stats.parted_meter import PartedMeter, UnitedCopy
from client_sdk.stats.period_two import PeriodTwoCopy
from client_sdk.stats.period_two_reading import SOURCE_CURVATURE
from client_sdk.stats.shared_copy import SharedCopy, share

__all__ = [
    "AMOUNTS",
    "SOURCE_CURVATURE",
    "Meter",
    "PartedMeter",
    "PeriodTwoCopy",
    "Refutation",
    "SharedCopy",
    "StepCopy",
    "UnitedCopy",
    "share",
]
