"""Readings of λ_max whose products pass through 16 bits are within their error of a float64 Hessian."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client_sdk.budget import Budget
from client_sdk.curvature import Method, Probe
from client_sdk.optimizers import kind_of
from client_sdk.warner import Warner
from tests.support.dense_hessian import dense_hessian, dense_preconditioner, largest_eigenvalue

torch.set_num_threads(1)


class Training:
    """A small classifier or regression, in 16-bit weights or under autocast."""

    def __init__(self, seed: int, dtype: torch.dtype, *, is_autocast: bool, method: Method = "exact") -> None:
        torch.manual_seed(seed)
        self.dtype, self.is_autocast = dtype, is_autocast
        self.model = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4))
        self.inputs = torch.randn(40, 6).to(dtype).float()  # the same numbers in either type
        self.classes = torch.randint(0, 4, (40,)) if seed % 2 else None
        if not is_autocast:
            self.model.to(dtype)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.probe = Probe(
            self.model,
            self.optimizer,
            kind_of(self.optimizer),
            every=1,
            warner=Warner(),
            method=method,
            budget=Budget(math.inf),
        )
        for _ in range(20):
            self.optimizer.zero_grad()
            self.closure().backward()
            self.optimizer.step()

    def loss_of(self, model: nn.Module) -> Tensor:
        outputs = model(self.inputs.to(next(model.parameters()).dtype))
        if self.classes is not None:
            return F.cross_entropy(outputs, self.classes)
        return F.mse_loss(outputs, torch.sin(3 * self.inputs[:, :4]).to(outputs.dtype))

    def closure(self) -> Tensor:
        with torch.autocast("cpu", self.dtype, enabled=self.is_autocast):
            return self.loss_of(self.model)

    def expected(self) -> float:
        """Return λ_max of the same weights and preconditioner in float64."""
        model = copy.deepcopy(self.model).double()
        _, hessian = dense_hessian(model, self.loss_of)
        return largest_eigenvalue(dense_preconditioner(self.model, self.optimizer), hessian)

    def read(self) -> dict[str, float]:
        """Return the scalars of a converged reading."""
        scalars: dict[str, float] = {}
        for at in range(100, 500, 100):
            copied = self.probe.measure(at, self.closure, lr=0.01)
            assert copied is not None
            scalars |= copied.scalars()
        return scalars


@pytest.mark.parametrize(
    ("dtype", "is_autocast"), [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float16, True)], ids=str
)
def test_the_error_bar_covers_the_rounding_of_16_bits(dtype: torch.dtype, is_autocast: bool) -> None:
    floor = torch.finfo(dtype).eps
    for seed in range(6):
        training = Training(seed, dtype, is_autocast=is_autocast)
        scalars = training.read()
        assert scalars["lambda_max_error"] > floor
        assert scalars["lambda_max_error"] < 6 * floor + 0.01, "the bar is not so wide that it says nothing"
        assert scalars["lambda_max"] == pytest.approx(training.expected(), rel=scalars["lambda_max_error"])


def test_the_error_bar_of_differences_has_their_error() -> None:
    training = Training(0, torch.float32, is_autocast=False, method="finite-difference")
    scalars = training.read()
    assert 0.005 <= scalars["lambda_max_error"] < 0.02
    assert scalars["lambda_max"] == pytest.approx(training.expected(), rel=scalars["lambda_max_error"])


def test_the_error_bar_of_float32_has_no_floor() -> None:
    assert Training(0, torch.float32, is_autocast=False).read()["lambda_max_error"] < 1e-3
