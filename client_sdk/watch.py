"""`watch`: attaches to a model and its optimizer, decides when to measure, and passes measurements to the run.

Owns the hooks and the order of operations in a training step; `stats` and `curvature` do the measuring. Bad arguments
raise at once; afterwards nothing raises into training, and nothing that training computes is changed. Only the
optimizer has hooks: model and optimizer can be copied, pickled and compiled as if they were not watched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from client_sdk.curvature import CurvatureCopy, Probe
from client_sdk.errors import ConfigurationError
from client_sdk.host import ScalarCopy
from client_sdk.layers import Group, Layers, map_layers
from client_sdk.measurement import Measurement
from client_sdk.optimizers import describe, kind_of, stability_limit
from client_sdk.precision import PRECISIONS, compact_block
from client_sdk.protocol import Layout
from client_sdk.run import Attachment, Run
from client_sdk.stats import Meter, StepCopy
from client_sdk.warner import Warner


class Handle:
    """Handle of a `watch`, which can be removed."""

    def __init__(self, hooks: list[RemovableHandle], attachment: Attachment | None) -> None:
        """Take over the hooks of an optimizer and the attachment of its instrument to a run."""
        self._hooks = hooks
        self._attachment = attachment

    def remove(self) -> None:
        """Stop watching: remove the hooks and the instrument. May be called more than once."""
        while self._hooks:
            self._hooks.pop().remove()
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None


def watch(
    run: Run,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    every: int = 1,
    histogram_every: int = 50,
    curvature_every: int = 25,
    group: Group = "parameter",
    precision: str = "compact",
) -> Handle:
    """Measure ``model`` as ``optimizer`` moves it, at every `log` of ``run``.

    ``every`` is the number of optimizer steps between layer statistics, ``histogram_every`` between histograms, and
    ``curvature_every`` between full curvature probes while the run is calm (`log` needs a closure for these). Probes
    are more frequent when a spike may be near, and less frequent if they would take too much of the training's time.
    ``group`` is "parameter", "module", or a function from the name of a parameter to the name of its layer, or None to
    leave it out. ``precision`` is "compact" or "exact" (see `client_sdk.precision`).

    Raises `ConfigurationError` if an argument is invalid.
    """
    if not isinstance(model, torch.nn.Module):
        raise ConfigurationError(f"watch() needs a torch.nn.Module as its model, not {type(model).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigurationError(f"watch() needs a torch.optim.Optimizer, not {type(optimizer).__name__}")
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner  # wrappers such as accelerate's
    for name, value in (("every", every), ("histogram_every", histogram_every), ("curvature_every", curvature_every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"{name} is {value!r}; it must be a whole number of steps, at least 1")
    if not callable(group) and group not in ("parameter", "module"):
        raise ConfigurationError(
            f"group is {group!r}; use 'parameter', 'module' or a function from a parameter's name to a layer's or None"
        )
    if precision not in PRECISIONS:
        raise ConfigurationError(f"precision is {precision!r}; use {' or '.join(map(repr, PRECISIONS))}")
    layers = map_layers(model, optimizer, group)
    if run.disabled:
        return Handle([], None)
    if layers.grouped != group and not callable(group):
        run.warner.warn("layers", "the model has more than 20,000 parameters; they are grouped by module")
    watcher = _Watcher(
        run,
        model,
        optimizer,
        layers,
        every=every,
        histogram_every=histogram_every,
        curvature_every=curvature_every,
        is_compact=precision == "compact",
    )
    attachment = run.attach(watcher)
    hooks: list[RemovableHandle] = []
    # Without `disable`, a compiled optimizer.step would try to compile the measuring too.
    if watcher.meter.watches_versions:
        hooks.append(optimizer.register_step_pre_hook(torch.compiler.disable(watcher.before_step)))
    hooks.append(optimizer.register_step_post_hook(torch.compiler.disable(watcher.after_step)))
    return Handle(hooks, attachment)


class _Watcher:
    """Instrument of one `watch`. Every method is called on the training thread."""

    def __init__(
        self,
        run: Run,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        layers: Layers,
        *,
        every: int,
        histogram_every: int,
        curvature_every: int,
        is_compact: bool,
    ) -> None:
        kind = kind_of(optimizer)
        self._is_compact = is_compact
        self._run = run
        self._warner: Warner = run.warner
        self._model, self._optimizer = model, optimizer
        self._every, self._histogram_every = every, histogram_every
        self.meter = Meter(optimizer, kind, layers)
        self._probe = Probe(
            model,
            optimizer,
            kind,
            every=curvature_every,
            warner=run.warner,
            is_alone=lambda: run.instrument_count < 2,
        )
        self.layout = Layout(
            id=0,
            layers=layers.names,
            statistics=self.meter.statistics,
            sizes=layers.sizes,
            optimizer=describe(optimizer),
        )
        self._steps = 0  # optimizer steps since `watch`
        self._measured_at: int | None = None
        self._histogram_at: int | None = None
        self._logged_at = 0
        self._steps_a_log = 1
        self._fresh: StepCopy | None = None
        self._flying: list[StepCopy] = []

    def before_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Prepare the meter; a hook of `torch.optim.Optimizer.register_step_pre_hook`."""
        try:
            self.meter.before_step(optimizer)
        except Exception as error:
            self._warner.caught("statistics", "reading the optimizer before its step", error)

    def after_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Measure the step, whose gradients and new state are available now.

        A hook of `torch.optim.Optimizer.register_step_post_hook`.
        """
        try:
            if self._run.active and not _is_capturing():
                self._after_step(optimizer)
        except Exception as error:
            self._warner.caught("statistics", "measuring layer statistics", error)

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._steps += 1
        if self._measured_at is not None and self._steps - self._measured_at < self._every:
            return
        if self._steps - self._logged_at < self._steps_a_log:
            return  # a training that logs every tenth step does not pay for the nine that are never read
        wants_histogram = self._histogram_at is None or self._steps - self._histogram_at >= self._histogram_every
        self._measured_at = self._steps
        self._fresh = self.meter.measure(optimizer, histograms=wants_histogram)
        if self._fresh is not None and wants_histogram:
            self._histogram_at = self._steps
        if self.meter.has_newcomers:
            self._warner.warn(
                "new_parameters",
                "the optimizer moves parameters that were missing or frozen when watch() was called; they are not "
                "measured. Call handle.remove() and watch() again after changing the model",
            )

    @property
    def has_stepped(self) -> bool:
        """Whether the optimizer has made a step since the last measured `log`; implements `measurement.Instrument`."""
        return self._steps > self._logged_at

    def measure(
        self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None
    ) -> _PendingMeasurement | None:
        """Start the measurement of ``step``; implements `measurement.Instrument`."""
        try:
            return self._measure(step, metrics, closure)
        except Exception as error:
            self._warner.caught("measure", "measuring", error)
            return None

    def _measure(self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None) -> _PendingMeasurement:
        advance = self._steps - self._logged_at
        self._logged_at = self._steps
        self._steps_a_log = max(1, advance)
        fresh, self._fresh = self._fresh, None
        if fresh is not None and closure is not None:
            self._flying.append(fresh)
        lr = _largest_rate(self._optimizer)
        curvature: CurvatureCopy | None = None
        if callable(closure):
            self.meter.wants_slope = True
            self._collect()
            follows_one_step = advance == 1 and self._measured_at == self._steps
            curvature = self._probe.measure(
                step,
                closure,
                lr=lr if isinstance(lr, float) else None,
                loss=metrics.get("loss"),
                signals=fresh if follows_one_step else None,
            )
        elif closure is not None:
            self._warner.warn("closure", f"closure is {type(closure).__name__}; it must be a function of no arguments")
        return _PendingMeasurement(fresh, curvature, lr, self.layout.statistics if self._is_compact else None)

    def _collect(self) -> None:
        """Give the schedule the statistics that have reached the host."""
        while self._flying and self._flying[0].ready():
            totals = self._flying.pop(0).totals
            self._probe.schedule.observe_gradient(totals["grad_norm"], totals["decoupling"])


class _PendingMeasurement:
    """Measurements of one `log`, which may still be on their way to the host; implements `measurement.Pending`."""

    def __init__(
        self,
        statistics: StepCopy | None,
        curvature: CurvatureCopy | None,
        lr: float | Tensor | None,
        compact_columns: tuple[str, ...] | None,
    ) -> None:
        """Combine the measurements; ``compact_columns`` names the block's columns if the block is to be compact."""
        self._statistics = statistics
        self._compact_columns = compact_columns
        self._curvature = curvature
        self._lr: float | None = lr if isinstance(lr, float) else None
        self._lr_copy = ScalarCopy([lr]) if isinstance(lr, Tensor) else None

    def ready(self) -> bool:
        """Return whether all parts have reached the host."""
        parts = (self._statistics, self._curvature, self._lr_copy)
        return all(part is None or part.ready() for part in parts)

    def result(self) -> Measurement:
        """Return the measurement, after waiting for its parts if necessary."""
        measured = Measurement() if self._statistics is None else self._statistics.measurement()
        scalars = dict(measured.scalars)
        lr = self._lr if self._lr_copy is None else float(self._lr_copy.array()[0])
        if lr is not None:
            scalars["lr"] = lr
            if lr > 0:
                scalars["stability_limit"] = stability_limit(lr)
        if self._curvature is not None:
            scalars |= self._curvature.scalars()
        block = measured.block
        if block is not None and self._compact_columns is not None:
            block = compact_block(block, self._compact_columns)
        return Measurement(scalars=scalars, block=block, histograms=measured.histograms)


def _largest_rate(optimizer: torch.optim.Optimizer) -> float | Tensor | None:
    """Return the largest learning rate of the groups, as a tensor without waiting if any is kept on a device."""
    rates = [group["lr"] for group in optimizer.param_groups if "lr" in group]
    on_device = [rate for rate in rates if isinstance(rate, Tensor) and rate.device.type != "cpu"]
    if on_device:
        return torch.stack([torch.as_tensor(rate, device=on_device[0].device) for rate in rates]).max()
    return max((float(rate) for rate in rates), default=None)


def _is_capturing() -> bool:
    """Return whether a CUDA graph is recording the step; anything measured now would become part of the graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
