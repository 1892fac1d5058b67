"""The call `watch`, which checks its arguments and attaches a `Watcher` to run and optimizer, and its handle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from client_sdk.curvature import METHODS, Method
from client_sdk.distributed import (
    Participation,
    local_optimizer,
    module_of,
    read_flat_parameters,
    read_partition,
    zero_optimizer,
)
from client_sdk.errors import ConfigurationError
from client_sdk.layers import Group, map_layers
from client_sdk.optimizers import Watched, watched_optimizer
from client_sdk.precision import PRECISIONS
from client_sdk.run import Attachment, Run
from client_sdk.stats import AMOUNTS
from client_sdk.watch.hooks import StepHooks
from client_sdk.watch.part_steps import PartSteps
from client_sdk.watch.rhythm import Every
from client_sdk.watch.watcher import Watcher


class Handle:
    """Handle of a `watch`, which can be removed."""

    def __init__(self, hooks: StepHooks | None, attachment: Attachment | None, watcher: Watcher | None) -> None:
        """Take over the hooks of an optimizer, its instrument, and the attachment of the instrument to a run."""
        self._hooks = hooks
        self._attachment = attachment
        self._watcher = watcher

    def remove(self) -> None:
        """Stop watching: remove the hooks and the instrument. May be called more than once."""
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None
        if self._watcher is not None:
            self._watcher.leave()
            self._watcher = None
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    def recompute(self, closure: Callable[[], Any]) -> bool:
        """Compute loss and gradients of ``closure`` three times from the same state, and return whether they agree.

        A difference beyond what the order of sums explains is a hardware error (or code that draws random numbers of
        its own). It is reported as a finding of the audit with the next record. Takes three forward and backward
        passes, waits for the device, and restores everything, as the curvature probes do. True where nothing is
        watched. Raises what the closure raises, as `ClosureError`.
        """
        return True if self._watcher is None else self._watcher.recompute(closure)


def watch(
    run: Run,
    model: torch.nn.Module,
    optimizer: object,
    *,
    every: Every = "auto",
    histogram_every: int = 50,
    curvature_every: int = 25,
    curvature: Method = "auto",
    budget: float = 0.05,
    group: Group = "parameter",
    precision: str = "compact",
    distributed: bool = True,
) -> Handle:
    """Measure ``model`` as ``optimizer`` moves it, at every `log` of ``run``.

    ``every`` is the number of optimizer steps between layer statistics, or "auto" (see `client_sdk.watch.rhythm`).
    ``histogram_every`` is that between histograms, and ``curvature_every`` between readings of λ_max while the run is
    calm (`log` needs a closure for these). Readings are more frequent when a spike may be near.

    ``budget`` is the share of the training's time that measuring may take over any 200 steps: curvature always, and
    layer statistics with ``every="auto"``. No record pays for more than one Hessian-vector product and one gradient,
    except where the steps take less than 20 ms or ``budget`` is 1.0 or more: there λ_max is read by several products at
    one record. Where these are dear beside a step, readings are rarer than the intervals ask for. A model whose steps
    take less than a few milliseconds can afford more, such as ``budget=1.0``; ``math.inf`` sets no limit.
    ``curvature`` is the method: "exact" (double backward), "finite-difference" (differences of gradients), "forward"
    (critical sharpness and λ_step, without Hessian-vector products), "auto" (the first of these that works) or "off".

    ``group`` is "parameter", "module", or a function from the name of a parameter to the name of its layer, or None to
    leave it out. ``precision`` is "compact" or "exact" (see `client_sdk.precision`).

    In a distributed training every rank calls `watch`, in the same order; the layers are then those of the whole model,
    and one rank records them (docs/how-to/distributed-training.md). Pass ``distributed=False`` if every process trains
    a model of its own. With DeepSpeed ``model`` is the engine or the model within it, and ``optimizer`` what
    `deepspeed.initialize` returned, or the engine.

    Raises `ConfigurationError` if an argument is invalid.
    """
    if not isinstance(model, torch.nn.Module):
        raise ConfigurationError(f"watch() needs a torch.nn.Module as its model, not {type(model).__name__}")
    zero = zero_optimizer(model, optimizer)
    model = module_of(model)
    partition = None if zero is None else read_partition(model, zero)
    if partition is not None:
        watched = Watched(optimizer=partition.base)
    elif isinstance(optimizer, torch.optim.Optimizer):
        watched = watched_optimizer(optimizer)
        partition = read_flat_parameters(model, watched.optimizer)
    else:
        raise ConfigurationError(f"watch() needs a torch.optim.Optimizer, not {type(optimizer).__name__}")
    if every != "auto" and not _is_interval(every):
        raise ConfigurationError(f'every is {every!r}; it must be "auto" or a whole number of steps, at least 1')
    for name, value in (("histogram_every", histogram_every), ("curvature_every", curvature_every)):
        if not _is_interval(value):
            raise ConfigurationError(f"{name} is {value!r}; it must be a whole number of steps, at least 1")
    if curvature not in METHODS:
        raise ConfigurationError(f"curvature is {curvature!r}; use {' or '.join(map(repr, METHODS))}")
    if not isinstance(budget, int | float) or isinstance(budget, bool) or not budget > 0:
        raise ConfigurationError(f"budget is {budget!r}; it must be a share of the training's time, such as 0.05")
    if not callable(group) and group not in ("parameter", "module"):
        raise ConfigurationError(
            f"group is {group!r}; use 'parameter', 'module' or a function from a parameter's name to a layer's or None"
        )
    if precision not in PRECISIONS:
        raise ConfigurationError(f"precision is {precision!r}; use {' or '.join(map(repr, PRECISIONS))}")
    layers = map_layers(model, watched.optimizer, group) if partition is None else partition.layers(group)
    if run.disabled:
        return Handle(None, None, None)
    if layers.grouped != group and not callable(group):
        run.warner.warn("layers", "the model has more than 20,000 parameters; they are grouped by module")
    measured = local_optimizer(watched.optimizer)
    participation = Participation(
        model,
        measured if partition is None else partition.whole,
        layers,
        run.warner,
        amounts=AMOUNTS,
        is_together=distributed,
        partition=partition,
    )
    watcher = Watcher(
        run,
        model,
        replace(watched, optimizer=measured),
        layers,
        participation,
        every=every,
        histogram_every=histogram_every,
        curvature_every=curvature_every,
        curvature=curvature,
        budget=budget,
        group=group,
        is_compact=precision == "compact",
        partition=partition,
    )
    attachment = run.attach(watcher)
    observer = watcher if partition is None else PartSteps(partition, watcher, run.warner)
    return Handle(StepHooks(measured, observer), attachment, watcher)


def _is_interval(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
