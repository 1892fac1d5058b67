"""The rhythm keeps to its interval, to its share of the training's time, and to what is read."""

from __future__ import annotations

import random
from collections.abc import Container

import pytest

from client_sdk.budget import Budget
from client_sdk.watch.rhythm import FIRST, HOLD, MAX_INTERVAL, SHARE, Every, Rhythm
from client_sdk.watch.trigger import Trigger


def drive(
    rhythm: Rhythm, steps: range, *, cost: float = 0.0, step_time: float = 1.0, logs: Container[int] | None = None
) -> list[int]:
    """Make steps and return those that were measured; ``logs`` are the steps that are logged, by default all."""
    measured = []
    for step in steps:
        rhythm.begin_step()
        if rhythm.end_step():
            rhythm.note_measured(histograms=False)
            rhythm.observe_cost(cost)
            measured.append(step)
        rhythm.observe_step_time(step_time)
        if logs is None or step in logs:
            rhythm.note_logged()
    return measured


@pytest.mark.parametrize("every", [1, 3])
def test_a_number_is_kept_to_whatever_it_costs(every: int) -> None:
    rhythm = Rhythm(every=every, histogram_every=50)
    assert drive(rhythm, range(30), cost=100.0) == list(range(0, 30, every))
    assert rhythm.interval == every


def test_a_dense_log_after_a_sparse_rhythm_is_measured() -> None:
    logs = [9, 19, 29, 33, 34, 35, 36, 39, 49]
    rhythm = Rhythm(every=1, histogram_every=50)
    assert set(logs) <= set(drive(rhythm, range(50), logs=logs))


def test_a_sparse_log_has_layers_whatever_the_number_is() -> None:
    rhythm = Rhythm(every=3, histogram_every=50)
    measured = drive(rhythm, range(60), logs=range(9, 60, 10))
    assert set(range(19, 60, 10)) <= set(measured)
    assert len(measured) <= 10 + 50 / 3 + 5, "the first ten, every third, and those that are logged"


def test_steps_that_are_never_read_cost_nothing() -> None:
    rhythm = Rhythm(every="auto", histogram_every=50)
    measured = drive(rhythm, range(100), cost=1e-6, logs=range(9, 100, 10))
    assert measured == [*range(10), *range(19, 100, 10)]


@pytest.mark.parametrize("cost", [0.001, 0.02, 0.03, 0.07, 0.2, 0.3])
def test_measuring_takes_its_share_of_the_time(cost: float) -> None:
    rhythm = Rhythm(every="auto", histogram_every=50)
    drive(rhythm, range(FIRST), cost=cost)
    measured = drive(rhythm, range(1000), cost=cost)
    assert cost * len(measured) <= SHARE * 1000 * 1.01
    assert rhythm.share <= SHARE
    assert cost * len(measured) >= SHARE * 1000 / 4.5 or len(measured) == 1000, "nor far less than it may"


def test_a_model_whose_measuring_is_dear_is_still_measured() -> None:
    rhythm = Rhythm(every="auto", histogram_every=50)
    drive(rhythm, range(FIRST), cost=5.0)
    assert (
        drive(rhythm, range(160), cost=5.0)[1:3] == [MAX_INTERVAL + 1, 2 * MAX_INTERVAL + 1]
        or rhythm.interval == MAX_INTERVAL
    )
    assert rhythm.interval == MAX_INTERVAL


def test_the_first_steps_are_measured_and_then_only_what_the_budget_allows() -> None:
    """Measuring takes as long as three steps, so that 16 steps of it would take a quarter of the first 200 steps."""
    budget = Budget(0.05)
    rhythm = Rhythm(every="auto", histogram_every=100, budget=budget)
    measured = []
    for step in range(1, 201):
        if rhythm.begin_step():
            measured.append(step)
        if rhythm.end_step():
            rhythm.note_measured(histograms=False)
            rhythm.observe_cost(3e-3)
        rhythm.note_logged()
        rhythm.observe_step_time(1e-3)
    assert measured[:3] == [1, 2, 3]
    assert budget.used() <= 0.05


def test_the_interval_follows_a_change_of_the_cost() -> None:
    rhythm = Rhythm(every="auto", histogram_every=50)
    drive(rhythm, range(200), cost=0.01)
    assert rhythm.interval == 1
    drive(rhythm, range(200), cost=0.15)
    assert rhythm.interval == 8
    drive(rhythm, range(400), cost=0.01)
    assert rhythm.interval == 1


def test_a_sign_makes_the_rhythm_dense_for_a_while_and_is_paid_back() -> None:
    rhythm = Rhythm(every="auto", histogram_every=50)
    drive(rhythm, range(500), cost=0.07)
    assert rhythm.interval == 4
    rhythm.stir()
    assert rhythm.is_dense
    assert drive(rhythm, range(HOLD), cost=0.07) == list(range(HOLD))
    assert not rhythm.is_dense
    assert rhythm.interval == 8, "the calm interval is longer until the dense time is paid back"
    drive(rhythm, range(600), cost=0.07)
    assert rhythm.interval == 4


@pytest.mark.parametrize("every", ["auto", 1])
def test_a_led_rhythm_follows_the_agreed_interval_alone(every: Every) -> None:
    leader, follower = Rhythm(every="auto", histogram_every=50), Rhythm(every=every, histogram_every=50)
    leader.lead(1)
    follower.lead(1)
    proposal = 1
    measured: dict[str, list[int]] = {"leader": [], "follower": []}
    for step in range(400):
        for name, rhythm, cost in (("leader", leader, 0.07), ("follower", follower, 9.0)):
            rhythm.begin_step()
            if rhythm.end_step():
                rhythm.note_measured(histograms=False)
                rhythm.observe_cost(cost)
                rhythm.lead(proposal)
                measured[name].append(step)
            rhythm.observe_step_time(1.0)
        leader.note_logged()  # rank 0 alone logs
        proposal = leader.next_in
        if step == 200:
            follower.stir()
    assert measured["leader"] == measured["follower"]
    assert 60 <= len(measured["leader"]) <= 150


def test_noise_seldom_stirs_and_a_rise_does() -> None:
    noise = random.Random(0)
    trigger = Trigger()
    stirred = 0
    for step in range(2000):
        loss = 3.0 * 0.9995**step * (1.0 + 0.05 * noise.gauss(0.0, 1.0))
        norm = 2.0 ** (0.3 * noise.gauss(0.0, 1.0))
        stirred += trigger.observe({"loss": loss, "grad_norm": norm})
    assert stirred <= 4
    assert trigger.observe({"loss": 3.0 * 0.9995**2000 * 1.4, "grad_norm": 1.0})


def test_a_slow_build_up_of_the_gradient_stirs() -> None:
    noise = random.Random(1)
    trigger = Trigger()
    for _ in range(300):
        trigger.observe({"loss": 1.0 + 0.01 * noise.gauss(0.0, 1.0), "grad_norm": 1.0 + 0.1 * noise.gauss(0.0, 1.0)})
    growing = [trigger.observe({"loss": 1.0, "grad_norm": 1.05**step}) for step in range(12)]
    assert any(growing)


def test_what_stirs() -> None:
    assert Trigger().observe({"loss": float("nan")})
    assert Trigger().observe({"lambda_max": 190.0, "stability_limit": 200.0})
    assert Trigger().observe({"lambda_grad": 110.0, "stability_limit": 200.0})
    assert not Trigger().observe({"lambda_max": 100.0, "stability_limit": 200.0})
    assert not any(Trigger().observe({"loss": 0.0}) for _ in range(50))
    trigger = Trigger()
    calm = [trigger.observe_statistics({"grad_norm": 1.0, "decoupling": 0.1}) for _ in range(20)]
    assert not any(calm)
    assert trigger.observe_statistics({"grad_norm": 2.0, "decoupling": 0.1})
    assert not Trigger().observe_statistics({"grad_norm": 2.0, "decoupling": 1.0})


def test_a_loss_that_is_negative_or_has_another_name_is_followed() -> None:
    for name in ("train/loss", "reward"):
        trigger = Trigger("reward" if name == "reward" else None)
        assert not any(trigger.observe({name: -5.0 + 0.1 * (step % 3)}) for step in range(60))
        assert trigger.observe({name: -1.0})
