"""The budget holds over whole trainings whose times are simulated: steps vary, the machine gets slower and faster."""

from __future__ import annotations

import math

import numpy as np
import pytest

from client_sdk.budget import WINDOW, Budget
from client_sdk.curvature.schedule import Choice, Cost, Schedule

SHARE = 0.05
STEPS = 700
PRODUCTS = 4  # of a reading


def worst_share(seed: int, share: float = SHARE) -> tuple[float, int]:
    """Train with random times and return the largest share over any window, and the number of measurements."""
    rng = np.random.default_rng(seed)
    budget = Budget(share)
    schedule = Schedule(25, budget, reads_at_point=True)
    usual = 10 ** rng.uniform(-3, -1.5)  # seconds of a step
    costs: dict[Cost, float] = {
        "gradient": rng.uniform(2.5, 4), "track": rng.uniform(2.5, 4), "both": rng.uniform(6, 10),
        "reading": rng.uniform(3.5, 9), "step": 1.5,
    }  # fmt: skip
    drift, period = rng.uniform(0, 0.25), rng.uniform(100, 500)
    own, spent = np.zeros(STEPS), np.zeros(STEPS)
    made = 0
    for step in range(STEPS):
        pace = usual * (1 + drift * math.sin(2 * math.pi * step / period))
        own[step] = pace * rng.lognormal(0, 0.1)
        choice: Choice = schedule.decide(step, 0.01)
        if choice != "none":
            schedule.started(choice, step)
            spent[step] = costs[choice] * pace * rng.lognormal(0, 0.1)
            if choice in ("reading", "both"):  # it goes on while the next product fits
                product = spent[step] / PRODUCTS
                spent[step] = product * min(PRODUCTS, max(1, schedule.allowance // product))
            schedule.observe_cost(choice, spent[step])
            budget.spend(spent[step], "curvature")
            if choice in ("reading", "both"):
                schedule.round_ended(step)
                schedule.observe_lambda_max(step, 0.01, 300.0)  # above the limit, so that all of the budget is wanted
            made += 1
        budget.end_step(own[step])
    sums = (np.convolve(each, np.ones(WINDOW), "valid") for each in (spent, own))
    return float(np.divide(*sums).max()), made


@pytest.mark.parametrize("seed", range(20))
def test_no_window_takes_more_than_the_budget(seed: int) -> None:
    worst, made = worst_share(seed)
    assert worst <= SHARE
    assert made >= 3
