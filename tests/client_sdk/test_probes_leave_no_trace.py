"""A training is the same to the bit with and without each way to measure curvature, whatever the closure does."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client_sdk.curvature.critical_sharpness import CriticalSharpness
from client_sdk.curvature.hessian import DifferenceHessian, ExactHessian
from client_sdk.curvature.preconditioner import Preconditioner
from client_sdk.curvature.sandbox import ClosureError, Sandbox
from client_sdk.curvature.step_probe import StepSnapshot

torch.set_num_threads(1)

Closure = Callable[[], Any]


class Training:
    """A model with dropout and BatchNorm in training, on data that random numbers choose."""

    def __init__(self) -> None:
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        self.model = nn.Sequential(
            nn.Linear(6, 16),
            nn.BatchNorm1d(16),
            nn.Tanh(),
            nn.Dropout(0.3),
            nn.Linear(16, 16),
            nn.Tanh(),
            nn.Linear(16, 3),
        )
        self.model[4].bias.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.snapshot: StepSnapshot | None = None
        self.x, self.y = torch.empty(0), torch.empty(0)

    def loss(self) -> Tensor:
        return F.cross_entropy(self.model(self.x), self.y)

    def step(self) -> None:
        scale = 1.0 + 0.1 * random.random() + 0.1 * float(np.random.rand())
        self.x = scale * torch.randn(12, 6)
        self.y = (self.x[:, :3]).argmax(1)
        self.snapshot = StepSnapshot([p for p in self.model.parameters() if p.requires_grad], 0.01)
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def state(self) -> list[Any]:
        """Return everything that a probe must not change."""
        numpy: Any = np.random.get_state()
        kept: list[Any] = [random.getstate(), numpy[1].tolist(), numpy[2:], torch.get_rng_state()]
        for name, value in self.model.state_dict().items():
            kept += [name, value.clone()]
        for name, parameter in self.model.named_parameters():
            kept += [name, parameter.requires_grad, None if parameter.grad is None else parameter.grad.clone()]
            kept += [parameter._version]
            for key, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                kept += [key, value.clone()]
        kept += [module.training for module in self.model.modules()]
        return [*kept, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()]


def _same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one, other) if isinstance(one, Tensor) else one == other
        for one, other in zip(first, second, strict=True)
    )


def exact(training: Training, sandbox: Sandbox, closure: Closure) -> None:
    hessian = ExactHessian(sandbox, closure, _preconditioner(training))
    hessian.product(hessian.product(hessian.gradient))


def difference(training: Training, sandbox: Sandbox, closure: Closure) -> None:
    hessian = DifferenceHessian(sandbox, closure, _preconditioner(training))
    hessian.product(hessian.product(hessian.gradient))


def critical(training: Training, sandbox: Sandbox, closure: Closure) -> None:
    assert training.snapshot is not None
    CriticalSharpness().measure(sandbox, closure, training.snapshot)


def spread(training: Training, sandbox: Sandbox, closure: Closure) -> None:
    reading = SPREAD.setdefault(id(training), CriticalSharpness())
    reading.advance(sandbox, closure, training.snapshot)


def step_probe(training: Training, sandbox: Sandbox, closure: Closure) -> None:
    assert training.snapshot is not None
    training.snapshot.measure(sandbox, closure)


SPREAD: dict[int, CriticalSharpness] = {}
PROBES = [exact, difference, critical, spread, step_probe]
Probe = Callable[[Training, Sandbox, Closure], None]


def _preconditioner(training: Training) -> Preconditioner:
    preconditioner = Preconditioner.read(training.optimizer, "adam")
    assert preconditioner is not None
    return preconditioner


@pytest.mark.parametrize("probe", PROBES)
def test_training_bits_are_the_same(probe: Probe) -> None:
    bare = Training()
    for _ in range(12):
        bare.step()
    expected = bare.state()
    watched = Training()
    for _ in range(12):
        watched.step()
        before = watched.state()
        with Sandbox(watched.model, []) as sandbox:
            probe(watched, sandbox, watched.loss)
        assert _same(watched.state(), before)
    assert _same(watched.state(), expected)


def _other_batch(training: Training) -> Tensor:
    training.x = torch.randn_like(training.x)
    return training.loss()


@torch.no_grad()
def _without_graph(training: Training) -> Tensor:
    return training.loss()


def _wild(training: Training) -> Tensor:
    """Return the loss after everything that a closure should not do."""
    random.random()
    np.random.rand()
    torch.rand(3)
    training.model.eval()
    training.model.train()
    weights = training.model.get_parameter("0.weight")
    weights.requires_grad_(False)
    weights.requires_grad_(True)
    training.model.get_parameter("6.weight").data.mul_(0.5)
    training.model[1].running_mean = torch.ones(16)
    training.optimizer.zero_grad()
    loss = training.loss()
    if loss.requires_grad:
        loss.backward(retain_graph=True)
    return loss


CLOSURES: dict[str, Callable[[Training], Any]] = {
    "raises": lambda training: 1 / 0,
    "raises-late": lambda training: training.loss() + training.missing,  # type: ignore[attr-defined]
    "vector": lambda training: training.model(training.x),
    "nothing": lambda training: None,
    "detached": lambda training: training.loss().detach(),
    "other-batch": _other_batch,
    "backward": lambda training: training.loss().backward(),
    "steps": lambda training: (training.loss().backward(), training.optimizer.step()),
    "wild": _wild,
    "no-grad": _without_graph,
    "bfloat16": lambda training: training.loss().bfloat16(),
    "negative": lambda training: -training.loss(),
    "zero": lambda training: 0.0 * training.loss(),
    "infinite": lambda training: training.loss() / 0.0,
    "nan": lambda training: training.loss() * float("nan"),
}


@pytest.mark.parametrize("name", CLOSURES)
@pytest.mark.parametrize("probe", PROBES)
def test_bad_closures_leave_no_trace_either(probe: Probe, name: str) -> None:
    training = Training()
    for _ in range(3):
        training.step()
    x = training.x
    before = training.state()
    is_valid = name in ("bfloat16", "negative", "zero", "infinite", "nan")
    with nullcontext() if is_valid else suppress(ClosureError), Sandbox(training.model, []) as sandbox:
        probe(training, sandbox, lambda: CLOSURES[name](training))
    assert _same(training.state(), before)
    training.x = x
    training.step()
    with Sandbox(training.model, []) as sandbox:
        probe(training, sandbox, training.loss)


@pytest.mark.parametrize("probe", [exact, difference])
def test_a_step_of_learning_rate_zero_is_measured_without_harm(probe: Probe) -> None:
    training = Training()
    training.optimizer.param_groups[0]["lr"] = 0.0
    training.step()
    with Sandbox(training.model, []) as sandbox:
        probe(training, sandbox, training.loss)


def _scaled(training: Training, factor: float) -> Tensor:
    return factor * training.loss()


def test_negative_curvature_keeps_its_sign() -> None:
    training = Training()
    training.step()
    diagonal = _preconditioner(training).diagonal
    products = []
    for sign in (1.0, -1.0):
        for make in (ExactHessian, DifferenceHessian):
            with Sandbox(training.model, []) as sandbox:
                hessian = make(sandbox, partial(_scaled, training, sign), _preconditioner(training))
                products.append(hessian.product(sign * diagonal * hessian.gradient))
    assert torch.equal(products[0], -products[2])
    assert torch.equal(products[1], -products[3])
    assert float((products[0] - products[1]).norm() / products[0].norm()) < 0.05
