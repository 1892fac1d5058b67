"""Outliers of the loss: which records are one, and how they are compared."""

from __future__ import annotations

import numpy as np

from server.coincidence import correlation, is_same_step
from server.detectors.detector_suite import DetectorSuite
from server.models import Outlier, Sample


def outliers(losses: list[float], *, interval: int = 1, **scalars: float) -> list[Outlier]:
    """Return the outliers of a run with these losses; each scalar grows by its value with every record."""
    suite, found = DetectorSuite(), []
    for at, loss in enumerate(losses):
        others = {name: value * at for name, value in scalars.items()}
        verdict = suite.update(Sample(step=at * interval, time=0.0, scalars={"loss": loss, **others}))
        if verdict.outlier is not None and verdict.outlier.deviations:
            found.append(verdict.outlier)
    return found


def noisy(seed: int, own: int = 0, records: int = 400) -> list[float]:
    """Return losses with the noise of a data order, and little of their own."""
    noise = 0.05 * np.random.default_rng(seed).standard_normal(records)
    noise += 0.005 * np.random.default_rng(1_000 + own).standard_normal(records)
    return [float(value) for value in 2 + noise]


def test_one_record_that_jumps_is_an_outlier_and_a_fall_is_none() -> None:
    losses = noisy(1)
    losses[200], losses[300] = 3.0, 1.0
    assert [(one.step, one.is_quiet) for one in outliers(losses) if one.deviations > 10] == [(200, False)]


def test_a_rise_that_stays_is_one_outlier_at_its_first_record() -> None:
    losses = noisy(1)
    losses[200:] = [loss + 2 for loss in losses[200:]]
    assert [one.step for one in outliers(losses) if one.deviations > 10] == [200]


def test_a_rise_before_enough_losses_is_no_outlier_afterwards() -> None:
    assert outliers([50.0] * 30 + [200.0] * 20) == []


def test_patterns_of_the_same_data_are_alike_and_others_are_not() -> None:
    found = []
    for seed, own in ((1, 1), (1, 2), (2, 3)):
        losses = noisy(seed, own)
        losses[200] = 3.0
        found += [one for one in outliers(losses) if one.step == 200]
    same, other = correlation(found[0].pattern, found[1].pattern), correlation(found[0].pattern, found[2].pattern)
    assert same is not None
    assert same > 0.9
    assert other is not None
    assert abs(other) < 0.4


def test_positions_in_the_data_count_more_than_steps() -> None:
    losses, half = noisy(1), noisy(2)
    losses[100], half[200] = 3.0, 3.0
    (one,) = [one for one in outliers(losses, data_position=8) if one.deviations > 10]
    (other,) = [other for other in outliers(half, data_position=4) if other.deviations > 10]
    assert (one.axis, one.position, other.position) == ("data_position", 800.0, 800.0)
    assert is_same_step(one, other)
    assert not is_same_step(one, Outlier(step=one.step, axis="data_position", position=400.0))
