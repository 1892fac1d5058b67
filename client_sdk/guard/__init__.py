"""The guard of a training against spikes: `guard`, its `Policy`, and the actions that a policy is made of."""

from client_sdk.guard.guard import Act
from client_sdk.guard.handle import GuardHandle, guard
from client_sdk.guard.policy import (
    Action,
    ClipUpdate,
    LowerBeta2,
    Policy,
    RaiseSecondMoment,
    ReduceRate,
    ScaleEps,
    SkipBatch,
)

__all__ = [
    "Act",
    "Action",
    "ClipUpdate",
    "GuardHandle",
    "LowerBeta2",
    "Policy",
    "RaiseSecondMoment",
    "ReduceRate",
    "ScaleEps",
    "SkipBatch",
    "guard",
]
