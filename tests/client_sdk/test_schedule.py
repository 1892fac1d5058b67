"""Readings are rare while a run is calm, dense when it is armed, and never exceed the budget."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from client_sdk.budget import FIRST, WINDOW, Budget
from client_sdk.curvature.schedule import DENSE_EVERY, HOLD, Choice, Schedule, Urgency

LR = 0.01  # stability limit 200


def unlimited(every: int) -> Schedule:
    return Schedule(every, Budget(math.inf))


def drive(schedule: Schedule, first: int, last: int, lr: float = LR) -> dict[Choice, list[int]]:
    """Log every step in [first, last) and return the steps of each kind of measurement."""
    made: dict[Choice, list[int]] = {"none": [], "gradient": [], "track": [], "both": [], "reading": []}
    for step in range(first, last):
        choice = schedule.decide(step, lr)
        if choice != "none":
            schedule.started(choice, step)
        if choice == "both":
            schedule.round_ended(step)
        made[choice].append(step)
    return made


def with_step_time(share: float, step_time: float = 0.1) -> Budget:
    budget = Budget(share)
    for _ in range(FIRST):
        budget.end_step(step_time)
    return budget


def test_calm_runs_are_probed_at_the_base_interval() -> None:
    made = drive(unlimited(25), 0, 100)
    assert made["both"] == [10, 35, 60, 85]
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
    schedule = unlimited(25)
    drive(schedule, 0, 10)
    if lambda_max is not None:
        schedule.observe_lambda_max(9, LR, lambda_max)
    schedule.observe_lambda_grad(9, LR, lambda_grad)
    made = drive(schedule, 10, 40)
    assert schedule.urgency == urgency
    assert (len(made["both"]) >= 14) == (urgency != "calm")


def test_a_rising_learning_rate_is_met_with_a_reading_at_once() -> None:
    schedule = unlimited(1000)
    drive(schedule, 0, 30)
    schedule.observe_lambda_max(29, LR, 20.0)
    assert drive(schedule, 30, 40)["both"] == []
    assert drive(schedule, 40, 41, lr=0.09)["both"] == [40], "20 is near the limit of 22"


def test_a_crossing_that_the_last_readings_announce_is_met_with_a_reading() -> None:
    schedule = unlimited(1000)
    drive(schedule, 0, 41)
    schedule.observe_lambda_max(20, LR, 200.0 * math.exp(-0.4))
    schedule.observe_lambda_max(40, LR, 200.0 * math.exp(-0.298))  # log λ_max reaches that of the limit at step 98.4
    assert drive(schedule, 41, 99)["both"] == []
    assert drive(schedule, 99, 100)["both"] == [99]


def test_growing_decoupled_gradients_arm() -> None:
    for decoupling, growth, urgency in (
        (0.01, 1.3, "armed"),
        (0.9, 1.3, "calm"),
        (0.01, 1.0, "calm"),
        (float("nan"), 1.3, "calm"),
    ):
        schedule = unlimited(25)
        drive(schedule, 0, 4)
        for step in range(8):
            schedule.observe_gradient(growth**step, decoupling)
        assert schedule.urgency == urgency


def test_dense_readings_end_some_time_after_the_last_reason() -> None:
    schedule = unlimited(25)
    drive(schedule, 0, 10)
    schedule.observe_lambda_max(10, LR, 190.0)
    schedule.observe_lambda_grad(10, LR, 110.0)
    made = drive(schedule, 10, 10 + 4 * HOLD)
    dense = [step for step in made["both"] if step <= 10 + HOLD]
    assert len(dense) == HOLD // DENSE_EVERY
    assert schedule.urgency == "calm"
    later = [step for step in made["both"] if step > 10 + HOLD]
    assert {b - a for a, b in pairwise(later)} == {25}


@pytest.mark.parametrize("lambda_grad", [1.0, 199.0])
@pytest.mark.parametrize("lambda_max", [1.0, 199.0])
@pytest.mark.parametrize("cost", [0.05, 0.4, 0.9])
def test_measurements_stay_within_the_budget_armed_or_not(cost: float, lambda_max: float, lambda_grad: float) -> None:
    budget = with_step_time(0.05)
    schedule = Schedule(25, budget)
    spent = []
    for step in range(1000):
        choice = schedule.decide(step, LR)
        assert choice != "both", "no step is lengthened by more than one product"
        seconds = 0.0
        if choice != "none":
            schedule.started(choice, step)
            schedule.observe_cost(choice, cost)
            seconds = cost
            schedule.observe_lambda_grad(step, LR, lambda_grad)
            if choice == "track":
                schedule.observe_lambda_max(step, LR, lambda_max)
                schedule.round_ended(step)
        budget.spend(seconds, "curvature")
        budget.end_step(0.1)
        spent.append(seconds)
    assert max(sum(spent[at : at + WINDOW]) for at in range(1000 - WINDOW)) <= 0.05 * WINDOW * 0.1 + 1e-9
    assert sum(spent) > 0.3 * 0.05 * 1000 * 0.1, "a good part of the budget is used"


def brief(share: float, step_time: float = 1e-3) -> Schedule:
    return Schedule(25, with_step_time(share, step_time), reads_at_point=True)


def test_brief_steps_are_read_whole_and_within_the_budget() -> None:
    budget = with_step_time(0.05, 1e-3)
    schedule = Schedule(25, budget, reads_at_point=True)
    spent, made = [], []
    for step in range(1000):
        choice = schedule.decide(step, LR)
        seconds = 0.0
        if choice != "none":
            made.append(choice)
            seconds = 4e-3 if choice == "reading" else 5e-3
            schedule.started(choice, step)
            schedule.observe_cost(choice, seconds)
            schedule.observe_lambda_max(step, LR, 100.0)
            schedule.round_ended(step)
        budget.spend(seconds, "curvature")
        budget.end_step(1e-3)
        spent.append(seconds)
    assert set(made) <= {"reading", "both"}
    assert len(made) >= 6
    assert made[0] == "reading", "λ_max comes first"
    assert max(sum(spent[at : at + WINDOW]) for at in range(1000 - WINDOW)) <= 0.05 * WINDOW * 1e-3 + 1e-9


def test_brief_steps_are_read_product_by_product_where_a_reading_exceeds_the_budget() -> None:
    schedule = brief(0.02)
    assert not schedule.is_brief, "the 5.5 steps of a reading are more than 0.9 of the 4 that the budget allows"
    assert drive(schedule, 0, 60)["reading"] == []


def test_a_large_budget_pays_for_both_with_brief_steps() -> None:
    made = drive(brief(2.0), 0, 60)
    assert made["both"] or made["reading"]
    assert made["track"] == []


def test_nothing_is_due_while_it_rests() -> None:
    budget = with_step_time(0.05, 1e-3)
    resting, deciding = (Schedule(25, budget, reads_at_point=True) for _ in range(2))
    rest = 0
    for step in range(400):
        choice = deciding.decide(step, LR)
        if rest:
            rest -= 1
            resting.pass_by(step)
            assert choice == "none"
        else:
            assert resting.decide(step, LR) == choice
            if choice == "none":
                rest = resting.records_to_rest(LR, 1e-4)
        if choice != "none":
            for schedule in (resting, deciding):
                schedule.started(choice, step)
                schedule.observe_cost(choice, 4e-3)
                schedule.round_ended(step)
            budget.spend(4e-3, "curvature")
    assert resting.expects(LR) == deciding.expects(LR)


@pytest.mark.parametrize(("step_time", "most"), [(1e-3, 20), (5e-3, 80), (2e-2, 160), (0.1, 160)])
def test_deciding_takes_a_small_part_of_the_budget(step_time: float, most: int) -> None:
    """A decision takes 200 µs on a busy machine, which is a fifth of the shortest step."""
    budget = with_step_time(0.2, step_time)
    schedule = Schedule(1000, budget)
    schedule.decide(0, LR)
    budget.spend(0.2 * 200 * step_time, "curvature")  # so that nothing is due
    decisions, at = 0, 1
    while at <= 160:
        assert schedule.decide(at, LR) == "none"
        decisions += 1
        for _ in range(schedule.records_to_rest(LR, 2e-4)):
            at += 1
            schedule.pass_by(at)
        at += 1
    assert decisions <= most


def test_ranks_that_decide_together_do_not_rest() -> None:
    schedule = Schedule(25, with_step_time(0.05, 1e-3), reads_at_point=True)
    schedule.decide_together()
    drive(schedule, 0, 2)
    assert schedule.records_to_rest(LR, 1e-3) == 0
    assert not schedule.is_brief


def test_a_measurement_is_begun_only_if_the_longest_of_the_last_ones_fits() -> None:
    """Costs vary with what else the machine does, and the next one may take as long as the longest before it."""
    for costs, is_begun in (((0.7, 0.7, 0.7), True), ((0.7, 0.7, 0.95), False), ((0.5, 0.5, 5.0), True)):
        budget = with_step_time(0.05)  # allows 1.0 second
        schedule = Schedule(25, budget)
        for seconds in costs:
            schedule.observe_cost("track", seconds)
        assert bool(drive(schedule, 0, 100)["track"]) == is_begun, costs


def test_what_is_too_dear_for_the_budget_is_not_begun() -> None:
    budget = with_step_time(0.05)
    schedule = Schedule(25, budget)
    schedule.observe_cost("track", 1.1)
    assert schedule.is_beyond_budget
    assert schedule.reading_steps == pytest.approx(11.0)
    assert drive(schedule, 0, 100)["track"] == []


def test_lambda_max_comes_first_while_it_is_unknown() -> None:
    schedule = Schedule(25, with_step_time(0.5))
    made = drive(schedule, 0, 60)
    assert made["track"]
    assert [step for step in made["gradient"] if step >= made["track"][0]] == []


def test_a_cost_that_was_an_exception_is_forgotten() -> None:
    """Nothing is measured while the last measurement took more than the budget, so that nothing would correct it."""
    budget = with_step_time(0.05)  # allows 1.0 second
    schedule = Schedule(25, budget)
    schedule.observe_cost("track", 1.5)
    schedule.observe_cost("gradient", 1.5)
    assert drive(schedule, 0, 200)["track"] == []
    assert drive(schedule, 200, 1000)["track"]


def test_failures_back_off_and_success_ends_it() -> None:
    schedule = unlimited(10)
    tried = []
    for step in range(5, 2005):
        if schedule.decide(step, LR) != "none":
            tried.append(step)
            schedule.failed(step)
    gaps = [b - a for a, b in pairwise(tried)]
    assert gaps[:6] == [10, 20, 40, 80, 160, 320]
    assert max(gaps) == 640
    schedule.succeeded()
    assert schedule.decide(2000, LR) == "both"


def test_stepping_back_starts_over() -> None:
    schedule = unlimited(25)
    drive(schedule, 0, 60)
    assert drive(schedule, 20, 31)["both"] == [30]


def test_sparse_logging_counts_steps_not_calls() -> None:
    schedule = unlimited(25)
    both = []
    for step in range(0, 400, 10):
        choice = schedule.decide(step, LR)
        if choice != "none":
            schedule.started(choice, step)
        if choice == "both":
            schedule.round_ended(step)
            both.append(step)
    assert both[:4] == [10, 40, 70, 100]
