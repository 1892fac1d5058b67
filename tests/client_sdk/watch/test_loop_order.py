"""Each record has the layers and the learning rate of its own step, wherever in the loop it is logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from client_sdk.protocol import Record
from client_sdk.run import Run
from client_sdk.watch import watch
from tests.support.logged import MakeRun
from tests.support.logged import kept as records

torch.set_num_threads(1)


@dataclass
class Loop:
    """A training whose true gradient norms and learning rates are kept, by the number of the step from 0."""

    run: Run | None
    model: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)

    def loss(self) -> Tensor:
        loss: Tensor = self.model(torch.randn(8, 4)).pow(2).mean()
        return loss

    def step(self) -> None:
        norms = [parameter.grad.norm() for parameter in self.model.parameters() if parameter.grad is not None]
        self.norms.append(float(torch.stack(norms).norm()))
        self.rates.append(float(self.optimizer.param_groups[0]["lr"]))
        self.optimizer.step()
        self.schedule.step()

    def log(self, step: int, loss: Tensor | float = 0.0, **metrics: float) -> None:
        if self.run is not None:
            self.run.log({"loss": loss, **metrics}, step=step)


def after_the_step(loop: Loop) -> None:
    for step in range(6):
        loop.optimizer.zero_grad()
        loss = loop.loss()
        loss.backward()
        loop.step()
        loop.log(step, loss)


def before_the_backward_pass(loop: Loop) -> None:
    for step in range(6):
        loop.optimizer.zero_grad()
        loss = loop.loss()
        loop.log(step, loss)
        loss.backward()
        loop.step()


def between_backward_pass_and_step(loop: Loop) -> None:
    for step in range(6):
        loss = loop.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(loop.model.parameters(), 0.1)
        loop.log(step, loss.item())
        loop.step()
        loop.optimizer.zero_grad()


def before_the_backward_pass_of_a_scaled_loss(loop: Loop) -> None:
    for step in range(6):
        loop.optimizer.zero_grad()
        loss = loop.loss()
        loop.log(step, loss)
        (loss / 4).backward()
        loop.step()


def before_a_backward_pass_that_recomputes(loop: Loop) -> None:
    for step in range(6):
        loop.optimizer.zero_grad()
        loss = checkpoint(loop.model, torch.randn(8, 4), use_reentrant=False).pow(2).mean()
        loop.log(step, loss)
        loss.backward()
        loop.step()


def twice_a_step(loop: Loop) -> None:
    for step in range(6):
        loop.optimizer.zero_grad()
        loss = loop.loss()
        loss.backward()
        loop.log(step, loss)
        loop.step()
        if loop.run is not None:
            loop.run.log({"throughput": 3.0}, step=step)


def after_an_evaluation_at_the_start(loop: Loop) -> None:
    with torch.no_grad():
        loop.log(0, loop.loss())
    for step in range(6):
        loop.optimizer.zero_grad()
        loss = loop.loss()
        loss.backward()
        loop.step()
        loop.log(step + 1, loss)


def with_weight_norms_that_autograd_follows(loop: Loop) -> None:
    for step in range(6):
        loop.optimizer.zero_grad()
        loss = loop.loss()
        loss.backward()
        loop.step()
        norm = torch.stack([parameter.norm() for parameter in loop.model.parameters()]).norm()
        loop.log(step, loss, weight_norm=norm.item())


def inside_the_closure_of_the_optimizer(loop: Loop) -> None:
    for step in range(6):

        def closure(step: int = step) -> Tensor:
            loop.optimizer.zero_grad()
            loss = loop.loss()
            loop.log(step, loss)
            loss.backward()
            norms = [parameter.grad.norm() for parameter in loop.model.parameters() if parameter.grad is not None]
            loop.norms.append(float(torch.stack(norms).norm()))
            loop.rates.append(float(loop.optimizer.param_groups[0]["lr"]))
            return loss

        loop.optimizer.step(closure)  # type: ignore[arg-type]  # torch names float, and takes a tensor
        loop.schedule.step()


ONE_EACH = [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        (after_the_step, ONE_EACH),
        (before_the_backward_pass, ONE_EACH),
        (between_backward_pass_and_step, ONE_EACH),
        (before_the_backward_pass_of_a_scaled_loss, ONE_EACH),
        (before_a_backward_pass_that_recomputes, ONE_EACH),
        (twice_a_step, ONE_EACH),
        (after_an_evaluation_at_the_start, [1, 2, 3, 4, 5, 6]),
        (with_weight_norms_that_autograd_follows, ONE_EACH),
        (inside_the_closure_of_the_optimizer, ONE_EACH),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_record_has_the_layers_and_the_rate_of_its_own_step(
    train: Callable[[Loop], None], steps: Sequence[int], make_run: MakeRun
) -> None:
    loop = Loop(make_run())
    assert loop.run is not None
    watch(loop.run, loop.model, loop.optimizer, every=1)
    train(loop)
    measured = [record for record in records(loop.run) if record.block is not None]
    assert [record.step for record in measured] == steps
    for record, norm, rate in zip(measured, loop.norms, loop.rates, strict=True):
        assert record.scalars["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert record.scalars["lr"] == pytest.approx(rate)
        assert record.scalars["stability_limit"] == pytest.approx(2 / rate)
    assert loop.run.status().warnings == {}


@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_of_four_logs_in_an_accumulated_step_the_last_has_its_layers(place: str, make_run: MakeRun) -> None:
    loop = Loop(make_run())
    assert loop.run is not None
    watch(loop.run, loop.model, loop.optimizer, every=1)
    for micro in range(12):
        loss = loop.loss()
        if place == "before":
            loop.log(micro, loss)
        (loss / 4).backward()
        if place == "between":
            loop.log(micro, loss)
        if micro % 4 == 3:
            loop.step()
            loop.optimizer.zero_grad()
        if place == "after":
            loop.log(micro, loss)
    found = records(loop.run)
    measured = [record for record in found if record.block is not None]
    assert [record.step for record in measured] == [3, 7, 11]
    assert [record.scalars["grad_norm"] for record in measured] == pytest.approx(loop.norms, rel=1e-4)
    assert [record.step for record in found if "lr" in record.scalars] == [3, 7, 11], "without a step there is no rate"
    assert len(found) == 12


def test_two_optimizers_of_one_step_are_both_in_its_record(make_run: MakeRun) -> None:
    run = make_run()
    first, second = Loop(run), Loop(run)
    for loop in (first, second):
        watch(run, loop.model, loop.optimizer, every=1)
    for step in range(4):
        for loop in (first, second):
            loop.optimizer.zero_grad()
            loop.loss().backward()
            loop.step()
        run.log({"loss": 1.0}, step=step)
    found = records(run)
    assert [record.scalars["grad_norm"] for record in found] == pytest.approx(first.norms, rel=1e-4)
    assert [record.scalars["grad_norm_2"] for record in found] == pytest.approx(second.norms, rel=1e-4)


def test_one_watched_optimizer_of_two_is_in_its_own_record(make_run: MakeRun) -> None:
    run = make_run()
    watched, other = Loop(run), Loop(None)
    watch(run, watched.model, watched.optimizer, every=1)
    for step in range(5):
        for loop in (watched, other):
            loop.optimizer.zero_grad()
            loop.loss().backward()
            loop.step()
        run.log({"loss": 1.0}, step=step)
    assert [record.scalars["grad_norm"] for record in records(run)] == pytest.approx(watched.norms, rel=1e-4)


@pytest.mark.parametrize("place", ["before", "after"])
def test_probes_do_not_count_as_forward_passes(place: str, make_run: MakeRun) -> None:
    loop = Loop(make_run())
    assert loop.run is not None
    watch(loop.run, loop.model, loop.optimizer, every=1, curvature_every=1, budget=math.inf)
    for step in range(6):
        loop.optimizer.zero_grad()
        loss = loop.loss()
        if place == "before":
            loop.run.log({"loss": loss}, step=step, closure=loop.loss)
        loss.backward()
        loop.step()
        if place == "after":
            loop.run.log({"loss": loss}, step=step, closure=loop.loss)
    assert [record.scalars["grad_norm"] for record in records(loop.run)] == pytest.approx(loop.norms, rel=1e-4)


def test_a_record_that_waits_for_its_step_is_sent_when_the_run_is_flushed(make_run: MakeRun) -> None:
    loop = Loop(make_run())
    assert loop.run is not None
    watch(loop.run, loop.model, loop.optimizer, every=1)
    loop.log(0, loop.loss())
    loop.run.flush(0.0)
    assert loop.run.status().logged == 1
    (record,) = records(loop.run)
    assert "lr" not in record.scalars


def _orders(names: Sequence[str]) -> Iterator[Any]:
    for name in names:
        yield pytest.param(name, id=name)


@pytest.mark.parametrize("rate", list(_orders(["number", "tensor", "several groups"])))
def test_the_rate_is_that_of_the_step_when_a_scheduler_has_already_moved_on(rate: str, make_run: MakeRun) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    groups: list[dict[str, Any]] = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.002}]
    start = torch.tensor(0.02) if rate == "tensor" else 0.02
    optimizer = torch.optim.Adam(groups if rate == "several groups" else model.parameters(), lr=start, foreach=False)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    run = make_run()
    watch(run, model, optimizer)
    for step in range(4):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).pow(2).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        run.log({"loss": loss}, step=step)
    found: list[Record] = records(run)
    assert [record.scalars["lr"] for record in found] == pytest.approx([0.02 * 0.5**step for step in range(4)])
    assert all(math.isclose(2 / r.scalars["lr"], r.scalars["stability_limit"], rel_tol=1e-6) for r in found)
