"""Trainings whose curvature is measured on every rank, and disturbances of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn

from client_sdk.distributed import local
from client_sdk.watch import watch
from tests.client_sdk.distributed.trainings import WRAPS, Net, Optimizers, Outcome, adamw, batch, part_of, recorded


def train_with_closure(
    rank: int,
    size: int,
    wrap: str = "ddp",
    *,
    steps: int = 16,
    loggers: Sequence[int] = (0, 1),
    has_closure: Callable[[int, int], bool] = lambda rank, step: True,
    disturb: Callable[[int, int], None] | None = None,
    disturb_after: int = 0,
    disturb_in: str = "",
    micro_batches: int = 1,
    leaves_at: int | None = None,
    patience: float = 5.0,
    optimizer: Optimizers = adamw,
    batches: int = 1_000,
    is_inner_watched: bool = False,
    large_budget: float = 1.0,
    **options: Any,
) -> Outcome:
    """Train `Net` under ``wrap``; every rank in ``loggers`` logs with the closure of its own part of the batch.

    ``has_closure`` tells whether a rank has a closure at a step, ``disturb`` is called within it
    after ``disturb_after`` forward passes, or after that of the layer ``disturb_in``. Rank 1 stops watching
    before the step ``leaves_at``. Ranks wait ``patience`` seconds for each other in votes. After ``batches`` steps the
    first batch comes again. ``is_inner_watched`` watches the module within the wrapper. Below
    ``large_budget`` each measurement has one product.
    """
    outcome = Outcome()
    with (
        recorded(rank, outcome) as run,
        patch("client_sdk.distributed.ballot.PATIENCE", patience),
        patch("client_sdk.curvature.schedule.LARGE_BUDGET", large_budget),
    ):
        model, made, share = WRAPS[wrap](size, optimizer)
        watched: Any = model.module if is_inner_watched else model
        handle = watch(run, watched, made, **{"every": 1, "curvature_every": 1, "budget": float("inf"), **options})
        now = [-1]  # step whose closure may be computed
        if disturb_in:
            layer = watched.get_submodule(disturb_in)
            layer.register_forward_hook(lambda *_: disturb(rank, now[0]) if disturb is not None else None)
        dist.barrier()
        for step in range(steps):
            x, y = batch(step % batches)
            if share:
                x, y = (part_of(each, *share) for each in (x, y))
            if rank == 1 and step == leaves_at:
                handle.remove()
            made.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            made.step()

            def closure(x: Tensor = x, y: Tensor = y, step: int = step) -> Tensor:
                losses = []
                parts = zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True)
                for at, (rows, targets) in enumerate(parts):
                    if disturb is not None and not disturb_in and at == disturb_after:
                        disturb(rank, step)
                    losses.append(nn.functional.mse_loss(model(rows), targets))
                if disturb is not None and not disturb_in and micro_batches == disturb_after:
                    disturb(rank, step)
                return torch.stack(losses).mean()

            now[0] = step
            if rank in loggers:
                run.log(
                    {"loss": float(loss.detach())} if rank == 0 else {},
                    step=step,
                    closure=closure if has_closure(rank, step) else None,
                )
            now[0] = -1
        outcome.weights = {name: local(value).numpy().copy() for name, value in model.state_dict().items()}
        handle.remove()
    return outcome


def alone_with_closure(steps: int = 16, optimizer: Optimizers = adamw, batches: int = 1_000, **options: Any) -> Outcome:
    """Return what the same training records on one process."""
    outcome = Outcome()
    with recorded(0, outcome) as run:
        model = Net()
        made = optimizer(model.parameters())
        watch(run, model, made, **{"every": 1, "curvature_every": 1, "budget": float("inf"), **options})
        for step in range(steps):
            x, y = batch(step % batches)
            made.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            made.step()
            run.log(
                {"loss": float(loss.detach())},
                step=step,
                closure=lambda x=x, y=y: nn.functional.mse_loss(model(x), y),  # type: ignore[misc]
            )
    return outcome


def slow_adam(parameters: Any) -> torch.optim.Optimizer:
    """Return an optimizer under which curvature hardly drifts."""
    return torch.optim.Adam(parameters, lr=1e-4)


def signs(parameters: Any) -> torch.optim.Optimizer:
    """Return sign descent."""
    return Signs(parameters, lr=0.01)


class Signs(torch.optim.Optimizer):
    """Sign descent, whose limit is not known."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter by the learning rate."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad.sign())


def no_rank_has_one(rank: int, step: int) -> bool:
    """Give a closure to no rank."""
    return False


def rank_0_has_one(rank: int, step: int) -> bool:
    """Give a closure to rank 0 alone."""
    return rank == 0


def rank_1_has_none_later(rank: int, step: int) -> bool:
    """Take the closure of rank 1 away after some steps."""
    return rank == 0 or step < 8


def raise_on_rank_1(rank: int, step: int) -> None:
    """Raise within the closure of rank 1 at some steps."""
    if rank == 1 and 4 <= step < 8:
        raise ValueError("no batch")


def raise_on_every_rank(rank: int, step: int) -> None:
    """Raise within every closure at some steps."""
    if 4 <= step < 8:
        raise ValueError("no batch")
