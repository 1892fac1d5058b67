"""Steps of a model that FSDP2 shards, measured from its losses; run on every rank of a process group."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from client_sdk.curvature.critical_sharpness import CriticalSharpness
from client_sdk.curvature.sandbox import Sandbox, gradients, held
from client_sdk.curvature.step_probe import StepSnapshot

ROWS = 8
STEPS = 6


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 5, generator=generator, dtype=torch.float64)
    return x, torch.sin(2 * x.sum(1, keepdim=True))


def sharded(rank: int, size: int) -> tuple[list[float], list[float], bool]:
    """Train on this rank's rows, and return the results of `_measure`."""
    model = net()
    mesh = init_device_mesh("cpu", (size,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    x, y = (part[rank::size] for part in batch())

    def mean(vector: Tensor) -> Tensor:
        dist.all_reduce(vector)
        return vector / size

    return _measure(model, lambda: (model(x) - y).square().mean(), mean)


def whole() -> tuple[list[float], list[float], bool]:
    """Train on all rows in one process, and return the results of `_measure`."""
    model = net()
    x, y = batch()
    return _measure(model, lambda: (model(x) - y).square().mean(), None)


def _measure(
    model: nn.Module, closure: Callable[[], Tensor], mean: Callable[[Tensor], Tensor] | None
) -> tuple[list[float], list[float], bool]:
    """Return λ_c and the squared length of the gradient after each step, and whether the weights kept their bits."""
    parameters = list(model.parameters())  # the shards; while FSDP2 has gathered them, the model shows other ones
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    critical = CriticalSharpness(mean=mean)
    readings, squares, are_same = [], [], True
    for _ in range(STEPS):
        step = StepSnapshot(parameters, 0.02)
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()
        before = [held(parameter).clone() for parameter in parameters]
        with Sandbox(model, []) as sandbox:
            reading = critical.measure(sandbox, closure, step)
            grads = gradients(sandbox.evaluate(closure, derivatives=1), parameters)
        assert reading.sharpness is not None
        readings.append(reading.sharpness)
        square = sum((grad.square().sum() for grad in grads if grad is not None), torch.zeros((), dtype=torch.float64))
        if mean is not None:
            square = mean(square) * dist.get_world_size()
        squares.append(float(square))
        are_same &= all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
        are_same &= all(torch.equal(held(p), old) for p, old in zip(parameters, before, strict=True))
    return readings, squares, are_same
