"""When probes are made: rarely while calm, densely when signals arm, never beyond their share of the time."""

from __future__ import annotations

from itertools import pairwise

import pytest

from client_sdk.curvature.schedule import ARMED_EVERY, CALM_SHARE, HOLD, SHARE, Choice, Schedule

LR = 0.01  # the limit is 200


def drive(schedule: Schedule, first: int, last: int, lr: float = LR) -> dict[Choice, list[int]]:
    """Steps of each kind of probe when every step is logged."""
    made: dict[Choice, list[int]] = {"none": [], "gradient": [], "full": []}
    for step in range(first, last):
        choice = schedule.decide(step, lr)
        if choice != "none":
            schedule.started(choice, step)
        made[choice].append(step)
    return made


def test_calm_runs_are_probed_at_the_base_rhythm() -> None:
    made = drive(Schedule(25), 0, 100)
    assert made["full"] == [0, 25, 50, 75]
    assert made["gradient"][:4] == [5, 10, 15, 20], "λ_grad comes more often than λ_max"


@pytest.mark.parametrize(
    ("lambda_max", "lambda_grad", "lr", "is_armed"),
    [
        (159.0, 99.0, LR, False),
        (161.0, None, LR, True),
        (None, 101.0, LR, True),
        (20.0, 20.0, 0.09, True),
        (-500.0, -500.0, LR, False),
    ],
    ids=["calm", "lambda-max", "lambda-grad", "learning-rate-rose", "negative"],
)
def test_curvature_near_the_limit_arms(
    lambda_max: float | None, lambda_grad: float | None, lr: float, is_armed: bool
) -> None:
    schedule = Schedule(25)
    drive(schedule, 0, 10)
    schedule.observe_curvature(lambda_max, lambda_grad)
    made = drive(schedule, 10, 40, lr)
    assert schedule.is_armed == is_armed
    assert (len(made["full"]) >= 14) == is_armed


def test_growing_decoupled_gradients_arm() -> None:
    for decoupling, growth, is_armed in (
        (0.01, 1.3, True),
        (0.9, 1.3, False),
        (0.01, 1.0, False),
        (float("nan"), 1.3, False),
    ):
        schedule = Schedule(25)
        for step in range(8):
            schedule.observe_gradient(growth**step, decoupling)
        drive(schedule, 0, 4)
        assert schedule.is_armed == is_armed


def test_armed_rhythm_ends_some_time_after_the_last_reason() -> None:
    schedule = Schedule(25)
    schedule.observe_curvature(190.0, 10.0)
    drive(schedule, 0, 2)
    schedule.observe_curvature(50.0, 10.0)
    made = drive(schedule, 2, 2 + 4 * HOLD)
    dense = [step for step in made["full"] if step <= HOLD]
    assert len(dense) >= HOLD // ARMED_EVERY - 2
    assert not schedule.is_armed
    later = [step for step in made["full"] if step > HOLD + 25]
    assert {b - a for a, b in pairwise(later)} == {25}


def test_probes_take_no_more_than_their_share_of_long_steps() -> None:
    for is_armed in (False, True):
        schedule = Schedule(25)
        for _ in range(5):
            schedule.observe_step_time(0.1)
            schedule.observe_cost("full", 2.0)
            schedule.observe_cost("gradient", 0.6)
        if is_armed:
            schedule.observe_curvature(199.0, 150.0)
        made = drive(schedule, 0, 1000)
        assert len(made["full"]) * 2.0 <= SHARE * 1000 * 0.1 + 2.0
        if not is_armed:
            assert len(made["gradient"]) * 0.6 <= CALM_SHARE * 1000 * 0.1 + 0.6


def test_tiny_steps_do_not_starve_the_probe() -> None:
    schedule = Schedule(25)
    for _ in range(5):
        schedule.observe_step_time(0.0005)
        schedule.observe_cost("full", 0.008)
        schedule.observe_cost("gradient", 0.002)
    schedule.observe_curvature(199.0, 10.0)
    assert len(drive(schedule, 0, 100)["full"]) == 50


def test_failures_back_off_and_success_ends_it() -> None:
    schedule = Schedule(10)
    tried = []
    for step in range(2000):
        if schedule.decide(step, LR) != "none":
            tried.append(step)
            schedule.failed(step)
    gaps = [b - a for a, b in pairwise(tried)]
    assert gaps[:6] == [10, 20, 40, 80, 160, 320]
    assert max(gaps) == 640
    schedule.observe_curvature(10.0, 10.0)
    assert schedule.decide(2000, LR) == "full"


def test_rewinding_starts_afresh() -> None:
    schedule = Schedule(25)
    drive(schedule, 0, 60)
    assert drive(schedule, 20, 21)["full"] == [20]


def test_sparse_logging_counts_steps_not_calls() -> None:
    schedule = Schedule(25)
    full = []
    for step in range(0, 400, 10):
        choice = schedule.decide(step, LR)
        if choice != "none":
            schedule.started(choice, step)
        if choice == "full":
            full.append(step)
    assert full[:4] == [0, 30, 60, 90]
