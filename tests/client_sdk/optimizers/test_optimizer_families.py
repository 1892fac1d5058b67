"""Every family of optimizers: statistics against float64 formulas and against what the weights really did."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import bitsandbytes
import prodigyopt
import pytest
import pytorch_optimizer
import schedulefree
import torch
import transformers.optimization
from torch import Tensor, nn

from client_sdk.layers import map_layers
from client_sdk.optimizers import describe, kind_of, what_is_missing
from client_sdk.optimizers.wrappers import Watched
from client_sdk.stats import Meter
from tests.support.fused_adam import ApexFusedAdam, DeepSpeedFusedAdam, TransformerEngineFusedAdam

torch.set_num_threads(1)

BITSANDBYTES: Any = bitsandbytes.optim  # publishes no types

Make = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
SecondMoment = Callable[[torch.optim.Optimizer, dict[str, Any], Tensor], tuple[Tensor, float]]
"""v̂ of a parameter in float64 with the threshold below which √v̂ is under ε."""


def adagrad(optimizer: torch.optim.Optimizer, state: dict[str, Any], like: Tensor) -> tuple[Tensor, float]:
    return state["sum"] / float(state["step"]), optimizer.param_groups[0]["eps"] / math.sqrt(float(state["step"]))


def adadelta(optimizer: torch.optim.Optimizer, state: dict[str, Any], like: Tensor) -> tuple[Tensor, float]:
    return state["square_avg"], math.sqrt(optimizer.param_groups[0]["eps"])


def rmsprop(optimizer: torch.optim.Optimizer, state: dict[str, Any], like: Tensor) -> tuple[Tensor, float]:
    return state["square_avg"], optimizer.param_groups[0]["eps"]


def adafactor(optimizer: torch.optim.Optimizer, state: dict[str, Any], like: Tensor) -> tuple[Tensor, float]:
    if "variance" in state:
        return state["variance"], torch.finfo(torch.float32).eps
    rows, columns = state["row_var"].double(), state["col_var"].double()
    return rows @ columns / rows.mean(dim=-2, keepdim=True), torch.finfo(torch.float32).eps


def transformers_adafactor(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], like: Tensor
) -> tuple[Tensor, float]:
    if "exp_avg_sq" in state:
        return state["exp_avg_sq"], 1e-15
    rows, columns = state["exp_avg_sq_row"].double(), state["exp_avg_sq_col"].double()
    return rows[:, None] * columns[None, :] / rows.mean(), 1e-15


def schedule_free(optimizer: torch.optim.Optimizer, state: dict[str, Any], like: Tensor) -> tuple[Tensor, float]:
    group = optimizer.param_groups[0]
    return state["exp_avg_sq"] / (1 - group["betas"][1] ** group["k"]), group["eps"]


def prodigy(optimizer: torch.optim.Optimizer, state: dict[str, Any], like: Tensor) -> tuple[Tensor, float]:
    group = optimizer.param_groups[0]
    return state["exp_avg_sq"] / group["d"] ** 2, group["eps"]


def fused(optimizer: torch.optim.Optimizer, state: dict[str, Any], like: Tensor) -> tuple[Tensor, float]:
    group = optimizer.param_groups[0]
    return state["exp_avg_sq"] / (1 - group["betas"][1] ** group["step"]), group["eps"]


def fused_by_tensor(optimizer: torch.optim.Optimizer, state: dict[str, Any], like: Tensor) -> tuple[Tensor, float]:
    group = optimizer.param_groups[0]
    return state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"]), group["eps"]


def eight_bit(optimizer: torch.optim.Optimizer, state: dict[str, Any], like: Tensor) -> tuple[Tensor, float]:
    group = optimizer.param_groups[0]
    v = state["state2"]
    if v.dtype == torch.uint8:
        scale = state["absmax2"].repeat_interleave(256)[: v.numel()]
        v = (state["qmap2"][v.flatten().long()] * scale).view(like.shape)
    return v / (1 - group["betas"][1] ** state["step"]), group["eps"]


CASES: dict[str, tuple[Make, SecondMoment | None]] = {
    "adagrad": (lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1, weight_decay=0.1), adagrad),
    "adagrad-foreach": (
        lambda p: torch.optim.Adagrad(p, lr=0.05, foreach=True, initial_accumulator_value=0.1), adagrad
    ),
    "adadelta": (lambda p: torch.optim.Adadelta(p, lr=1.0), adadelta),
    "rmsprop-centered": (lambda p: torch.optim.RMSprop(p, lr=0.001, centered=True), rmsprop),
    "adafactor": (lambda p: torch.optim.Adafactor(p, lr=0.01), adafactor),
    "adafactor-transformers": (transformers.optimization.Adafactor, transformers_adafactor),
    "schedule-free-adamw": (
        lambda p: schedulefree.AdamWScheduleFree(p, lr=0.01, warmup_steps=3, weight_decay=0.1), schedule_free
    ),
    "schedule-free-adamw-single": (
        lambda p: schedulefree.AdamWScheduleFree(p, lr=0.01, foreach=False), schedule_free
    ),
    "schedule-free-radam": (lambda p: schedulefree.RAdamScheduleFree(p, lr=0.01, betas=(0.9, 0.9)), schedule_free),
    "schedule-free-sgd": (lambda p: schedulefree.SGDScheduleFree(p, lr=0.1, weight_decay=0.1), None),
    "prodigy": (prodigyopt.Prodigy, prodigy),
    "apex": (lambda p: ApexFusedAdam(p, lr=0.01, weight_decay=0.1), fused),
    "apex-l2": (lambda p: ApexFusedAdam(p, lr=0.01, weight_decay=0.1, adam_w_mode=False), fused),
    "transformer-engine": (lambda p: TransformerEngineFusedAdam(p, lr=0.01), fused),
    "deepspeed": (lambda p: DeepSpeedFusedAdam(p, lr=0.01, weight_decay=0.1), fused_by_tensor),
    "bitsandbytes-32bit": (lambda p: BITSANDBYTES.AdamW(p, lr=0.01), eight_bit),
    "bitsandbytes-paged": (lambda p: BITSANDBYTES.PagedAdamW32bit(p, lr=0.01), eight_bit),
    "lion": (lambda p: pytorch_optimizer.Lion(p, lr=0.001, weight_decay=0.1), None),
    "soap": (lambda p: pytorch_optimizer.SOAP(p, lr=0.001), None),
    "shampoo": (lambda p: pytorch_optimizer.Shampoo(p, lr=0.001), None),
    "rprop": (lambda p: torch.optim.Rprop(p, lr=0.001), None),
    "lookahead": (lambda p: pytorch_optimizer.Lookahead(torch.optim.AdamW(p, lr=0.001)), None),
}  # fmt: skip
OVERWRITING = {
    "schedule-free-adamw": 0, "schedule-free-adamw-single": 0, "schedule-free-sgd": 0, "schedule-free-radam": 4,
    "shampoo": 0,
}  # fmt: skip
"""Cases whose step writes into the gradients, with the first step that does; it is absent, and no other one is."""


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3))


def backward(model: nn.Module, step: int) -> None:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
    model.zero_grad()
    (model(x) - 1).square().mean().backward()


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
@pytest.mark.parametrize("name", CASES)
def test_statistics_are_those_of_the_step_that_was_made(name: str) -> None:
    make, second_moment = CASES[name]
    model = net()
    optimizer = make(list(model.parameters()))
    if name.startswith("schedule-free"):
        optimizer.train()  # type: ignore[attr-defined]
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
    for step in range(9):
        backward(model, step)
        weights = [p.detach().double().clone() for p in model.parameters()]
        gradients = [p.grad.double().clone() for p in model.parameters() if p.grad is not None]
        meter.before_step(optimizer)
        optimizer.step()
        copied = meter.measure(optimizer, histograms=False)
        assert copied is not None
        measurement = copied.measurement()
        assert measurement.block is not None
        is_first = step == OVERWRITING.get(name)
        assert ("grad_norm" in measurement.scalars) != is_first
        for row, parameter, before, grad in zip(measurement.block, model.parameters(), weights, gradients, strict=True):
            found = dict(zip(meter.statistics, row.tolist(), strict=True))
            moved = parameter.detach().double() - before
            assert found["weight_norm"] == pytest.approx(float(parameter.detach().norm()), rel=1e-5)
            assert found["update_norm"] == pytest.approx(float(moved.norm()), rel=1e-4)
            if is_first:
                assert math.isnan(found["grad_norm"])
                continue
            assert found["grad_norm"] == pytest.approx(float(grad.norm()), rel=1e-5)
            assert found["nonfinite"] == 0
            if second_moment is None:
                continue
            v_hat, threshold = second_moment(optimizer, copy.copy(optimizer.state[parameter]), parameter)
            v_hat = v_hat.double()
            group = optimizer.param_groups[0]
            is_coupled = name in ("adagrad", "apex-l2")
            e = grad + group["weight_decay"] * before if is_coupled else grad
            assert found["v_rms"] == pytest.approx(float(v_hat.mean().sqrt()), rel=1e-4)
            assert found["decoupling"] == pytest.approx(float(e.square().sum() / v_hat.sum()), rel=1e-3)
            ratio = e.square() / v_hat.clamp(min=threshold**2)
            assert found["rms_ratio"] == pytest.approx(float(ratio.mean().sqrt()), rel=1e-3)
            assert found["eps_fraction"] == pytest.approx(float((v_hat.sqrt() < threshold).double().mean()), abs=1e-6)
    assert not meter.is_refuted


@pytest.mark.parametrize("name", ["adagrad", "adadelta", "bitsandbytes-32bit", "apex", "lion", "soap"])
def test_u_is_the_movement_before_the_learning_rate(name: str) -> None:
    model = net()
    optimizer = CASES[name][0](list(model.parameters()))
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
    group = optimizer.param_groups[0]
    for step in range(4):
        backward(model, step)
        weights = [p.detach().double().clone() for p in model.parameters()]
        meter.before_step(optimizer)
        optimizer.step()
        copied = meter.measure(optimizer, histograms=False)
    assert copied is not None
    block = copied.measurement().block
    assert block is not None
    rate = group["lr"]
    decay = 0.0 if name in ("adagrad", "adadelta") else group["weight_decay"]
    for row, parameter, before in zip(block, model.parameters(), weights, strict=True):
        u = -(parameter.detach().double() - before + rate * decay * before) / rate
        assert row[meter.statistics.index("u_rms")] == pytest.approx(float(u.square().mean().sqrt()), rel=1e-3)


def test_8_bit_moments_are_decoded() -> None:
    torch.manual_seed(0)
    model = nn.Linear(80, 70, bias=False)
    optimizer = BITSANDBYTES.AdamW8bit(model.parameters(), lr=0.01)
    parameter = model.weight
    state = optimizer.state[parameter]  # as after a step on a GPU; the CPU has no 8-bit kernel
    codes = torch.randint(0, 256, parameter.shape, dtype=torch.uint8)
    optimizer.fill_qmap()
    blocks = -(-parameter.numel() // 256)
    state |= {
        "step": 4, "state1": codes, "qmap1": optimizer.name2qmap["dynamic"], "absmax1": torch.rand(blocks),
        "state2": codes.flip(0), "qmap2": optimizer.name2qmap["udynamic"], "absmax2": torch.rand(blocks),
    }  # fmt: skip
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
    parameter.grad = torch.randn_like(parameter)
    for _ in range(2):
        before = parameter.detach().clone()
        meter.before_step(optimizer)
        with torch.no_grad():
            parameter -= 0.01 * torch.randn_like(parameter)
        copied = meter.measure(optimizer, histograms=False)
    assert copied is not None
    block = copied.measurement().block
    assert block is not None
    found = dict(zip(meter.statistics, block[0].tolist(), strict=True))
    v_hat, _ = eight_bit(optimizer, state, parameter)
    assert found["v_rms"] == pytest.approx(float(v_hat.double().mean().sqrt()), rel=1e-5)
    assert found["update_norm"] == pytest.approx(float((parameter.detach() - before).norm()), rel=1e-5)
    scale = state["absmax1"].repeat_interleave(256)[: codes.numel()]
    m = (state["qmap1"][codes.flatten().long()] * scale).double()
    g = parameter.grad.flatten().double()
    past = m - 0.1 * g
    cosine = float(g @ past / (g.norm() * past.norm()))
    assert found["grad_momentum_cosine"] == pytest.approx(cosine, abs=1e-5)


def test_convolutions_have_a_factored_second_moment_too() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(4, 6, 3)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 4, 8, 8)).square().mean().backward()
        meter.before_step(optimizer)
        optimizer.step()
        copied = meter.measure(optimizer, histograms=False)
    assert copied is not None
    block = copied.measurement().block
    assert block is not None
    v_hat, _ = adafactor(optimizer, optimizer.state[model.weight], model.weight)
    assert block[0, meter.statistics.index("v_rms")] == pytest.approx(float(v_hat.mean().sqrt()), rel=1e-4)


def test_muon_has_the_cosine_of_its_momentum_but_no_second_moment() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 4, bias=False))
    optimizer = torch.optim.Muon(model.parameters(), lr=0.02, weight_decay=0.1)
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
    for step in range(4):
        backward(model, step)
        weights = [p.detach().clone() for p in model.parameters()]
        momenta = [optimizer.state[p].get("momentum_buffer", torch.zeros(1)).clone() for p in model.parameters()]
        meter.before_step(optimizer)
        optimizer.step()
        copied = meter.measure(optimizer, histograms=False)
    assert copied is not None
    block = copied.measurement().block
    assert block is not None
    assert "v_rms" not in meter.statistics
    for row, parameter, before, momentum in zip(block, model.parameters(), weights, momenta, strict=True):
        found = dict(zip(meter.statistics, row.tolist(), strict=True))
        assert parameter.grad is not None
        cosine = float(nn.functional.cosine_similarity(parameter.grad.flatten(), momentum.flatten(), dim=0))
        assert found["update_norm"] == pytest.approx(float((parameter.detach() - before).norm()), rel=1e-4)
        assert found["grad_momentum_cosine"] == pytest.approx(cosine, abs=1e-3)


def test_what_has_no_second_moment_is_said() -> None:
    model = net()
    said = {
        name: what_is_missing(kind_of(optimizer), Watched(optimizer=optimizer))
        for name in ("lion", "rprop", "adagrad", "adafactor")
        for optimizer in [CASES[name][0](list(model.parameters()))]
    }
    assert said["adagrad"] is said["adafactor"] is None
    assert "no second moment" in str(said["lion"])
    assert "not known" in str(said["rprop"])


@pytest.mark.parametrize("name", CASES)
def test_every_optimizer_can_be_described(name: str) -> None:
    description = describe(CASES[name][0](list(net().parameters())))
    assert description.lr >= 0
    if name == "adafactor-transformers":  # its default is lr=None
        assert description.lr == 0.0


def test_a_class_of_the_same_name_with_other_settings_is_not_mistaken() -> None:
    class Lion(torch.optim.SGD):
        pass

    assert kind_of(Lion(net().parameters(), lr=0.1)) in ("sgd", "other")
