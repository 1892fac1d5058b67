"""`watch` during real training: nothing raises, and the records are right."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from client_sdk.stats import Meter, StepCopy
from client_sdk.watch import rhythm, watch
from tests.support.logged import MakeRun, last_layout
from tests.support.logged import kept as records
from tests.support.watched_training import columns_of, fit, small

torch.set_num_threads(1)  # more threads would spend minutes waiting for each other on tiny networks

WATCHED_FROM = 500
"""Step at which λ_max of the tanh network is still below its limit, which it crosses some hundred steps later."""


def test_curvature_of_the_tanh_net_warns_before_its_spike(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(200, 50), torch.randn(50, 1) / 50**0.5
    y = torch.sin(3 * x @ w) + x @ w
    model = nn.Sequential(nn.Linear(50, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.999))
    run = make_run()
    losses = []
    for step in range(1500):
        if step == WATCHED_FROM:
            watch(run, model, optimizer, budget=math.inf)
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if step >= WATCHED_FROM:
            run.log({"loss": loss}, step=step, closure=lambda: F.mse_loss(model(x), y))
        if step > WATCHED_FROM and losses[-1] > 1e3 * min(losses):
            break
    found = records(run)
    calm = min(range(WATCHED_FROM, len(losses)), key=losses.__getitem__)
    onset = next(step for step in range(calm, len(losses)) if losses[step] > 100 * losses[calm])

    def crossing(name: str) -> int:
        values = [(record.step, record.scalars[name]) for record in found if name in record.scalars]
        above = onset
        for step, value in reversed([entry for entry in values if entry[0] <= onset]):
            if value <= 200.0:
                break
            above = step
        return above

    assert run.status().warnings == {}
    assert crossing("lambda_max") < crossing("lambda_grad") <= onset
    assert crossing("lambda_max") <= onset - 10
    before = [r for r in found if onset - 60 <= r.step < onset and "lambda_grad" in r.scalars]
    assert len(before) >= 20, "near the limit there is a probe at every other step"


def test_model_and_optimizer_can_be_copied_saved_and_loaded(make_run: MakeRun) -> None:
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer, every=1)
    fit(model, optimizer, run, range(3))
    twin, twin_optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    copied, copied_optimizer = copy.deepcopy((model, optimizer))
    for other, other_optimizer in ((twin, twin_optimizer), (copied, copied_optimizer)):
        fit(other, other_optimizer, None, range(2))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    fit(model, optimizer, run, range(3, 6))
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    fit(model, optimizer, run, range(3, 5))
    found = records(run)
    assert [record.step for record in found] == [0, 1, 2, 3, 4, 5, 3, 4]
    assert all(record.block is not None for record in found)
    assert run.status().warnings == {}


def test_every_thins_the_statistics(make_run: MakeRun) -> None:
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer, every=3)
    fit(model, optimizer, run, range(8))
    found = records(run)
    assert [record.step for record in found if record.block is not None] == [0, 3, 6]
    assert all("lr" in record.scalars for record in found)


def test_steps_that_are_not_logged_are_not_measured(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rhythm, "SHARE", 1e9)
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer, budget=math.inf)
    measured = _count_measurements(monkeypatch)
    for step in range(10, 110, 10):
        fit(model, optimizer, None, range(9))
        fit(model, optimizer, run, [step])
    assert all(record.block is not None for record in records(run))
    assert len(measured) <= 10 + 9, "the first ten steps, then each step that is logged"
    run.finish(0.0)
    measured.clear()
    fit(model, optimizer, None, range(20))
    assert measured == []


def _count_measurements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets one element for each measurement of a step."""
    measure = Meter.measure
    calls: list[int] = []

    def counted(*arguments: Any, **options: Any) -> StepCopy | None:
        calls.append(1)
        return measure(*arguments, **options)

    monkeypatch.setattr(Meter, "measure", counted)
    return calls


def test_gradient_accumulation_is_measured_once_a_step(make_run: MakeRun) -> None:
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer)
    for micro in range(8):
        loss = model(torch.randn(8, 4)).pow(2).mean()
        loss.backward()
        if micro % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
        run.log({"loss": loss}, step=micro)
    assert [record.step for record in records(run) if record.block is not None] == [3, 7]


def test_steps_skipped_by_the_loss_scaler_are_not_measured(make_run: MakeRun) -> None:
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer, every=1, budget=math.inf)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    norms = []
    for step in range(4):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).pow(2).mean() * (float("inf") if step == 2 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        norms.append(float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()))
        run.log({"loss": loss}, step=step)
    found = records(run)
    assert [record.step for record in found if record.block is not None] == [0, 1, 3]
    assert found[3].scalars["grad_norm"] == pytest.approx(norms[3], rel=1e-5), (
        "the gradient norm is taken after unscaling"
    )


def test_learning_rate_in_a_tensor_is_followed(make_run: MakeRun) -> None:
    model, _ = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.02), foreach=False)
    run = make_run()
    watch(run, model, optimizer)
    fit(model, optimizer, run, range(2))
    for group in optimizer.param_groups:
        group["lr"].fill_(0.0)
    fit(model, optimizer, run, range(2, 3))
    found = records(run)
    assert found[1].scalars["stability_limit"] == pytest.approx(100.0)
    assert found[2].scalars["lr"] == 0.0
    assert "stability_limit" not in found[2].scalars


def test_two_models_share_a_run(make_run: MakeRun) -> None:
    run = make_run()
    pairs = [small(), small()]
    for model, optimizer in pairs:
        watch(run, model, optimizer)
    for step in range(2):
        for model, optimizer in pairs:
            fit(model, optimizer, None, [0])
        run.log({"loss": 0.0}, step=step)
    layout = last_layout(run)
    for record in records(run):
        assert {"lr", "lr_2"} <= set(record.scalars)
        assert len(columns_of(record, layout)["grad_norm"]) == 8


@pytest.mark.parametrize("share", [None, 0.0], ids=["independent", "zero-gradient"])
def test_closure_of_another_watched_model_causes_no_warning(make_run: MakeRun, share: float | None) -> None:
    pairs = small(), small()
    model, other = pairs[0][0], pairs[1][0]
    run = make_run()
    for one, its_optimizer in pairs:
        watch(run, one, its_optimizer, curvature_every=5, budget=math.inf)
    batch = torch.randn(8, 4)

    def closure() -> torch.Tensor:
        loss: torch.Tensor = model(batch).square().mean()
        return loss if share is None else loss + share * other(batch).square().mean()

    for step in range(30):
        for one, its_optimizer in pairs:
            fit(one, its_optimizer, None, [0])
        run.log({"loss": closure().item()}, step=step, closure=closure)
    assert not [record for record in run.warner.counts if record == "closure_nonfinite"]
    found = records(run)
    assert [record.step for record in found if "lambda_max" in record.scalars][:3] == [0, 5, 10]
    assert not any("lambda_max_2" in record.scalars or "lambda_step_2" in record.scalars for record in found)


def test_bad_closures_never_reach_training(make_run: MakeRun) -> None:
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer, curvature_every=1, budget=math.inf)
    closures: list[Any] = [lambda: 1 / 0, lambda: None, 3, lambda: model(torch.randn(2, 4)).sum() * float("nan")]
    step = 0
    for closure in closures:
        for _ in range(3):
            fit(model, optimizer, None, [0])
            run.log({"loss": 0.1}, step=step, closure=closure)
            step += 60
    assert set(run.status().warnings) == {"closure", "closure_nonfinite"}
    found = records(run)
    assert len(found) == step // 60
    assert not any("lambda_max" in record.scalars for record in found)


def test_broken_measuring_does_not_reach_training(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = small()
    run = make_run()
    watch(run, model, optimizer)
    monkeypatch.setattr("client_sdk.stats.meter.term_table", lambda *_: 1 / 0)
    fit(model, optimizer, run, range(3))
    assert run.status().warnings["statistics"] == 3
    assert [record.block for record in records(run)] == [None] * 3
