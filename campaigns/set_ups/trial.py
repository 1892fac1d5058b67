"""One training of a set-up, bare or watched, which keeps the truth about each of its steps in float64.

The truth of a step is taken around the call that makes it: the gradient as the optimizer receives it, the weights
before and after it, and its learning rate. Taking it only reads, so a bare training has it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import client_sdk
from client_sdk.layers import named_parameters

STEPS: Final = 8
BATCH: Final = 16
FEATURES: Final = 6
OUTPUTS: Final = 4


@dataclass(frozen=True, kw_only=True)
class StepTruth:
    """The effect of one optimizer step, keyed by layer; a layer without a gradient has no entry in ``grad_norm``."""

    grad_norm: dict[str, float]
    weight_norm: dict[str, float]
    update_norm: dict[str, float]
    lr: float | None
    """Largest learning rate of the groups at the step; None if the optimizer finds its own."""
    lambda_max: float | None = None
    """The largest eigenvalue of the preconditioned Hessian after the step; None where it is not measured."""


@dataclass
class Trial:
    """A training of one set-up. The set-up calls `begin`, then `step` and `log` for each of its steps."""

    project: str
    is_watched: bool
    steps: int = STEPS
    first_step: int = 0
    """Number of the first record; a framework may count from 1."""
    truths: dict[int, StepTruth] = field(default_factory=dict)
    """Truth of each record, keyed by its step."""
    weights: list[Tensor] = field(default_factory=list)
    """Weights at the end."""
    needs: tuple[str, ...] = ("grad_norm", "weight_norm", "update_norm")
    """Statistics that are held against the truth."""
    warnings: dict[str, int] = field(default_factory=dict)
    """Number of warnings of the run, by cause."""
    absent: tuple[str, ...] = ()
    """Layers that are rightly not measured, such as frozen ones."""
    tolerance: float = 2e-3
    """Largest relative error of a norm: rounding of the weights moves update norms by up to this."""
    run_id: str = ""
    weights_of: Callable[[Tensor], Tensor] | None = None
    """Function that gathers the whole of a parameter, of which this process has a part; every process calls it."""
    gradient_of: Callable[[Tensor], Tensor | None] | None = None
    """The same for its gradient, before the call that makes the step, as it is gone when the optimizer steps."""
    _models: list[nn.Module] = field(default_factory=list)
    _hooked: list[torch.optim.Optimizer] = field(default_factory=list)
    _before: dict[str, Tensor] = field(default_factory=dict)
    _received: dict[str, Tensor] = field(default_factory=dict)
    _rates: list[float] = field(default_factory=list)
    _latest: StepTruth | None = None
    _logged: int = 0
    _observed: int = 0

    # -- called by set-ups --

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return the batches of all steps: inputs [16, 6] and targets [16, 4]."""
        generator = torch.Generator().manual_seed(1)
        inputs = [torch.randn(BATCH, FEATURES, generator=generator) for _ in range(self.steps)]
        return [(each, each[:, :OUTPUTS].sin()) for each in inputs]

    def begin(self, model: nn.Module, *optimizers: Any, **watching: Any) -> None:
        """Begin the run and watch the model with each optimizer."""
        self._models.append(model)
        for optimizer in optimizers:
            self._hook(_innermost(optimizer))
        if not self.is_watched:
            return
        run = client_sdk.init(project=self.project)
        self.run_id = run.id
        for optimizer in optimizers:
            client_sdk.watch(model, optimizer, **{"every": 1, "precision": "exact", **watching})

    def also(self, model: nn.Module, optimizer: Any) -> None:
        """Watch another model on the run."""
        self._models.append(model)
        if self.is_watched:
            client_sdk.watch(model, optimizer, every=1, precision="exact")

    def step(self, optimizer: Any, by: Callable[[], Any] | None = None) -> None:
        """Make one step with ``by``, by default ``optimizer.step``, and keep its truth."""
        inner = _innermost(optimizer)
        self._take_before(inner)
        self._hook(inner)
        (optimizer.step if by is None else by)()
        self._take_after()

    def observe(self, model: nn.Module, optimizer: Any, *, computes_within: bool = False) -> None:
        """Keep the truth of every step of an optimizer whose training loop belongs to a framework.

        ``computes_within``: the step computes its gradient itself, by a closure, so it is there only afterwards.
        """
        if model not in self._models:
            self._models.append(model)
        inner = _innermost(optimizer)

        def before(*_: object) -> None:
            self._take_before(inner)

        def after(*_: object) -> None:
            if computes_within:
                self._receive(inner)
            self._take_after()
            self.truths[self.first_step + self._observed] = self.latest
            self._observed += 1

        inner.register_step_pre_hook(before)
        inner.register_step_post_hook(after)

    def log(self, loss: Tensor | float, **scalars: Any) -> None:
        """Log the step that was made, whose truth is that of the last `step` of each model."""
        step = self.first_step + self._logged
        if self.is_watched:
            client_sdk.log({"loss": loss, **scalars}, step=step)
        self.truths[step] = self.latest
        self._logged += 1

    def log_from_first(self, loss: Tensor | float, rank: int) -> None:
        """Log as `log`, but on rank 0 alone."""
        if rank == 0:
            self.log(loss)

    def log_with_closure(
        self, loss: Tensor | float, closure: Callable[[], Tensor], lambda_max: Callable[[], float], rank: int
    ) -> None:
        """Log with a ``closure`` on every rank, and the loss on rank 0; ``lambda_max`` returns the record's truth."""
        step = self.first_step + self._logged
        if self.is_watched:
            client_sdk.log({"loss": loss} if rank == 0 else {}, step=step, closure=closure)
        self.truths[step] = replace(self.latest, lambda_max=lambda_max())
        self._logged += 1

    def end(self) -> None:
        """Keep the final weights, and finish the run."""
        if self.weights_of is not None:
            held = list(self._parameters().values())
        else:
            state = [tensor for model in self._models for tensor in model.state_dict().values()]
            held = [tensor for tensor in state if isinstance(tensor, Tensor)]
        self.weights = [self._whole(tensor).detach().clone() for tensor in held]
        if self.is_watched:
            client_sdk.finish()
            if self.run_id:
                self.warnings = dict(client_sdk.status().warnings)

    @property
    def latest(self) -> StepTruth:
        """Truth of the last step."""
        assert self._latest is not None, "log() before step()"
        return self._latest

    # -- internal --

    def _parameters(self) -> dict[str, Tensor]:
        return {name: value for model in self._models for name, value in named_parameters(model)}

    def _hook(self, inner: torch.optim.Optimizer) -> None:
        """Take the gradients when the step begins, as a GradScaler unscales them just before."""
        if inner not in self._hooked and self.gradient_of is None:
            self._hooked.append(inner)
            inner.register_step_pre_hook(torch.compiler.disable(self._receive))

    def _take_before(self, inner: torch.optim.Optimizer) -> None:
        self._before = self._exact_weights()
        self._receive(inner)

    def _receive(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        grads = {name: self._gradient(value) for name, value in self._parameters().items()}
        self._received = {name: _exact(grad) for name, grad in grads.items() if grad is not None}
        self._rates = [float(group["lr"]) for group in optimizer.param_groups if group.get("lr") is not None]

    def _take_after(self) -> None:
        after = self._exact_weights()
        self._latest = StepTruth(
            grad_norm={name: _norm(value) for name, value in self._received.items()},
            weight_norm={name: _norm(value) for name, value in after.items()},
            update_norm={
                name: _norm(value - self._before[name]) for name, value in after.items() if name in self._before
            },
            lr=max(self._rates, default=None),
        )

    def _exact_weights(self) -> dict[str, Tensor]:
        return {name: _exact(self._whole(value)) for name, value in self._parameters().items()}

    def _whole(self, tensor: Tensor) -> Tensor:
        return whole(tensor) if self.weights_of is None else self.weights_of(tensor)

    def _gradient(self, parameter: Tensor) -> Tensor | None:
        if self.gradient_of is not None:
            return self.gradient_of(parameter)
        grad = parameter.grad
        return grad if grad is None or self.weights_of is None else self.weights_of(grad)


def network(width: int = 16) -> nn.Module:
    """Return the network of most set-ups, with the same weights at every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, OUTPUTS))


def loss_of(model: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean square error of a batch."""
    return (model(batch[0]) - batch[1]).square().mean()


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that is divided among processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _exact(tensor: Tensor) -> Tensor:
    """Return a copy in float64, complex numbers as pairs."""
    found = whole(tensor.detach())
    found = found.to_dense() if found.is_sparse else found
    found = torch.view_as_real(found) if found.is_complex() else found
    return found.to(torch.float64, copy=True)


def _norm(tensor: Tensor) -> float:
    return float(tensor.norm())
