"""The level of a loss, the deviation of the next one, and the sequential test for a rise."""

from __future__ import annotations

import numpy as np
import pytest

from server.detectors.loss_level import LossLevel
from server.detectors.rise_test import LIMIT, RiseTest


def level_of(losses: list[float], pauses: list[int] | None = None) -> LossLevel:
    """Return the level after these losses, logged after these numbers of steps."""
    level = LossLevel()
    for loss, pause in zip(losses, pauses or [1] * len(losses), strict=True):
        level.follow(pause)
        level.push(loss)
    return level


def normal(records: int, seed: int = 0) -> list[float]:
    return [float(value) for value in 2 + 0.1 * np.random.default_rng(seed).standard_normal(records)]


def test_the_deviation_is_that_of_the_noise() -> None:
    found = [level_of(normal(200, seed)).deviation or 0.0 for seed in range(20)]
    assert 0.09 < float(np.median(found)) < 0.15


def test_the_level_follows_a_falling_curve_and_its_deviation_is_that_of_the_noise() -> None:
    noise = np.random.default_rng(0).standard_normal(100)
    losses = [float(5 * 0.97**k + 0.01 * noise[k]) for k in range(100)]
    level = level_of(losses)
    assert level.expected is not None
    assert level.deviation is not None
    assert losses[-1] < level.expected < losses[-4]
    assert level.deviation < 0.06


def test_a_new_logging_interval_begins_anew() -> None:
    losses = [*normal(100), 1.0, 0.99, 1.01, 1.0, 0.99, 1.01, 1.0, 0.99]
    level = level_of(losses, [1] * 102 + [500] * 6)
    assert level.expected == pytest.approx(1.0, abs=0.011)
    assert level.deviation is not None
    assert level.deviation < 0.1


def test_a_two_peaked_loss_is_recognised_and_a_rise_is_not() -> None:
    random = np.random.default_rng(1)
    peaks = [float(1.2 + 0.15 * random.random() + 1.5 * (random.random() < 0.3)) for _ in range(200)]
    assert level_of(peaks).is_two_peaked
    assert not level_of(normal(200)).is_two_peaked
    assert not level_of([*normal(100), *(loss + 2 for loss in normal(8, 1)), *normal(10, 2)]).is_two_peaked


def found_at(scores: list[float], test: RiseTest | None = None) -> tuple[int, int] | None:
    """Return the positions of a rise: where it was found, and where it began."""
    test = RiseTest() if test is None else test
    for at, score in enumerate(scores):
        if test.add(at, score, score, score, at):
            return at, test.onset
        if test.is_over:
            test.note(at, test.peak)
            test.clear()
    return None


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ([0, 6, 6], (2, 1)),
        ([0, 3.2, 3.5, 3.1, 3.4, 3.3], (5, 1)),
        ([0, 30, 0, 0, 0], None),
        ([3.1, 0, 8, 8], (3, 2)),
        ([2.4, 9, 9], (2, 1)),
    ],
)
def test_a_rise_is_found_by_its_sum_and_begins_at_its_first_record(
    scores: list[float], found: tuple[int, int] | None
) -> None:
    assert found_at(scores) == found


def test_normal_noise_makes_no_rise() -> None:
    assert found_at([float(z) for z in np.random.default_rng(0).standard_normal(200_000)]) is None


def test_outliers_that_repeat_raise_the_limit() -> None:
    test = RiseTest()
    for at in range(0, 200, 40):
        assert found_at([8.0, 0.0, -9.0], test) is None
        test.counts = [at for _ in test.counts]
    assert test.limit(200) > 2 * LIMIT
    assert test.limit(2_000) == LIMIT
