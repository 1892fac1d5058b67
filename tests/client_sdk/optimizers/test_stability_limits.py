"""The stability limits of more optimizers: a quadratic converges below them and diverges above them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import prodigyopt
import pytest
import pytorch_optimizer
import schedulefree
import torch
import transformers
from torch import Tensor, nn

from client_sdk.curvature.preconditioner import Preconditioner, UnsupportedError
from client_sdk.optimizers import averaging_gain, kind_of, stability_limit

CURVATURE = 3.0


def descend(weight: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * CURVATURE * weight**2).sum().backward()
        optimizer.step()


def largest(optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Return λ of the quadratic in the norm of the optimizer, and the limit of its learning rate."""
    preconditioner = Preconditioner.read(optimizer, kind_of(optimizer))
    assert preconditioner is not None
    return float(preconditioner.diagonal.max()) * CURVATURE, stability_limit(float(preconditioner.lr))


def tiny() -> nn.Parameter:
    return nn.Parameter(torch.full((1,), 1e-12, dtype=torch.float64))


@pytest.mark.parametrize("ratio", [0.98, 1.02])
def test_adagrad(ratio: float) -> None:
    lr, weight = 0.01, tiny()
    optimizer = torch.optim.Adagrad([weight], lr=lr, eps=0.0)
    root = CURVATURE / (ratio * stability_limit(lr))  # the √v for which λ = ratio · 2/η
    optimizer.state[weight]["sum"].fill_(root**2)
    descend(weight, optimizer, 300)
    found, limit = largest(optimizer)
    assert found / limit == pytest.approx(ratio, rel=1e-6)
    assert (abs(float(weight.detach())) > 1e-10) == (ratio > 1)


@pytest.mark.parametrize("ratio", [0.98, 1.02])
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_schedule_free_sgd(ratio: float, momentum: float) -> None:
    lr = ratio * 2.0 / ((1 - momentum) * CURVATURE)
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = schedulefree.SGDScheduleFree([weight], lr=lr, momentum=momentum)
    optimizer.train()
    descend(weight, optimizer, 3000)
    found, limit = largest(optimizer)
    assert found / limit == pytest.approx(ratio, rel=1e-2), "c is 1/3000 by now"
    z = abs(float(optimizer.state[weight]["z"]))
    assert (z > 1e3) == (ratio > 1)


def test_the_gain_of_averaging_is_that_of_the_recursion() -> None:
    for momentum, c in ((0.9, 0.2), (0.5, 0.01), (0.95, 1.0)):
        # period two: z → −z, x ← (1 − c)·x + c·z → −x, y = (1 − β)·z + β·x
        z_next = -1.0
        x = -c * z_next / (2.0 - c)
        assert -x == pytest.approx((1 - c) * x + c * z_next)
        assert averaging_gain(momentum, c) == pytest.approx((1 - momentum) + momentum * x)


@pytest.mark.parametrize("ratio", [0.98, 1.02])
def test_schedule_free_adamw(ratio: float) -> None:
    lr, momentum, beta2, k = 0.01, 0.9, 1 - 1e-12, 10**9
    weight = tiny()
    optimizer = schedulefree.AdamWScheduleFree([weight], lr=lr, betas=(momentum, beta2), eps=0.0, weight_lr_power=0.0)
    optimizer.train()
    root = (1 - momentum) * CURVATURE / (ratio * stability_limit(lr))
    correction = -math.expm1(k * math.log1p(-1e-12))
    optimizer.state[weight] = {
        "z": weight.detach().clone(),
        "exp_avg_sq": torch.full_like(weight.detach(), root**2 * correction),
    }
    group = optimizer.param_groups[0]
    group["k"], group["weight_sum"], group["lr_max"] = k, 1e9, lr
    descend(weight, optimizer, 300)
    found, limit = largest(optimizer)
    assert found / limit == pytest.approx(ratio, rel=1e-3)
    assert (abs(float(optimizer.state[weight]["z"])) > 1e-10) == (ratio > 1)


@pytest.mark.parametrize("ratio", [0.98, 1.02])
def test_prodigy(ratio: float) -> None:
    d, beta2, weight = 0.01, 1 - 1e-12, tiny()
    optimizer = prodigyopt.Prodigy([weight], lr=1.0, betas=(0.9, beta2), eps=1e-30, d0=d, growth_rate=1.0)
    root = d**2 * (0.1 / 1.9) * CURVATURE / (ratio * stability_limit(1.0))
    descend(weight, optimizer, 1)
    optimizer.state[weight]["exp_avg_sq"].fill_(root**2)
    optimizer.state[weight]["exp_avg"].zero_()
    with torch.no_grad():
        weight.fill_(1e-12)
    descend(weight, optimizer, 80)  # few enough that v does not react
    found, limit = largest(optimizer)
    assert found / limit == pytest.approx(ratio, rel=1e-3)
    assert (abs(float(weight.detach())) > 1e-10) == (ratio > 1)


Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: transformers.Adafactor(p, lr=None),
        lambda p: pytorch_optimizer.Lion(p, lr=1e-4),
        lambda p: pytorch_optimizer.SOAP(p, lr=1e-3),
        torch.optim.Muon,
        torch.optim.Rprop,
    ],
    ids=["adafactor-relative-steps", "lion", "soap", "muon", "rprop"],
)
def test_where_no_limit_is_known_none_is_claimed(make: Make) -> None:
    optimizer = make([nn.Parameter(torch.ones(2, 2))])
    with pytest.raises(UnsupportedError, match="stability limit"):
        Preconditioner.read(optimizer, kind_of(optimizer))


def test_an_8_bit_second_moment_gives_the_same_norm() -> None:
    import bitsandbytes

    optimizers: Any = bitsandbytes.optim
    weight = nn.Parameter(torch.randn(20, 30))
    optimizer = optimizers.AdamW8bit([weight], lr=0.01)
    optimizer.fill_qmap()
    codes, scales = torch.randint(0, 256, weight.shape, dtype=torch.uint8), torch.rand(3)
    optimizer.state[weight] = {
        "step": 5, "state1": codes, "qmap1": optimizer.name2qmap["dynamic"], "absmax1": scales,
        "state2": codes, "qmap2": optimizer.name2qmap["udynamic"], "absmax2": scales,
    }  # fmt: skip
    preconditioner = Preconditioner.read(optimizer, kind_of(optimizer))
    assert preconditioner is not None
    levels: Tensor = optimizer.name2qmap["udynamic"]
    v = levels[codes.flatten().long()] * scales.repeat_interleave(256)[: codes.numel()]
    gain = (0.1 / 1.9) / (1 - 0.9**5)
    wanted = gain / ((v / (1 - 0.999**5)).sqrt() + 1e-8)
    assert torch.allclose(preconditioner.diagonal, wanted, rtol=1e-5)
