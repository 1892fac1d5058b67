"""Small trainings that run on every rank of a process group, and the same training on one process."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from client_sdk.config import Settings
from client_sdk.distributed import local
from client_sdk.protocol import HISTOGRAM_BINS
from client_sdk.run import Run
from client_sdk.watch import watch
from tests.support.logged import kept, last_layout

ROWS: Final = 8  # of a batch, which all ranks share
Optimizers = Callable[[Any], torch.optim.Optimizer]
Disturbance = Callable[[int, int, nn.Module], None]
"""Function of rank, step and model."""


class Net(nn.Module):
    """A network whose sizes no number of ranks divides; some shards of `thin` are empty on four ranks."""

    def __init__(self) -> None:
        """Create the layers in float64, so that one process and many agree to the last digits of float32."""
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Linear(5, 16)
        self.thin = nn.Linear(16, 3)
        self.norm = nn.LayerNorm(3)
        self.out = nn.Linear(3, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Return two numbers for each row."""
        y: Tensor = self.out(self.norm(self.thin(torch.tanh(self.wide(x)))))
        return y


class NormalisedNet(Net):
    """The network with buffers that DistributedDataParallel keeps alike, and a layer that has no gradient."""

    def __init__(self) -> None:
        """Create the layers of `Net` and a BatchNorm."""
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(2).double()
        self.spare = nn.Linear(1, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        """Return two numbers for each row."""
        y: Tensor = self.batch_norm(super().forward(x))
        return y


@dataclass
class Outcome:
    """Record of the run of one rank."""

    layers: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    statistics: tuple[str, ...] = ()
    steps: list[int] = field(default_factory=list)
    """Steps that have a block."""
    blocks: list[NDArray[np.float32]] = field(default_factory=list)
    """Block of each of ``steps``, [layers, statistics]."""
    scalars: list[dict[str, float]] = field(default_factory=list)
    """Scalars of every record."""
    histograms: dict[str, NDArray[np.uint32]] = field(default_factory=dict)
    """Counts of the first histograms, [layers, bins], by their name."""
    warnings: list[str] = field(default_factory=list)
    weights: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Part of the weights at the end that this rank holds."""

    def column(self, layer: str, statistic: str) -> list[float]:
        """Return one statistic of one layer at all of ``steps``."""
        at = self.layers.index(layer), self.statistics.index(statistic)
        return [float(block[at]) for block in self.blocks]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Return AdamW with a weight decay that matters."""
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Return the whole batch of ``step``, which is the same in every process."""
    generator = torch.Generator().manual_seed(step)
    return (
        torch.randn(ROWS, 5, generator=generator, dtype=torch.float64),
        torch.randn(ROWS, 2, generator=generator, dtype=torch.float64),
    )


def part_of(tensor: Tensor, rank: int, size: int) -> Tensor:
    """Return the rows of one rank."""
    return tensor.chunk(size)[rank]


@contextlib.contextmanager
def recorded(rank: int, outcome: Outcome, run_id: str = "r") -> Iterator[Run]:
    """Yield an offline run of ``rank``, and read into ``outcome`` what it recorded."""
    messages = _Messages()
    logger = logging.getLogger("client_sdk")
    logger.addHandler(messages)
    with tempfile.TemporaryDirectory() as directory:
        run = Run(
            Settings.resolve(
                project="p", mode="offline", directory=Path(directory), run_id=run_id, environ={"RANK": str(rank)}
            )
        )
        try:
            yield run
            if run.status().logged or rank == 0:
                _read(run, outcome)
        finally:
            run.finish(0.0)
            logger.removeHandler(messages)
            outcome.warnings += messages.seen


def train(
    rank: int,
    size: int,
    wrap: str,
    *,
    steps: int = 4,
    optimizer: Optimizers = adamw,
    loggers: Sequence[int] = (0,),
    log_every: int = 1,
    watchers: Sequence[int] | None = None,
    disturb: Disturbance | None = None,
    **options: Any,
) -> Outcome:
    """Train `Net` under ``wrap`` on its share of each batch, and return what this rank recorded.

    The ranks in ``watchers`` watch, by default all, and those in ``loggers`` log. ``disturb`` is called before each
    step of the optimizer and after the backward pass.
    """
    outcome = Outcome()
    with recorded(rank, outcome) as run:
        model, made, share = WRAPS[wrap](size, optimizer)
        is_watched = watchers is None or rank in watchers
        options = {"every": 1, **options}
        handle = watch(run, model, made, precision="exact", **options) if is_watched else None
        dist.barrier()  # a training that reduces nothing would not wait for ranks that have not called watch
        for step in range(steps):
            x, y = batch(step)
            if share:
                x, y = (part_of(each, *share) for each in (x, y))
            made.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            if disturb is not None:
                disturb(rank, step, model)
            made.step()
            if rank in loggers and (step + 1) % log_every == 0:
                run.log({"loss": float(loss.detach())}, step=step)
        outcome.weights = {name: local(value).numpy().copy() for name, value in model.state_dict().items()}
        if handle is not None:
            handle.remove()
    return outcome


def alone(
    steps: int = 4,
    optimizer: Optimizers = adamw,
    log_every: int = 1,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Outcome:
    """Return what the same training records on one process."""
    outcome = Outcome()
    with recorded(0, outcome) as run:
        model = Net().to(dtype)
        made = optimizer(model.parameters())
        watch(run, model, made, precision="exact", **{"every": 1, **options})
        for step in range(steps):
            x, y = (each.to(dtype) for each in batch(step))
            made.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            made.step()
            if (step + 1) % log_every == 0:
                run.log({"loss": float(loss.detach())}, step=step)
    return outcome


Share = tuple[int, int]
"""Position of a rank among those that have different rows of a batch, and their number."""
Wrapped = tuple[nn.Module, torch.optim.Optimizer, Share | None]


def _ddp(size: int, optimizer: Optimizers) -> Wrapped:
    model = nn.parallel.DistributedDataParallel(Net())
    return model, optimizer(model.parameters()), (dist.get_rank(), size)


def _plain(size: int, optimizer: Optimizers) -> Wrapped:
    model = Net()
    return model, optimizer(model.parameters()), None


def _ddp_compiled(size: int, optimizer: Optimizers) -> Wrapped:
    model, made, share = _ddp(size, optimizer)
    compiled: Any = torch.compile(model, backend="eager")
    return compiled, made, share


def _ddp_normalised(size: int, optimizer: Optimizers) -> Wrapped:
    model = nn.parallel.DistributedDataParallel(NormalisedNet(), find_unused_parameters=True)
    return model, optimizer(model.parameters()), (dist.get_rank(), size)


def _shard_all(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for child in model.children():
        fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _fsdp2(size: int, optimizer: Optimizers) -> Wrapped:
    model = _shard_all(Net(), init_device_mesh("cpu", (size,)))
    return model, optimizer(model.parameters()), (dist.get_rank(), size)


def _hsdp(size: int, optimizer: Optimizers) -> Wrapped:
    mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("replicate", "shard"))
    model = _shard_all(Net(), mesh)
    return model, optimizer(model.parameters()), (dist.get_rank(), size)


def _tp(size: int, optimizer: Optimizers) -> Wrapped:
    model = parallelize_module(
        Net(), init_device_mesh("cpu", (size,)), {"wide": ColwiseParallel(), "thin": RowwiseParallel()}
    )
    return model, optimizer(model.parameters()), None


def _tp_and_fsdp2(size: int, optimizer: Optimizers) -> Wrapped:
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("data", "tensor"))
    model = parallelize_module(Net(), mesh["tensor"], {"wide": ColwiseParallel(), "thin": RowwiseParallel()})
    model = _shard_all(model, mesh["data"])
    return model, optimizer(model.parameters()), (mesh.get_local_rank("data"), 2)


def _fsdp1(size: int, optimizer: Optimizers, *, keeps_parameters: bool = True) -> Wrapped:
    model = Net()
    cpu = torch.device("cpu")
    model.wide = FullyShardedDataParallel(model.wide, use_orig_params=keeps_parameters, device_id=cpu)  # type: ignore[assignment]
    model = FullyShardedDataParallel(model, use_orig_params=keeps_parameters, device_id=cpu)  # type: ignore[assignment]
    return model, optimizer(model.parameters()), (dist.get_rank(), size)


def _fsdp1_hybrid(size: int, optimizer: Optimizers, *, keeps_parameters: bool = True) -> Wrapped:
    mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("replicate", "shard"))
    model = FullyShardedDataParallel(
        Net(),
        use_orig_params=keeps_parameters,
        device_id=torch.device("cpu"),
        sharding_strategy=ShardingStrategy.HYBRID_SHARD,
        device_mesh=mesh,
    )
    return model, optimizer(model.parameters()), (dist.get_rank(), size)


def _zero1(size: int, optimizer: Optimizers) -> Wrapped:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns, which the ranks tolerate

    model = nn.parallel.DistributedDataParallel(Net())
    made = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    return model, made, (dist.get_rank(), size)


WRAPS: Final[dict[str, Callable[[int, Optimizers], Wrapped]]] = {
    "plain": _plain,
    "ddp": _ddp,
    "ddp-compiled": _ddp_compiled,
    "ddp-normalised": _ddp_normalised,
    "fsdp2": _fsdp2,
    "hsdp": _hsdp,
    "tp": _tp,
    "tp-fsdp2": _tp_and_fsdp2,
    "fsdp1": _fsdp1,
    "fsdp1-flat": partial(_fsdp1, keeps_parameters=False),
    "fsdp1-hybrid": _fsdp1_hybrid,
    "fsdp1-hybrid-flat": partial(_fsdp1_hybrid, keeps_parameters=False),
    "zero1": _zero1,
}


class _Messages(logging.Handler):
    """The warnings of the SDK, in order."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.seen.append(record.getMessage())


def _read(run: Run, outcome: Outcome) -> None:
    records = kept(run)
    if not any(record.block is not None for record in records):
        outcome.scalars += [dict(record.scalars) for record in records]
        return
    layout = last_layout(run)
    outcome.layers, outcome.sizes, outcome.statistics = layout.layers, layout.sizes, layout.statistics
    for record in records:
        outcome.scalars.append(dict(record.scalars))
        if record.block is not None:
            outcome.steps.append(record.step)
            outcome.blocks.append(
                np.frombuffer(record.block, "<f4").reshape(len(layout.layers), len(layout.statistics))
            )
        for histograms in record.histograms:
            counts = np.frombuffer(histograms.counts, "<u4").reshape(-1, HISTOGRAM_BINS)
            outcome.histograms.setdefault(histograms.which, counts)
