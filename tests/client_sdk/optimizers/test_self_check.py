"""The check of a formula at the weights: it finds every changed update, and raises no false alarm."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

Train = Callable[..., Any]


class Scaled(torch.optim.AdamW):
    """A subclass that makes one and a half steps."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.clone() for p in parameters]
        super().step(closure)
        for parameter, old in zip(parameters, before, strict=True):
            parameter.add_(parameter - old, alpha=0.5)


class Interpolating(torch.optim.AdamW):
    """A subclass that goes half the way back at every fifth step, as Lookahead does."""

    count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        if not self.count:
            self.slow = [p.clone() for p in parameters]
        super().step(closure)
        self.count += 1
        if self.count % 5 == 0:
            for parameter, slow in zip(parameters, self.slow, strict=True):
                slow.lerp_(parameter, 0.5)
                parameter.copy_(slow)


class Centralised(torch.optim.SGD):
    """A subclass that changes the gradients before its step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.dim() > 1:
                    parameter.grad.sub_(parameter.grad.mean(dim=1, keepdim=True))
        return super().step(closure)


class Logging(torch.optim.AdamW):
    """A subclass with a step of its own that changes nothing."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Skipping(torch.optim.AdamW):
    """A subclass that leaves out every other step, as one that looks for infinities does."""

    count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        if self.count % 2:
            return super().step(closure)
        return None


@pytest.mark.parametrize("make", [Scaled, Interpolating])
def test_a_changed_update_is_measured_at_the_weights(train: Train, make: type[torch.optim.AdamW]) -> None:
    trained = train(lambda p: make(p, lr=0.01))
    refuted_at = None
    for seed in range(15):
        measurement = trained.step(seed)
        found = trained.column(measurement, "update_norm")
        wrong = [value for value, true in zip(found, trained.moved, strict=True) if not math.isnan(value)
                 and value != pytest.approx(true, rel=1e-4)]  # fmt: skip
        assert not wrong, "a wrong update was reported"
        if trained.meter.is_refuted and refuted_at is None:
            refuted_at = seed
            assert measurement.histograms == ()
        if refuted_at is not None and seed > refuted_at:
            assert found == pytest.approx(trained.moved, rel=1e-4)
            assert all(map(math.isnan, trained.column(measurement, "u_rms")))
    assert refuted_at == (0 if make is Scaled else 4)


def test_a_hook_that_moves_the_weights_is_found(train: Train) -> None:
    trained = train(lambda p: torch.optim.Adam(p, lr=0.01))

    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        with torch.no_grad():
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.clamp_(-0.1, 0.1)

    trained.optimizer.register_step_post_hook(clip)
    trained.step(0)
    assert trained.meter.is_refuted


def test_gradients_that_the_step_changes_are_read_before_it(train: Train) -> None:
    trained = train(lambda p: Centralised(p, lr=0.01, momentum=0.9))
    for seed in range(4):
        measurement = trained.step(seed)
        found = trained.column(measurement, "grad_norm")
        if seed:
            assert found == pytest.approx([float(grad.norm()) for grad in trained.gradients], rel=1e-5)
        else:
            assert math.isnan(found[0])
        assert trained.column(measurement, "update_norm") == pytest.approx(trained.moved, rel=1e-4)
    assert not trained.meter.is_refuted, "the momentum, which decides the update, holds the changed gradients"


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Logging(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.NAdam(p, lr=0.01),
        lambda p: torch.optim.RAdam(p, lr=0.01),
        lambda p: torch.optim.Adamax(p, lr=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.9),
        lambda p: torch.optim.Adagrad(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), capturable=False, foreach=False),
        lambda p: torch.optim.AdamW(p, lr=1e-9),
        lambda p: torch.optim.AdamW(p, lr=0.0),
    ],
    ids=["logging", "amsgrad", "nesterov", "nadam", "radam", "adamax", "rmsprop", "adagrad", "tensor-lr", "tiny-lr",
         "zero-lr"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_known_rules_hold(train: Train, make: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype) -> None:
    trained = train(make, dtype)
    for seed in range(30):
        trained.step(seed)
    assert not trained.meter.is_refuted


def test_weights_that_the_user_changes_between_steps_are_no_alarm(train: Train) -> None:
    trained = train(lambda p: torch.optim.AdamW(p, lr=0.01))
    average = copy.deepcopy(trained.model.state_dict())
    for seed in range(10):
        measurement = trained.step(seed)
        assert trained.column(measurement, "update_norm") == pytest.approx(trained.moved, rel=1e-4)
        with torch.no_grad():  # an average of weights that is swapped in, and a constraint
            trained.model.load_state_dict(average)
            for parameter in trained.model.parameters():
                parameter.clamp_(-0.2, 0.2)
    assert not trained.meter.is_refuted


def test_a_step_that_is_left_out_is_no_alarm(train: Train) -> None:
    trained = train(lambda p: Skipping(p, lr=0.01))
    for seed in range(9):
        found = trained.column(trained.step(seed), "update_norm")
        if seed % 2:
            assert all(map(math.isnan, found)), "nothing moved, and no formula says so"
        else:
            assert found == pytest.approx(trained.moved, rel=1e-4)
    assert not trained.meter.is_refuted


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_is_no_alarm(train: Train, fused: bool) -> None:
    trained = train(lambda p: torch.optim.AdamW(p, lr=0.01, fused=fused))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def scaled(broken: bool) -> Callable[[], None]:
        def move() -> None:
            for parameter in trained.model.parameters():
                parameter.grad.mul_(scaler.get_scale())
                if broken:
                    parameter.grad.fill_(math.inf)
            scaler.step(trained.optimizer)
            scaler.update()

        return move

    scaler.scale(torch.zeros(1))  # creates its state
    for seed in range(6):
        before = [p.detach().clone() for p in trained.model.parameters()]
        trained.step(seed, scaled(broken=seed == 3))
        moved = any(not torch.equal(p, old) for p, old in zip(trained.model.parameters(), before, strict=True))
        assert moved == (seed != 3)
    assert not trained.meter.is_refuted


def test_tied_weights_are_no_alarm(train: Train) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    trained = train(lambda p: torch.optim.AdamW(p, lr=0.01), model=model)
    for seed in range(5):
        measurement = trained.step(seed)
    assert trained.column(measurement, "update_norm") == pytest.approx(trained.moved, rel=1e-4)
    assert not trained.meter.is_refuted


def test_nan_is_no_alarm(train: Train) -> None:
    trained = train(lambda p: torch.optim.AdamW(p, lr=0.01))
    trained.step(0)
    for parameter in trained.model.parameters():
        parameter.data.fill_(math.nan)
    trained.step(1)
    assert not trained.meter.is_refuted
