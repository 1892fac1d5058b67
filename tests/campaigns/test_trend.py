"""The trend of memory samples is flat despite noise, and a leak is found."""

from __future__ import annotations

import numpy as np
import pytest

from campaigns.soak.trend import trend

MINUTES = [number / 12 for number in range(360)]


def test_a_warm_up_and_noise_are_flat() -> None:
    noise = np.random.default_rng(1).normal(0.0, 1.0, len(MINUTES))
    samples = [150.0 - 60.0 * 0.5**at + jitter for at, jitter in zip(MINUTES, noise, strict=True)]
    assert trend(MINUTES, samples).is_flat


def test_a_leak_is_found_despite_noise() -> None:
    noise = np.random.default_rng(2).normal(0.0, 1.0, len(MINUTES))
    found = trend(MINUTES, [150.0 + 0.5 * at + jitter for at, jitter in zip(MINUTES, noise, strict=True)])
    assert not found.is_flat
    assert found.slope == pytest.approx(0.5, abs=0.05)
    assert found.growth == pytest.approx(7.5, abs=0.8)
    assert abs(found.slope - 0.5) < found.margin < 0.1


def test_a_slow_leak_is_found_if_it_is_certain() -> None:
    noise = np.random.default_rng(3).normal(0.0, 0.2, len(MINUTES))
    found = trend(MINUTES, [150.0 + 0.15 * at + jitter for at, jitter in zip(MINUTES, noise, strict=True)])
    assert found.growth < 4.0
    assert not found.is_flat


def test_a_single_jump_is_not_a_slope() -> None:
    found = trend(MINUTES, [150.0 + (at > 20) for at in MINUTES])
    assert found.slope > 0.05
    assert found.is_flat


def test_too_few_samples_have_no_trend() -> None:
    with pytest.raises(ValueError, match="19 samples"):
        trend(list(range(19)), [1.0] * 19)
