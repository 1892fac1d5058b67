"""λ_c is two over the shortest step along the last update that raises the loss, and its trials leave no trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from client_sdk.curvature.critical_sharpness import CriticalReading, CriticalSharpness
from client_sdk.curvature.sandbox import ClosureError, Sandbox
from client_sdk.curvature.step_probe import StepSnapshot

torch.set_num_threads(1)


class Training:
    """A model in training, whose steps can be measured."""

    def __init__(self, model: nn.Module, closure: Callable[[], Any], optimizer: torch.optim.Optimizer) -> None:
        self.model, self.closure, self.optimizer = model, closure, optimizer

    def step(self) -> StepSnapshot:
        """Take one optimizer step and return the weights before it."""
        snapshot = StepSnapshot(list(self.model.parameters()), self.optimizer.param_groups[0]["lr"])
        self.optimizer.zero_grad()
        self.closure().backward()
        self.optimizer.step()
        return snapshot

    def measure(self, critical: CriticalSharpness, step: StepSnapshot, **options: int) -> CriticalReading:
        with Sandbox(self.model, []) as sandbox:
            return critical.measure(sandbox, self.closure, step, **options)

    def advance(self, critical: CriticalSharpness, step: StepSnapshot | None) -> CriticalReading | None:
        with Sandbox(self.model, []) as sandbox:
            return critical.advance(sandbox, self.closure, step)

    def loss_at(self, step: StepSnapshot, multiple: float) -> float:
        """Return the loss at the weights before ``step`` plus a multiple of it."""
        after = [parameter.detach().clone() for parameter in self.model.parameters()]
        for parameter, before, end in zip(self.model.parameters(), step.before, after, strict=True):
            parameter.data.copy_(before + multiple * (end - before))
        with torch.no_grad():
            loss = float(self.closure())
        for parameter, end in zip(self.model.parameters(), after, strict=True):
            parameter.data.copy_(end)
        return loss

    def rise_at(self, step: StepSnapshot, multiple: float) -> float:
        """Return by how much a multiple of ``step`` raises the loss."""
        return self.loss_at(step, multiple) - self.loss_at(step, 0.0)


def quadratic(lr: float, dtype: torch.dtype = torch.float64, *, largest: float = 10.0) -> Training:
    torch.manual_seed(0)
    curvatures = torch.logspace(0, -2, 5, dtype=torch.float64) * largest
    model = nn.ParameterList([nn.Parameter(torch.randn(5, dtype=torch.float64).to(dtype))])

    def closure() -> Tensor:
        loss: Tensor = (0.5 * curvatures * model[0] ** 2).sum()
        return loss

    return Training(model, closure, torch.optim.SGD(model.parameters(), lr=lr))


def tanh_net(dtype: torch.dtype = torch.float64, lr: float = 0.01) -> Training:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)
    x = torch.randn(40, 5, dtype=dtype)
    y = torch.sin(2 * x.sum(1, keepdim=True))
    return Training(model, lambda: F.mse_loss(model(x), y), torch.optim.Adam(model.parameters(), lr=lr))


def classifier(dtype: torch.dtype = torch.float64) -> Training:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)
    x = torch.randn(60, 8, dtype=dtype)
    y = x[:, :4].argmax(1)
    return Training(
        model, lambda: F.cross_entropy(model(x).float(), y), torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.97, 1.05, 2.0])
def test_on_a_quadratic_it_is_the_curvature_along_the_update(dtype: torch.dtype, ratio: float) -> None:
    training = quadratic(ratio * 2 / 10, dtype)
    critical = CriticalSharpness()
    step = training.step()
    gradient = torch.tensor([10.0, 3.1623, 1.0, 0.31623, 0.1]) * step.before[0].double()
    update = (step.before[0] - training.model.get_parameter("0").detach()).double()
    expected = float(update @ (torch.tensor([10.0, 3.1623, 1.0, 0.31623, 0.1]) * update) / (gradient @ update))
    expected *= training.optimizer.param_groups[0]["lr"] ** -1
    reading = training.measure(critical, step)
    assert reading.outcome == "measured"
    assert reading.sharpness == pytest.approx(expected, rel=1e-4 if dtype != torch.bfloat16 else 0.03)
    assert reading.lower <= 2 / expected * 1.03
    assert reading.upper >= 2 / expected * 0.97
    assert reading.error <= 0.05
    assert reading.forwards <= 10


@pytest.mark.parametrize("make", [tanh_net, classifier])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_reading_of_a_training_is_the_first_rise_along_its_step(
    make: Callable[[torch.dtype], Training], dtype: torch.dtype
) -> None:
    training = make(dtype)
    critical = CriticalSharpness()
    forwards = []
    for _ in range(40):
        step = training.step()
        reading = training.measure(critical, step)
        assert reading.outcome == "measured"
        forwards.append(reading.forwards)
        before = training.loss_at(step, 0.0)
        multiples = [reading.lower / reading.lr, reading.upper / reading.lr]
        assert training.loss_at(step, multiples[0]) <= before * (1 + 1e-6)
        assert training.loss_at(step, multiples[1]) > before
        root = brentq(partial(training.rise_at, step), multiples[0], multiples[1], rtol=1e-4)
        assert reading.sharpness == pytest.approx(2 / (root * reading.lr), rel=0.025)
    assert sum(forwards[1:]) / len(forwards[1:]) <= 6, "a warm start needs few evaluations"


def test_it_is_above_the_limit_exactly_if_the_step_raised_the_loss() -> None:
    training = tanh_net(lr=0.05)
    critical = CriticalSharpness()
    seen = set()
    for _ in range(60):
        step = training.step()
        reading = training.measure(critical, step)
        if reading.sharpness is None or abs(reading.sharpness * reading.lr / 2 - 1) < 0.03:
            continue
        rose = training.loss_at(step, 1.0) > training.loss_at(step, 0.0)
        assert (reading.sharpness > 2 / reading.lr) == rose
        seen.add(rose)
    assert seen == {True, False}


def test_a_search_over_several_calls_stays_on_its_step_while_the_training_goes_on() -> None:
    training = tanh_net()
    spread, whole = CriticalSharpness(), CriticalSharpness()
    expected: dict[int, CriticalReading] = {}
    readings: list[tuple[int, CriticalReading]] = []
    at = 0
    for number in range(60):
        begins = spread.needs_step
        step = training.step()
        if begins:
            at = number
            expected[at] = training.measure(whole, step)
        reading = training.advance(spread, step if begins else None)
        assert reading is not None
        assert reading.forwards <= 2
        assert reading.age == number - at
        if reading.is_done:
            readings.append((at, reading))
    assert len(readings) >= 8
    for at, reading in readings:
        assert reading.outcome == expected[at].outcome == "measured"
        assert reading.sharpness == pytest.approx(expected[at].sharpness, rel=0.05)
        assert reading.error <= 0.05


def test_the_bracket_survives_another_batch() -> None:
    training = tanh_net()
    torch.manual_seed(3)
    batches = [(x, torch.sin(2 * x.sum(1, keepdim=True))) for x in torch.randn(50, 60, 5, dtype=torch.float64)]
    at = 0

    def closure() -> Tensor:
        x, y = batches[at]
        return F.mse_loss(training.model(x), y)

    training.closure = closure
    critical = CriticalSharpness()
    ages = []
    for number in range(50):
        at = number
        step = training.step()
        reading = training.advance(critical, step if critical.needs_step else None)
        assert reading is not None
        if reading.is_done:
            assert reading.outcome in ("measured", "no-descent")
            ages.append(reading.age)
    assert len(ages) >= 4


def test_a_first_step_from_weights_of_zero() -> None:
    training = quadratic(0.1)
    weights = training.model.get_parameter("0")
    weights.data.zero_()
    training.closure = lambda: (weights - 1.0).square().sum()
    reading = training.measure(CriticalSharpness(), training.step())
    assert reading.sharpness == pytest.approx(2.0, rel=1e-6)


def test_a_flat_direction_has_no_value() -> None:
    training = quadratic(0.1)
    training.closure = lambda: training.model.get_parameter("0").exp().neg().sum()  # falls for ever
    reading = training.measure(CriticalSharpness(), training.step())
    assert reading.outcome == "flat"
    assert reading.sharpness is None
    assert reading.lower > 1.0
    assert math.isinf(reading.upper)


def test_an_update_uphill_has_no_value() -> None:
    training = tanh_net()
    rising = training.closure
    training.closure = lambda: -rising()
    step = training.step()  # the optimizer climbs, and the closure measures the loss that it climbs
    training.closure = rising
    reading = training.measure(CriticalSharpness(), step)
    assert reading.outcome == "no-descent"
    assert reading.sharpness is None
    assert reading.forwards <= 8


def test_a_step_of_nothing_has_no_value() -> None:
    training = quadratic(0.0)
    assert training.measure(CriticalSharpness(), training.step()).outcome == "no-step"


def test_a_loss_that_does_not_change_within_rounding_has_no_value() -> None:
    training = quadratic(1e-3, torch.float32)
    step = training.step()
    small = training.closure

    def closure() -> Tensor:
        loss: Tensor = 1.0 + 1e-9 * small()
        return loss.float()

    training.closure = closure
    reading = training.measure(CriticalSharpness(), step)
    assert reading.outcome in ("rounded", "flat")
    assert reading.sharpness is None


def test_a_loss_that_is_not_finite_has_no_value() -> None:
    training = quadratic(0.1)
    step = training.step()
    finite = training.closure
    training.closure = lambda: finite() * math.nan
    assert training.measure(CriticalSharpness(), step).outcome == "not-finite"


def test_an_overflow_counts_as_a_rise() -> None:
    training = quadratic(0.1)
    finite = training.closure
    critical = CriticalSharpness()
    step = training.step()
    start = training.loss_at(step, 0.0)

    def closure() -> Tensor:
        loss: Tensor = finite()
        return loss if loss <= start else loss * math.inf

    training.closure = closure
    reading = training.measure(critical, step)
    assert reading.outcome == "measured"
    assert reading.error <= 0.05


def test_movements_that_rounding_swallows_have_no_value() -> None:
    training = quadratic(0.1, torch.bfloat16)
    weights = training.model.get_parameter("0")
    weights.data.fill_(1.0)
    step = StepSnapshot([weights], 0.1)
    weights.data.sub_(torch.tensor([0.0039, 0.0, 0.0, 0.0, 0.0]))  # one unit of rounding, so shorter steps are none

    def closure() -> Tensor:
        return (weights[0].float() - 0.9990).abs()

    training.closure = closure
    reading = training.measure(CriticalSharpness(), step)
    assert reading.outcome == "rounded"
    assert reading.sharpness is None


def test_fused_attention_keeps_its_kernel() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(4, 6, 8)

    def closure() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            output: Tensor = layer(x)
        return (output[..., 0] - x[..., 1]).pow(2).mean()

    training = Training(layer, closure, torch.optim.Adam(layer.parameters(), lr=0.01))
    critical = CriticalSharpness()
    readings = [training.measure(critical, training.step()) for _ in range(5)]
    assert [reading.outcome for reading in readings] == ["measured"] * 5


def test_a_closure_that_takes_gradients_itself() -> None:
    training = tanh_net()
    x = torch.randn(20, 5, dtype=torch.float64)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        points = x.clone().requires_grad_()
        output = training.model(points)
        (slope,) = torch.autograd.grad(output.sum(), points, create_graph=True)
        loss: Tensor = (output**2).mean() + (slope.norm(dim=1) - 1).square().mean()
        return loss

    training.closure = closure
    critical = CriticalSharpness()
    assert training.measure(critical, training.step()).outcome == "measured"
    step, calls = training.step(), 0
    reading = training.measure(critical, step)
    assert reading.outcome == "measured"
    assert calls == reading.forwards, "the need of a graph is remembered"


NUMBERS = iter(range(1, 10_000))

UNUSABLE: dict[str, tuple[Callable[[Training], Any], str]] = {
    "raises": (lambda training: 1 / 0, "ZeroDivisionError"),
    "number": (lambda training: training.closure().item(), "returned float"),
    "vector": (lambda training: training.model(torch.ones(3, 5, dtype=torch.float64)), "shape"),
    "integer": (lambda training: torch.ones((), dtype=torch.int64), "type"),
    "backward": (lambda training: training.closure().backward(), "returned NoneType"),
    "other-batch": (lambda training: training.closure() + torch.rand(next(NUMBERS)).sum(), "same batch"),
    "steps": (lambda training: training.optimizer.step(), "step of the optimizer"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_closures_are_named_and_change_nothing(name: str) -> None:
    training = tanh_net()
    unusable, message = UNUSABLE[name]
    step = training.step()
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    state = {key: value.clone() for key, value in training.optimizer.state[next(training.model.parameters())].items()}
    critical = CriticalSharpness()
    with pytest.raises(ClosureError, match=message), Sandbox(training.model, []) as sandbox:
        critical.measure(sandbox, lambda: unusable(training), step)
    assert all(torch.equal(p, old) for p, old in zip(training.model.parameters(), before, strict=True))
    after = training.optimizer.state[next(training.model.parameters())]
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert training.measure(critical, training.step()).outcome == "measured", "and the next reading is as usual"


def test_the_loss_needs_no_graph() -> None:
    training = tanh_net()
    step = training.step()
    with Sandbox(training.model, []) as sandbox:
        reading = CriticalSharpness().measure(sandbox, lambda: training.closure().detach(), step)
    assert reading.outcome == "measured"


def test_the_weights_are_restored_without_a_new_version() -> None:
    training = tanh_net(torch.float32)
    step = training.step()
    before = [(p.detach().clone(), p._version) for p in training.model.parameters()]
    with Sandbox(training.model, []) as sandbox:
        assert CriticalSharpness().measure(sandbox, training.closure, step).outcome == "measured"
        assert all(torch.equal(p, old) for p, (old, _) in zip(training.model.parameters(), before, strict=True))
    for parameter, (old, version) in zip(training.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter._version == version
