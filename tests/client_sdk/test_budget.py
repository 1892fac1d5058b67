"""The budget holds over every window of 200 steps, and says what is left of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_sdk.budget import FIRST, WINDOW, Budget


@given(
    share=st.floats(0.01, 1.0),
    costs=st.lists(st.floats(0.0, 30.0), min_size=1, max_size=20),
    times=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=7),
)
def test_no_window_takes_more_than_its_share(share: float, costs: list[float], times: list[float]) -> None:
    budget = Budget(share)
    spent = []
    for step in range(3 * WINDOW):
        cost = costs[step % len(costs)]
        is_allowed = budget.allows(cost)
        if is_allowed:
            budget.spend(cost, "curvature")
        spent.append(cost if is_allowed else 0.0)
        budget.end_step(times[step % len(times)])
    longest = max(times)
    for first in range(2 * WINDOW):
        assert sum(spent[first : first + WINDOW]) <= share * WINDOW * longest * (1 + 1e-9)


def test_nothing_is_allowed_before_the_time_of_a_step_is_known() -> None:
    budget = Budget(0.05)
    for _ in range(FIRST - 1):
        budget.end_step(0.1)
        assert not budget.allows(1e-9)
    budget.end_step(0.1)
    assert budget.allows(0.05 * WINDOW * 0.1)


def test_a_pause_of_the_training_is_not_time_to_share() -> None:
    budget = Budget(0.05)
    for step in range(100):
        budget.end_step(60.0 if step == 50 else 0.1)
    assert budget.step_time == 0.1


def test_one_purpose_may_not_use_up_the_part_of_the_other() -> None:
    budget = Budget(0.1)
    for _ in range(FIRST):
        budget.end_step(1.0)
    budget.spend(12.0, "layers")
    assert not budget.allows(1.0, "layers", 0.6), "0.6 of 20 step times are spent"
    assert budget.allows(8.0, "curvature")
    assert not budget.allows(8.1, "curvature")
    assert budget.spent("layers") == 12.0
    assert budget.spent() == 12.0


def test_what_was_spent_is_forgotten_after_a_window() -> None:
    budget = Budget(0.05)
    budget.spend(3.0, "curvature")
    for _ in range(WINDOW):
        budget.end_step(1.0)
    assert budget.used() == 0.0
    assert budget.allows(10.0)


def test_the_share_that_was_used_is_that_of_the_steps_so_far() -> None:
    budget = Budget(0.05)
    for _ in range(10):
        budget.spend(0.2, "curvature")
        budget.spend(0.1, "layers")
        budget.end_step(1.0)
    assert budget.used("curvature") == pytest.approx(0.2)
    assert budget.used() == pytest.approx(0.3)


def test_what_is_left_is_what_is_allowed() -> None:
    budget = Budget(0.05)
    assert budget.left() == 0.0, "the time of a step is not known yet"
    for _ in range(WINDOW):
        budget.end_step(0.1)
    budget.spend(0.25, "layers")
    assert budget.left() == pytest.approx(0.75, rel=0.01)
    budget.spend(2.0, "curvature")
    assert budget.left() == 0.0
    assert Budget(math.inf).left() == math.inf


def test_what_a_slow_stretch_would_allow_is_not_spent() -> None:
    budget = Budget(0.05)
    for seconds in (0.3, 0.1):
        for _ in range(40):
            budget.end_step(seconds)
        assert budget.left() == pytest.approx(0.05 * WINDOW * seconds)
    for _ in range(40):
        budget.end_step(0.3)
    assert 0.05 * WINDOW * 0.2 < budget.left() < 0.05 * WINDOW * 0.3, "the mean of all steps"


def test_no_limit() -> None:
    budget = Budget(math.inf)
    assert budget.allows(1e9)
    assert budget.steps_between(1e9) == 1


def test_steps_between_measurements_use_the_budget() -> None:
    budget = Budget(0.05)
    for _ in range(FIRST):
        budget.end_step(0.1)
    assert budget.steps_between(0.4) == 80
    assert budget.steps_between(0.4, part=0.5) == 160
    assert budget.steps_between(0.0) == 1


def test_the_time_of_a_step_follows_a_change() -> None:
    budget = Budget(0.05)
    for _ in range(100):
        budget.end_step(0.1)
    for _ in range(40):
        budget.end_step(0.2)
    assert budget.step_time == 0.2
