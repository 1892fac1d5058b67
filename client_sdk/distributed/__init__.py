"""Measuring a model that several ranks train: who takes part, which part each rank contributes, and their sum."""

from client_sdk.distributed.ballot import Ballot, Decision
from client_sdk.distributed.participation import Participation
from client_sdk.distributed.placements import is_divided_alike, local, local_optimizer, refuse_deepspeed
from client_sdk.distributed.team import Contribution, SharedStep, Team, Verdict

__all__ = [
    "Ballot",
    "Contribution",
    "Decision",
    "Participation",
    "SharedStep",
    "Team",
    "Verdict",
    "is_divided_alike",
    "local",
    "local_optimizer",
    "refuse_deepspeed",
]
