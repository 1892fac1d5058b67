"""The period-two component is that of the obvious formulas, and its growth that of the optimizer's dynamics."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client_sdk.layers import map_layers
from client_sdk.optimizers import GradientResponse, kind_of
from client_sdk.stats import Meter, gradient_sample
from client_sdk.stats.period_two import PeriodTwo
from client_sdk.stats.period_two_reading import (
    DECAY,
    REACH,
    SETTLING,
    SOURCE_CURVATURE,
    SOURCE_PERIOD_TWO,
    WINDOW,
    period_two_scalars,
)
from client_sdk.watch import rhythm, watch
from tests.support.logged import MakeRun, kept, last_layout

torch.set_num_threads(1)

Make = Callable[[Iterable[Any]], torch.optim.Optimizer]
Denominator = Callable[[dict[str, Any]], Tensor]


def adam_denominator(state: dict[str, Any], beta2: float = 0.999, key: str = "exp_avg_sq") -> Tensor:
    second: Tensor = state[key].double()
    corrected: Tensor = second / (1 - beta2 ** float(state["step"]))
    return corrected.sqrt() + 1e-8


OPTIMIZERS: dict[str, tuple[Make, Denominator | None]] = {
    "adam": (lambda p: torch.optim.Adam(p, lr=0.01), adam_denominator),
    "adamw-fused": (lambda p: torch.optim.AdamW(p, lr=0.01, fused=True), adam_denominator),
    "adam-tensor-lr": (lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False), adam_denominator),
    "adam-l2": (lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1.0), adam_denominator),
    "amsgrad": (
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, betas=(0.9, 0.9)),
        lambda state: adam_denominator(state, 0.9, "max_exp_avg_sq"),
    ),
    "adamax": (lambda p: torch.optim.Adamax(p, lr=0.01), lambda state: state["exp_inf"].double()),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=0.01), lambda state: state["square_avg"].double().sqrt() + 1e-8),
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.01), None),
    "sgd-nesterov": (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, foreach=False), None),
    "sgd-nesterov-foreach": (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, foreach=True), None),
}


def net(dtype: torch.dtype = torch.float64, *, width: int = 20) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)).to(dtype)


def backward(model: nn.Module, step: int) -> None:
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)
    model.zero_grad()
    (model(inputs) - 1.0).square().mean().backward()


def grads_of(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


class Oracle:
    """The definition in float64 over all coordinates: a sum over the steps so far, without a recursion."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = []

    def take(self, optimizer: torch.optim.Optimizer, grads: list[Tensor], denominator: Denominator | None) -> None:
        found = []
        for parameter, grad in zip(optimizer.param_groups[0]["params"], grads, strict=True):
            y = grad.double()
            if denominator is not None:
                y = y / denominator(dict(optimizer.state[parameter])).sqrt()
            found.append(y.flatten())
        self.steps.append(found)

    def norms(self, at: int, count: int | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return ‖e‖² and the level of every tensor after step ``at``, from the last ``count`` steps."""
        past = self.steps[: at + 1][::-1][:count]
        weights = [(1 - DECAY) * DECAY**age for age in range(len(past))]
        total = sum(weights)
        squares, levels = [], []
        for tensor in range(len(past[0])):
            e = sum((-1) ** age * w * one[tensor] for age, (w, one) in enumerate(zip(weights, past, strict=True)))
            assert isinstance(e, Tensor)
            squares.append(float((e / total).square().sum()))
            levels.append(
                sum(w * float(one[tensor].square().sum()) for w, one in zip(weights, past, strict=True)) / total
            )
        return np.array(squares), np.array(levels)


def shares(period_two: PeriodTwo, count: int) -> NDArray[np.float64]:
    found = period_two.layers()
    assert found is not None
    squares = found.squares(np.arange(count))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sqrt(squares[:, 0] / squares[:, 1]))


def scalars(period_two: PeriodTwo) -> dict[str, float]:
    found = period_two.copy(is_trusted=True)
    assert found is not None
    assert found.ready()
    return found.scalars()


def prepared(optimizer: torch.optim.Optimizer, model: nn.Module) -> PeriodTwo:
    return PeriodTwo(kind_of(optimizer), map_layers(model, optimizer))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shares_and_growth_are_those_of_the_definition(name: str) -> None:
    make, denominator = OPTIMIZERS[name]
    model = net()
    optimizer = make(model.parameters())
    period_two, oracle = prepared(optimizer, model), Oracle()
    for step in range(REACH + 6):
        backward(model, step)
        given = grads_of(model)
        period_two.before_step(optimizer)
        optimizer.step()
        period_two.follow(optimizer, step + 1)
        oracle.take(optimizer, given, denominator)
        found = scalars(period_two)
        if step + 1 < SETTLING:
            assert found == {}
            assert np.isnan(shares(period_two, 4)).all()
            continue
        squares, levels = oracle.norms(step)
        assert shares(period_two, 4) == pytest.approx(np.sqrt(squares / levels), rel=1e-6)
        # The level of the whole model is that of the last steps alone, whose weights are all but 1 % of the sum.
        level = oracle.norms(step, REACH)[1].sum()
        assert found["period_two"] == pytest.approx(math.sqrt(squares.sum() / level), rel=1e-6)
        assert ("period_two_growth" in found) == (step + 1 >= REACH)
    logarithms = [0.5 * math.log(oracle.norms(at)[0].sum()) for at in range(len(oracle.steps))][-WINDOW:]
    assert found["period_two_growth"] == pytest.approx(np.polyfit(np.arange(WINDOW), logarithms, 1)[0], abs=1e-7)


def test_float32_agrees_with_float64() -> None:
    model = net(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    period_two, oracle = prepared(optimizer, model), Oracle()
    for step in range(30):
        backward(model, step)
        optimizer.step()
        period_two.follow(optimizer, step + 1)
        oracle.take(optimizer, grads_of(model), adam_denominator)
    squares, levels = oracle.norms(29)
    assert shares(period_two, 4) == pytest.approx(np.sqrt(squares / levels), rel=1e-3)


def test_a_sample_stands_for_the_whole_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_sample, "SAMPLES", 2_000)
    model = net(width=800)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    period_two, oracle = prepared(optimizer, model), Oracle()
    for step in range(12):
        backward(model, step)
        optimizer.step()
        period_two.follow(optimizer, step + 1)
        oracle.take(optimizer, grads_of(model), adam_denominator)
    squares, levels = oracle.norms(11)
    assert shares(period_two, 4) == pytest.approx(np.sqrt(squares / levels), rel=0.1)
    found = period_two.layers()
    assert found is not None
    assert found.squares(np.arange(4))[:, 1] == pytest.approx(levels, rel=0.15)


@pytest.mark.parametrize(
    ("make", "limit", "response"),
    [
        (lambda p, lr: torch.optim.SGD(p, lr=lr), 2.0, (1.0, 0.0, 1.0, 0.0)),
        (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.5), 3.0, (0.0, 1.0, 1.0, 0.5)),
        (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, dampening=0.9), 38.0, (0.0, 1.0, 0.1, 0.9)),
        (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True), 2 * 1.9 / 2.8, (1.0, 0.9, 1.0, 0.9)),
    ],
    ids=["sgd", "heavy-ball", "ema", "nesterov"],
)
@pytest.mark.parametrize("excess", [1.03, 1.1, 1.3])
def test_the_growth_over_the_limit_gives_the_stability_ratio(
    make: Callable[[Iterable[Any], float], torch.optim.Optimizer],
    limit: float,
    response: tuple[float, float, float, float],
    excess: float,
) -> None:
    weight = nn.Parameter(torch.tensor([1e-9, -2e-9], dtype=torch.float64))
    calm = nn.Parameter(torch.ones(3, dtype=torch.float64))
    model = nn.ParameterList([weight, calm])
    optimizer = make(model.parameters(), limit * excess / 10.0)
    period_two = prepared(optimizer, model)
    for step in range(150):
        optimizer.zero_grad()
        (5.0 * weight.square().sum() + 1e-9 * calm.square().sum()).backward()
        optimizer.step()
        period_two.follow(optimizer, step + 1)
        found = scalars(period_two)
        if step > 40 and "stability_ratio" in found:
            break
    assert found["stability_ratio"] == pytest.approx(excess, rel=0.02)
    assert found["stability_ratio_source"] == SOURCE_PERIOD_TWO
    direct, momentum, intake, decay = response
    known = GradientResponse(direct=direct, momentum=momentum, intake=intake, decay=decay)
    assert found["stability_ratio"] == pytest.approx(known.stability_ratio(found["period_two_growth"]), rel=5e-3)
    untrusted = period_two.copy(is_trusted=False)
    assert untrusted is not None
    assert "stability_ratio" not in untrusted.scalars()


@pytest.mark.parametrize("excess", [1.02, 1.1])
def test_adam_with_a_frozen_second_moment_over_the_limit(excess: float) -> None:
    weight = nn.Parameter(torch.tensor([1e-9], dtype=torch.float64))
    model = nn.ParameterList([weight])
    optimizer = torch.optim.Adam(model.parameters(), lr=excess * 38.0 * 0.5 / 10.0, betas=(0.9, 1 - 1e-15), eps=0.0)
    optimizer.state[weight] = {
        "step": torch.tensor(1e18),
        "exp_avg": torch.zeros(1, dtype=torch.float64),
        "exp_avg_sq": torch.tensor([0.25], dtype=torch.float64),
    }
    period_two = prepared(optimizer, model)
    for step in range(40):
        optimizer.zero_grad()
        (5.0 * weight.square().sum()).backward()
        optimizer.step()
        period_two.follow(optimizer, step + 1)
    found = scalars(period_two)
    rho = math.exp(found["period_two_growth"])
    assert found["stability_ratio"] == pytest.approx((rho + 1 + 0.9 + 0.9 / rho) / (2 * 1.9))
    assert found["stability_ratio"] == pytest.approx(excess, rel=0.01)


def follow_gradients(gradients: Sequence[Tensor], steps: Sequence[int] | None = None) -> list[dict[str, float]]:
    """Follow given gradients at the given steps and return the scalars of each."""
    weight = nn.Parameter(torch.zeros_like(gradients[0]))
    model = nn.ParameterList([weight])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    period_two = prepared(optimizer, model)
    found = []
    for at, step in enumerate(steps or range(1, len(gradients) + 1)):
        weight.grad = gradients[at].clone()
        period_two.follow(optimizer, step)
        found.append(scalars(period_two))
    return found


def test_a_steady_gradient_and_noise_read_small() -> None:
    torch.manual_seed(1)
    steady = follow_gradients([torch.full((50,), 2.0)] * 60)[-1]
    assert steady["period_two"] == pytest.approx((1 - DECAY) / (1 + DECAY), rel=1e-3)
    assert abs(steady["period_two_growth"]) < 1e-3
    noise = follow_gradients([torch.randn(4_000) for _ in range(60)])[-1]
    assert noise["period_two"] == pytest.approx(1 / 3, rel=0.05)
    assert abs(noise["period_two_growth"]) < 0.02
    alternating = follow_gradients([torch.full((50,), (-1.0) ** at) for at in range(60)])[-1]
    assert alternating["period_two"] == pytest.approx(1.0, abs=1e-3)
    assert not {"stability_ratio", "stability_ratio_source"} & {*steady, *noise, *alternating}


@pytest.mark.parametrize("interval", [2, 3, 8, 16])
def test_thinned_steps_give_no_reading(interval: int) -> None:
    gradients = [torch.full((50,), (-1.05) ** step) for step in range(0, 100 * interval, interval)]
    assert not any(follow_gradients(gradients, range(1, 100 * interval, interval)))


@pytest.mark.parametrize("shift", [1, 2, 5])
def test_a_gap_begins_anew_and_is_no_growth(shift: int) -> None:
    steps = [*range(1, 41), *range(41 + shift, 90)]
    found = follow_gradients([torch.full((50,), (-1.0) ** step) for step in steps], steps)
    assert "period_two_growth" in found[39]
    assert all("period_two_growth" not in one for one in found[40 : 40 + REACH - 1])
    assert all(not one for one in found[40 : 40 + SETTLING - 1])
    assert all(one.get("period_two_growth", 0.0) < 1e-3 for one in found)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_hides_the_readings_for_a_while(bad: float) -> None:
    gradients = [torch.full((50,), 1.0) for _ in range(80)]
    gradients[30] = gradients[30].clone()
    gradients[30][7] = bad
    found = follow_gradients(gradients)
    assert "period_two_growth" in found[29]
    assert not any(found[30 : 30 + REACH - 1])
    assert abs(found[-1]["period_two_growth"]) < 1e-3
    assert all(abs(one.get("period_two_growth", 0.0)) < 0.02 for one in found)


def test_no_gradient_at_all_gives_no_reading() -> None:
    assert not any(follow_gradients([torch.zeros(5)] * 40))


def test_kinds_of_tensors_that_are_not_plain() -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    spectrum = nn.Parameter(torch.randn(5, dtype=torch.complex64))
    half = nn.Parameter(torch.randn(7).bfloat16())
    idle = nn.Parameter(torch.randn(3))
    empty = nn.Parameter(torch.zeros(0))
    table = nn.Embedding(9, 2, sparse=True)
    model = nn.ParameterList([kernel, spectrum, half, idle, empty, table.weight])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    period_two = prepared(optimizer, model)
    for step in range(24):
        sign = (-1.0) ** step
        optimizer.zero_grad()
        loss = kernel.sum() * sign + spectrum.abs().sum() + half.float().sum() * sign
        (loss + table(torch.tensor([1, 4])).sum()).backward()
        optimizer.step()
        period_two.follow(optimizer, step + 1)
    found = shares(period_two, 6)
    assert found[:3] == pytest.approx([1.0, 1 / 9, 1.0], abs=0.01)
    assert np.isnan(found[3:]).all()


def test_a_factored_second_moment_and_a_state_that_is_lost() -> None:
    model = net(torch.float32, width=200)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    period_two = prepared(optimizer, model)
    for step in range(40):
        if step == 30:
            optimizer.state.clear()
        backward(model, step)
        optimizer.step()
        period_two.follow(optimizer, step + 1)
    assert np.isfinite(shares(period_two, 4)).all()
    assert "period_two_growth" in scalars(period_two)


def test_groups_of_different_rates_are_weighted_by_them() -> None:
    first, second = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    model = nn.ParameterList([first, second])
    groups = [{"params": [first], "lr": 1e-6}, {"params": [second], "lr": 4e-6}]
    optimizer = torch.optim.SGD(groups, lr=1e-6)
    period_two = prepared(optimizer, model)
    for step in range(30):
        first.grad, second.grad = torch.full((4,), 6.0), torch.full((4,), 4.0 * (-1.0) ** step)
        period_two.follow(optimizer, step + 1)
    # ‖y‖² is 36 · 4 / 4 for the steady group and 16 · 4 for the alternating one.
    expected = math.sqrt((36.0 / 81.0 + 64.0) / (36.0 + 64.0))
    assert scalars(period_two)["period_two"] == pytest.approx(expected, rel=1e-2)


def test_a_rise_in_noise_is_no_stability_ratio() -> None:
    generator = np.random.default_rng(0)
    response = GradientResponse(direct=1.0, momentum=0.0, intake=1.0, decay=0.0)
    growing = np.exp(0.2 * np.arange(40))
    # The share stays below one half although the component grows.
    assert "stability_ratio" not in period_two_scalars(0.02 * growing, growing, 40, response)
    scattered = growing * np.exp(generator.normal(0.0, 3.0, 40))
    assert "stability_ratio" not in period_two_scalars(scattered, 1.2 * scattered, 40, response)
    assert "stability_ratio" in period_two_scalars(growing, 1.2 * growing, 40, response)
    ended = np.where(np.arange(40) < 37, growing, growing[36] * 0.9 ** (np.arange(40) - 36))
    assert "stability_ratio" not in period_two_scalars(ended, 1.2 * ended, 40, response)


def test_a_watched_run_over_its_limit_says_so(make_run: MakeRun) -> None:
    torch.manual_seed(0)
    weight, calm = nn.Parameter(torch.full((3,), 1e-4)), nn.Parameter(torch.ones(3))
    model = nn.ParameterList([weight, calm])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.21)
    run = make_run()
    watch(run, model, optimizer, every=1)
    for step in range(40):
        optimizer.zero_grad()
        loss = 5.0 * weight.square().sum() + 0.05 * calm.square().sum()
        loss.backward()
        optimizer.step()
        run.log({"loss": loss}, step=step)
    records = kept(run)
    layout = last_layout(run)
    at = layout.statistics.index("period_two")
    assert records[-1].block is not None
    block = np.frombuffer(records[-1].block, "<f4").reshape(2, len(layout.statistics))
    assert block[0, at] > 0.9
    assert block[1, at] < 0.2
    assert records[-1].scalars["stability_ratio"] == pytest.approx(1.05, abs=0.01)
    assert records[-1].scalars["stability_ratio_source"] == SOURCE_PERIOD_TWO
    assert "stability_ratio" not in records[10].scalars
    assert "period_two" not in records[5].scalars


def test_a_ratio_from_curvature_wins(make_run: MakeRun) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.full((3,), 1e-4))
    model = nn.ParameterList([weight])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.21)
    run = make_run()
    watch(run, model, optimizer, every=1, budget=math.inf)

    def closure() -> Tensor:
        return 5.0 * weight.square().sum()

    for step in range(40):
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()
        run.log({"loss": 1.0}, step=step, closure=closure)
    found = [record.scalars for record in kept(run)]
    assert "period_two_growth" in found[-1]
    sources = [one["stability_ratio_source"] for one in found if "stability_ratio" in one]
    assert sources
    assert set(sources) == {SOURCE_CURVATURE}
    assert all(("stability_ratio" in one) == ("stability_ratio_source" in one) for one in found)


def test_training_computes_the_same_bits(make_run: MakeRun) -> None:
    def train(is_watched: bool) -> tuple[list[Tensor], Tensor]:
        model = net(torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        run = make_run() if is_watched else None
        if run is not None:
            watch(run, model, optimizer, every=1)
        for step in range(30):
            backward(model, step)
            optimizer.step()
            if run is not None:
                run.log({"loss": 1.0}, step=step)
        if run is not None:
            assert "period_two_growth" in kept(run)[-1].scalars
        state = [one for entry in copy.copy(optimizer.state).values() for one in entry.values()]
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return [p.detach() for p in model.parameters()] + grads + state, torch.get_rng_state()

    (bare, bare_rng), (watched, watched_rng) = train(False), train(True)
    assert all(torch.equal(one, other) for one, other in zip(bare, watched, strict=True))
    assert torch.equal(bare_rng, watched_rng)


@pytest.mark.parametrize(("share", "is_followed"), [(1e9, True), (1e-9, False)])
def test_steps_between_measured_ones_are_followed_if_that_is_cheap(
    share: float, is_followed: bool, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rhythm, "SHARE", share)
    model = net(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    run = make_run()
    watch(run, model, optimizer, every=7, budget=math.inf)
    for step in range(100):
        backward(model, step)
        optimizer.step()
        run.log({"loss": 1.0}, step=step)
    records = kept(run)
    assert ("period_two_growth" in records[-1].scalars) == is_followed
    assert any("period_two" in record.scalars for record in records) == is_followed


def test_the_rhythm_leaves_following_its_part_of_the_share() -> None:
    found = rhythm.Rhythm(every="auto", histogram_every=50)
    for _ in range(20):
        found.observe_step_time(1.0)
        found.observe_following(0.009, is_measured=True)
        found.observe_cost(0.019)
    assert found.is_followed
    assert found.calm_interval == 2
    for _ in range(5):
        found.observe_following(0.012, is_measured=False)
    assert found.is_followed, "a little above the share it goes on"
    for _ in range(5):
        found.observe_following(0.014, is_measured=False)
        found.observe_cost(0.019)
    assert not found.is_followed
    assert found.calm_interval == 1


def test_single_measured_steps_are_not_followed() -> None:
    found = rhythm.Rhythm(every=1, histogram_every=50)
    for _ in range(1, 12):
        found.begin_step()
        found.end_step()
        assert found.wants_following(is_measured=True)
        assert not found.wants_following(is_measured=False)
        found.note_measured(histograms=False)
        found.observe_following(0.5, is_measured=True)
        found.observe_step_time(1.0)
    found.end_step()
    found.end_step()
    assert not found.wants_following(is_measured=True), "the step before was not measured"


def test_a_step_that_was_not_followed_has_no_reading_of_an_earlier_one() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
    for step in range(12):
        backward(model, step)
        meter.before_step(optimizer)
        optimizer.step()
        if step < 11:
            meter.period_two.follow(optimizer, step + 1)
            assert meter.period_two.copy(is_trusted=True) is not None
    assert meter.period_two.copy(is_trusted=True) is None
    found = meter.measure(optimizer, histograms=False)
    assert found is not None
    block = found.measurement().block
    assert block is not None
    assert np.isnan(block[:, meter.statistics.index("period_two")]).all()


def test_a_meter_without_followed_steps_does_not_know_the_shares() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    meter = Meter(optimizer, kind_of(optimizer), map_layers(model, optimizer))
    backward(model, 0)
    optimizer.step()
    found = meter.measure(optimizer, histograms=False)
    assert found is not None
    block = found.measurement().block
    assert block is not None
    assert np.isnan(block[:, meter.statistics.index("period_two")]).all()
