"""A small network in training, its probe, and the dense values that the probe should find."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client_sdk.curvature import Probe
from client_sdk.curvature.hessian import ExactHessian
from client_sdk.optimizers import kind_of
from client_sdk.warner import Warner
from tests.support.dense_hessian import dense_hessian, dense_preconditioner, largest_eigenvalue

torch.set_num_threads(1)  # more threads would spend minutes waiting for each other on tiny networks


Make = Callable[[Iterable[Any]], torch.optim.Optimizer]


OPTIMIZERS: dict[str, Make] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam-b1-0": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.0, 0.999)),
    "adam-b2-0.9": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.9)),
    "adam-eps-0.1": lambda p: torch.optim.Adam(p, lr=0.01, eps=0.1),
    "adam-eps-tiny": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-15),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "heavy-ball": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "ema": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.9),
}


class SignDescent(torch.optim.Optimizer):
    """An optimizer whose stability limit is not known."""

    def __init__(self, parameters: Iterable[Any], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad.sign())


OPTIMIZERS_OF_UNKNOWN_LIMIT: dict[str, Make] = {"sign": lambda p: SignDescent(p, lr=0.01)}


class Problem:
    """A small network, its data, and an optimizer that has taken some steps."""

    def __init__(self, make: Make, *, steps: int = 10, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
        self.x = torch.randn(30, 5, dtype=dtype)
        self.y = torch.sin(2 * self.x.sum(1, keepdim=True))
        self.scale = scale
        self.optimizer = make(self.model.parameters())
        self.warner = Warner()
        self.at = 0
        self.probe = Probe(self.model, self.optimizer, kind_of(self.optimizer), every=1, warner=self.warner)
        for _ in range(steps):
            self.step()

    def loss_of(self, model: nn.Module) -> Tensor:
        return self.scale * F.mse_loss(model(self.x), self.y)

    def closure(self) -> Tensor:
        return self.loss_of(self.model)

    def step(self, *, clip: float | None = None, micro_batches: int = 1) -> float:
        """Take one optimizer step and return the loss before it.

        With ``clip``, the gradient norm is clipped. With several ``micro_batches``, all but the first have other data.
        """
        self.optimizer.zero_grad()
        loss = self.closure()
        loss.backward()
        for _ in range(micro_batches - 1):
            F.mse_loss(self.model(torch.randn_like(self.x)), self.y).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        return float(loss.detach())

    def measure(self, times: int = 1) -> dict[str, float]:
        """Measure at the same point until λ_max was read ``times`` times, and return the last of each value."""
        values: dict[str, float] = {}
        while times:
            self.at += 100
            copied = self.probe.measure(self.at, self.closure, lr=None)
            assert copied is not None, self.warner.last_error
            values |= copied.values()
            times -= "lambda_max" in copied.values()
        return values

    def expected(self) -> tuple[float, float]:
        """Return λ_max and λ_grad, computed from dense matrices."""
        gradient, hessian = dense_hessian(self.model, self.loss_of)
        decay = self.optimizer.param_groups[0]["weight_decay"]
        if decay and not self.optimizer.param_groups[0].get("decoupled_weight_decay"):
            hessian = hessian + decay * np.eye(len(hessian))
            gradient = gradient + decay * np.concatenate([p.detach().numpy().ravel() for p in self.model.parameters()])
        diagonal = dense_preconditioner(self.model, self.optimizer)
        along = float(gradient @ (diagonal * (hessian @ gradient)) / (gradient @ gradient))
        return largest_eigenvalue(diagonal, hessian), along


def counted_products(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list that every exact product from now on is appended to."""
    made: list[Tensor] = []
    product = ExactHessian.product

    def counted(self: ExactHessian, vector: Tensor) -> Tensor:
        made.append(product(self, vector))
        return made[-1]

    monkeypatch.setattr(ExactHessian, "product", counted)
    return made


def measured(problem: Problem, closure: Callable[[], Tensor], steps: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for step in range(steps):
        problem.probe.before_step(0.01)
        problem.step()
        copied = problem.probe.measure(step, closure, lr=0.01)
        found |= {} if copied is None else copied.scalars()
    return found
