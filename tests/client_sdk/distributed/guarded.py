"""Guarded trainings on several ranks, for processes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from client_sdk.config import Settings
from client_sdk.errors import ConfigurationError
from client_sdk.guard import Policy, SkipBatch, guard
from client_sdk.run import Run
from tests.client_sdk.guard.descent import STALE_AT, Descent


def guarded(rank: int, size: int, *, leaves: int | None = None, steps: int = STALE_AT + 60) -> dict[str, Any]:
    """Train replicas, each on its rows of the data; the rank ``leaves`` removes its guard after ten steps."""
    descent = Descent()
    model = DistributedDataParallel(descent.model)
    rows = slice(rank, None, size)
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings.resolve(project="p", directory=Path(directory), mode="offline", environ={"RANK": str(rank)})
        run = Run(settings)
        handle = guard(run, descent.optimizer, mode="act")
        losses = []
        for step in range(steps):
            if step == STALE_AT:
                descent.make_stale()
            if step == 10 and rank == leaves:
                handle.remove()
            descent.optimizer.zero_grad()
            loss = (model(descent.data[rows]) - descent.target[rows]).square().mean()
            loss.backward()
            descent.optimizer.step()
            losses.append(loss.item())
            run.log({"loss": losses[-1]}, step=step)
        warnings = dict(run.warner.counts)
        run.finish(0.0)
    second = next(iter(descent.optimizer.state.values()))["exp_avg_sq"].flatten().tolist()
    return {
        "losses": losses, "weights": descent.weights, "second": second, "acts": [act.step for act in handle.acts],
        "warnings": warnings,
    }  # fmt: skip


def refused(rank: int, size: int) -> str:
    """Return the message with which a policy that cannot be shared is refused."""
    del rank, size
    with tempfile.TemporaryDirectory() as directory:
        run = Run(Settings.resolve(project="p", directory=Path(directory), mode="offline", environ={}))
        try:
            guard(run, Descent().optimizer, mode="act", policy=Policy(actions={"bad-batch": (SkipBatch(),)}))
        except ConfigurationError as error:
            return str(error)
        finally:
            run.finish(0.0)
    return ""


def sharded(rank: int, size: int) -> str:
    """Return the message with which divided parameters are refused."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    del rank
    model = torch.nn.Linear(8, 4)
    fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    with tempfile.TemporaryDirectory() as directory:
        run = Run(Settings.resolve(project="p", directory=Path(directory), mode="offline", environ={}))
        try:
            guard(run, torch.optim.Adam(model.parameters()), mode="act")
        except ConfigurationError as error:
            return str(error)
        finally:
            run.finish(0.0)
    return ""
