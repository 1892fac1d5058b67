"""Faults of trainings with two processes, which need ranks."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch.nn.parallel import DistributedDataParallel

from campaigns.audit.fault import Train, Training
from campaigns.audit.trial import watched
from client_sdk.run import Run
from tests.support.rank_pool import RankPool

SIZE: Final = 2
DIFFERS_AT: Final = 3  # step after which the weights of one rank are wrong


def _together(run: Run) -> Training:
    training = Training(run)
    training.model = DistributedDataParallel(training.model)
    training.optimizer = torch.optim.AdamW(training.model.parameters(), 0.01)
    training.random.manual_seed(torch.distributed.get_rank())
    training.watch()
    return training


def weights_differ(run: Run) -> int:
    """A bit of the weights of rank 1 is wrong."""
    training = _together(run)
    for step in range(24):
        training.once()
        if step == DIFFERS_AT and torch.distributed.get_rank() == 1:
            with torch.no_grad():
                next(training.model.parameters()).view(-1)[0] += 1e-3
    return DIFFERS_AT + 1


def healthy(run: Run) -> int:
    """Nothing is wrong."""
    _together(run).steps(60)
    return 0


def norm_of_ranks(run: Run) -> int:
    """The squares of the norms are added over ranks that hold the same gradients."""
    training = _together(run)

    def norm() -> None:
        square = sum(float(p.grad.square().sum()) for p in training.model.parameters() if p.grad is not None)
        training.logged["grad_norm"] = math.sqrt(SIZE * square)

    training.steps(3, before=norm)
    return 0


CASES: Final[dict[str, Train]] = {"weights": weights_differ, "norm": norm_of_ranks, "healthy": healthy}
FAULTS: Final = (
    (11, "ranks whose weights differ", "ranks-differ", 10, "weights"),
    (12, "gradient norm off by √ranks", "gradient-norm-off", 1, "norm"),
)
"""Number, name, check, steps and case of each fault."""


def case(rank: int, size: int, name: str, check: str) -> tuple[int | None, list[str], int]:
    """Train one case on one rank; return the steps until ``check`` named its fault, all findings and runs of checks."""
    torch.set_num_threads(1)
    trial = watched(CASES[name], check=check, rank=rank)
    return trial.named_after, sorted(trial.findings), sum(trial.runs.values())


def try_out_together(pool: RankPool | None = None) -> list[tuple[int, str, str, int, int | None, list[str]]]:
    """Return number, name, check, steps, those until it was named, and other findings of each fault."""
    own = pool or RankPool(SIZE)
    try:
        rows = []
        for number, name, check, within, of_case in FAULTS:
            after, findings, _ = own.run(case, of_case, check)[0]
            rows.append((number, name, check, within, after, [found for found in findings if found != check]))
        return rows
    finally:
        if pool is None:
            own.close()
