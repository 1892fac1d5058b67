"""The preconditioner that the SDK reads is the one that optimizers have, as their weights show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from client_sdk.curvature.preconditioner import Preconditioner
from client_sdk.optimizers import kind_of, stability_limit, stability_ratio
from tests.support.frozen_optimizers import OPTIMIZERS, Frozen, descend, frozen, random_hessian, response

torch.set_num_threads(1)


def read(subject: Frozen) -> Preconditioner:
    found = Preconditioner.read(subject.optimizer, kind_of(subject.optimizer))
    assert found is not None
    return found


def hessian_at(preconditioner: Preconditioner, ratio: float) -> Tensor:
    """Return a random Hessian, [n, n], whose stability ratio is ``ratio``; the other eigenvalues of Ĥ are smaller."""
    largest = ratio * stability_limit(float(preconditioner.lr))
    return random_hessian(preconditioner.diagonal, largest, penalty=preconditioner.penalty)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adam-coupled-decay"])
def test_the_diagonal_is_the_response_to_a_gradient_of_period_two(name: str) -> None:
    subject = frozen(OPTIMIZERS[name])
    preconditioner = read(subject)
    measured = response(subject, float(preconditioner.lr))
    assert torch.allclose(preconditioner.diagonal, measured, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("ratio", [0.99, 1.01])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_quadratic_converges_below_the_limit_and_diverges_above_it(name: str, ratio: float) -> None:
    subject = frozen(OPTIMIZERS[name])
    hessian = hessian_at(read(subject), ratio)
    factor = descend(subject, hessian, steps=600)
    assert factor < 0.1 if ratio < 1 else factor > 100


@pytest.mark.parametrize("ratio", [0.99, 1.01])
def test_decoupled_weight_decay_lowers_the_limit(ratio: float) -> None:
    lr, decay = 0.01, 40.0  # so strong that it takes a fifth of the limit
    subject = frozen(lambda p: torch.optim.AdamW(p, lr=lr, betas=(0.9, 1 - 1e-9), weight_decay=decay))
    hessian = hessian_at(read(subject), ratio * stability_limit(lr, decay) / stability_limit(lr))
    factor = descend(subject, hessian, steps=600)
    assert factor < 0.1 if ratio < 1 else factor > 100


@pytest.mark.parametrize("ratio", [0.99, 1.01])
@pytest.mark.parametrize("rates", [(0.02, 0.001), (0.001, 0.02)])
def test_groups_of_different_rates_have_one_ratio_with_the_limit_one(ratio: float, rates: tuple[float, float]) -> None:
    def make(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        groups = [
            {"params": [weight], "lr": lr, "betas": (beta1, 1 - 1e-9)}
            for weight, lr, beta1 in zip(weights, rates, (0.9, 0.5), strict=True)
        ]
        return torch.optim.Adam(groups)

    subject = frozen(make)
    preconditioner = read(subject)
    assert float(preconditioner.lr) == 0.02
    hessian = hessian_at(preconditioner, ratio)
    root = preconditioner.diagonal.sqrt()
    lambda_max = float(torch.linalg.eigvalsh(root.unsqueeze(1) * hessian * root)[-1])
    assert stability_ratio(lambda_max, float(preconditioner.lr)) == pytest.approx(ratio, rel=1e-6)
    factor = descend(subject, hessian, steps=600)
    assert factor < 0.1 if ratio < 1 else factor > 100


def test_a_rate_of_zero_is_stable() -> None:
    assert stability_ratio(1e9, 0.0) == 0.0
    assert stability_ratio(50.0, 0.02) == 0.5
    assert stability_ratio(75.0, 0.02, decoupled_weight_decay=25.0) == 1.0


@pytest.mark.parametrize("ratio", [0.95, 1.05])
def test_eight_bit_states_have_the_same_limit(ratio: float) -> None:
    import bitsandbytes

    weight = nn.Parameter(torch.zeros(64, 80))  # fewer numbers would get states of 32 bits
    adam = bitsandbytes.optim.Adam8bit
    optimizer: torch.optim.Optimizer = adam([weight], lr=0.01, betas=(0.9, 1 - 1e-7), eps=1e-8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        weight.grad = torch.rand(weight.shape, generator=generator) + 0.5
        optimizer.step()
    state = optimizer.state[weight]
    assert state["state2"].dtype == torch.uint8
    state["step"] = 10**9
    state["absmax2"].fill_(4.0)
    state["absmax1"].zero_()  # no momentum
    preconditioner = Preconditioner.read(optimizer, kind_of(optimizer))
    assert preconditioner is not None
    limit = stability_limit(float(preconditioner.lr))
    curvature = (ratio * limit / preconditioner.diagonal).view_as(weight)  # every coordinate is equally near the limit
    start = 1e-6 * torch.randn(weight.shape, generator=generator)
    weight.data.copy_(start)
    for _ in range(200):
        weight.grad = curvature * weight.detach()
        optimizer.step()
        factor = float(weight.detach().norm() / start.norm())
        if factor > 1e3:
            break
    assert factor < 0.5 if ratio < 1 else factor > 100
