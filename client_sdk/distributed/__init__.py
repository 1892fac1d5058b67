"""Measuring a model that several ranks train: who takes part, which part each rank contributes, and their sum."""

from client_sdk.distributed.ballot import Ballot, Decision
from client_sdk.distributed.flat_parameters import read_flat_parameters
from client_sdk.distributed.fully_sharded import FullySharded
from client_sdk.distributed.participation import Participation, Possession
from client_sdk.distributed.partition import FragmentOptimizer, Partition
from client_sdk.distributed.placements import is_divided_alike, local, local_optimizer
from client_sdk.distributed.reduction import Reduction
from client_sdk.distributed.team import Contribution, SharedStep, Team, Verdict
from client_sdk.distributed.zero import module_of, read_partition, zero_optimizer

__all__ = [
    "Ballot",
    "Contribution",
    "Decision",
    "FragmentOptimizer",
    "FullySharded",
    "Participation",
    "Partition",
    "Possession",
    "Reduction",
    "SharedStep",
    "Team",
    "Verdict",
    "is_divided_alike",
    "local",
    "local_optimizer",
    "module_of",
    "read_flat_parameters",
    "read_partition",
    "zero_optimizer",
]
