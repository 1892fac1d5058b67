"""Probes are rare while a run is calm, dense when it is armed, and never exceed their share of the time."""

from __future__ import annotations

from itertools import pairwise

import pytest

from client_sdk.curvature.schedule import BUDGETS, DENSE_EVERY, HOLD, Choice, Schedule, Urgency

LR = 0.01  # stability limit 200


def drive(schedule: Schedule, first: int, last: int, lr: float = LR) -> dict[Choice, list[int]]:
    """Log every step in [first, last) and return the steps of each kind of probe."""
    made: dict[Choice, list[int]] = {"none": [], "gradient": [], "full": []}
    for step in range(first, last):
        choice = schedule.decide(step, lr)
        if choice != "none":
            schedule.started(choice, step)
        made[choice].append(step)
    return made


def test_calm_runs_are_probed_at_the_base_interval() -> None:
    made = drive(Schedule(25), 0, 100)
    assert made["full"] == [10, 35, 60, 85]
    assert made["gradient"][:4] == [5, 15, 20, 25], "λ_grad is measured more often than λ_max"


@pytest.mark.parametrize(
    ("lambda_max", "lambda_grad", "urgency"),
    [
        (159.0, 99.0, "calm"),
        (161.0, 50.0, "near"),
        (None, 101.0, "armed"),
        (161.0, 101.0, "armed"),
        (-500.0, -500.0, "calm"),
    ],
)
def test_curvature_near_the_limit_shortens_the_interval(
    lambda_max: float | None, lambda_grad: float, urgency: Urgency
) -> None:
    schedule = Schedule(25)
    drive(schedule, 0, 10)
    schedule.observe_curvature(9, LR, lambda_max, lambda_grad)
    made = drive(schedule, 10, 40)
    assert schedule.urgency == urgency
    assert (len(made["full"]) >= 14) == (urgency != "calm")


def test_a_rising_learning_rate_is_met_with_a_probe_at_once() -> None:
    schedule = Schedule(1000)
    drive(schedule, 0, 30)
    schedule.observe_curvature(29, LR, 20.0, 1.0)
    assert drive(schedule, 30, 40)["full"] == []
    assert drive(schedule, 40, 41, lr=0.09)["full"] == [40], "20 is near the limit of 22"


def test_growing_decoupled_gradients_arm() -> None:
    for decoupling, growth, urgency in (
        (0.01, 1.3, "armed"),
        (0.9, 1.3, "calm"),
        (0.01, 1.0, "calm"),
        (float("nan"), 1.3, "calm"),
    ):
        schedule = Schedule(25)
        drive(schedule, 0, 4)
        for step in range(8):
            schedule.observe_gradient(growth**step, decoupling)
        assert schedule.urgency == urgency


def test_dense_probing_ends_some_time_after_the_last_reason() -> None:
    schedule = Schedule(25)
    drive(schedule, 0, 10)
    schedule.observe_curvature(10, LR, 190.0, 110.0)
    made = drive(schedule, 10, 10 + 4 * HOLD)
    dense = [step for step in made["full"] if step <= 10 + HOLD]
    assert len(dense) == HOLD // DENSE_EVERY
    assert schedule.urgency == "calm"
    later = [step for step in made["full"] if step > 10 + HOLD]
    assert {b - a for a, b in pairwise(later)} == {25}


@pytest.mark.parametrize(("lambda_max", "lambda_grad"), [(1.0, 1.0), (199.0, 1.0), (199.0, 199.0)])
def test_probes_take_no_more_than_their_share_of_long_steps(lambda_max: float, lambda_grad: float) -> None:
    schedule = Schedule(25)
    for _ in range(5):
        schedule.observe_step_time(0.1)
        schedule.observe_cost("full", 2.0)
        schedule.observe_cost("gradient", 0.6)
    made: dict[Choice, list[int]] = {"none": [], "gradient": [], "full": []}
    for step in range(1000):
        choice = schedule.decide(step, LR)
        made[choice].append(step)
        if choice != "none":
            schedule.started(choice, step)
            schedule.observe_curvature(step, LR, lambda_max, lambda_grad)
    budget = BUDGETS[schedule.urgency].share * 1000 * 0.1
    assert len(made["full"]) * 2.0 <= budget + 2.0
    assert len(made["gradient"]) * 0.6 <= budget + 0.6


def test_tiny_steps_do_not_starve_the_probe() -> None:
    schedule = Schedule(25)
    for _ in range(5):
        schedule.observe_step_time(0.0005)
        schedule.observe_cost("full", 0.007)
        schedule.observe_cost("gradient", 0.002)
    drive(schedule, 0, 10)
    schedule.observe_curvature(10, LR, 199.0, 10.0)
    assert len(drive(schedule, 10, 10 + HOLD)["full"]) == HOLD // DENSE_EVERY


def test_failures_back_off_and_success_ends_it() -> None:
    schedule = Schedule(10)
    tried = []
    for step in range(5, 2005):
        if schedule.decide(step, LR) != "none":
            tried.append(step)
            schedule.failed(step)
    gaps = [b - a for a, b in pairwise(tried)]
    assert gaps[:6] == [10, 20, 40, 80, 160, 320]
    assert max(gaps) == 640
    schedule.observe_curvature(1999, LR, 10.0, 10.0)
    assert schedule.decide(2000, LR) == "full"


def test_stepping_back_starts_over() -> None:
    schedule = Schedule(25)
    drive(schedule, 0, 60)
    assert drive(schedule, 20, 31)["full"] == [30]


def test_sparse_logging_counts_steps_not_calls() -> None:
    schedule = Schedule(25)
    full = []
    for step in range(0, 400, 10):
        choice = schedule.decide(step, LR)
        if choice != "none":
            schedule.started(choice, step)
        if choice == "full":
            full.append(step)
    assert full[:4] == [10, 40, 70, 100]
