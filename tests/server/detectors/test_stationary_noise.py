"""Messages on losses that are stationary noise around a constant, where every message is false."""

from __future__ import annotations

import numpy as np
import pytest

from server.alerts.lifecycle import AlertLifecycle
from server.detectors.detector_suite import DetectorSuite
from server.models import AlertLevel, Sample

RECORDS = 2_000


def heavy_tailed(freedom: int, seed: int) -> list[float]:
    """Return noise of Student's t with so many degrees of freedom, divided by √3."""
    values = np.random.default_rng(seed).standard_t(freedom, RECORDS) / np.sqrt(3)
    return [float(value) for value in values]


def correlated(memory: float, seed: int) -> list[float]:
    """Return AR(1) noise of variance one with this coefficient."""
    values = [float(value) for value in np.random.default_rng(seed).standard_normal(RECORDS)]
    for at in range(1, RECORDS):
        values[at] = memory * values[at - 1] + (1 - memory**2) ** 0.5 * values[at]
    return values


def messages(noise: list[float]) -> int:
    """Return the number of alerts of level warning or above on a loss that varies by a tenth of its level."""
    suite, lifecycle, found = DetectorSuite(), AlertLifecycle("noise"), set()
    for step, value in enumerate(noise):
        verdict = suite.update(Sample(step=step, time=float(step), scalars={"loss": 2 + 0.2 * value}))
        found |= {one.id for one in lifecycle.apply(verdict, float(step)) if one.level != AlertLevel.WATCH}
    return len(found)


def test_independent_noise_raises_no_message() -> None:
    assert sum(messages(correlated(0.0, seed)) for seed in range(3)) == 0
    assert sum(messages(heavy_tailed(3, seed)) for seed in range(3)) == 0


def test_very_heavy_tails_raise_one_message_in_a_thousand_records_at_most() -> None:
    assert sum(messages(heavy_tailed(2, seed)) for seed in range(6)) <= 12


@pytest.mark.parametrize(("memory", "per_1000"), [(0.8, 1.0), (0.95, 2.0)])
def test_correlated_noise_raises_few_messages(memory: float, per_1000: float) -> None:
    """A loss that wanders for twenty records at a time may raise twice as many."""
    found = sum(messages(correlated(memory, seed)) for seed in range(20))
    assert found <= per_1000 * 20 * RECORDS / 1000
