"""The detector of exploding gradient norms, on the scalar `grad_norm` alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from server.detectors.detector_suite import DetectorSuite
from server.models import AlertLevel, Finding, Sample


def explosions(losses: list[float], norms: list[float], pause: int = 1) -> list[tuple[int, Finding]]:
    """Return each record of a log with the finding about the gradient norm that holds there."""
    suite, found = DetectorSuite(), []
    for record, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        verdict = suite.update(Sample(step=record * pause, time=0.0, scalars={"loss": loss, "grad_norm": norm}))
        found += [(record, one) for one in verdict.findings if one.kind == "gradient-explosion"]
    return found


def calm(records: int, noise: float = 0.08, seed: int = 0) -> list[float]:
    generator = np.random.default_rng(seed)
    return [math.exp(noise * float(generator.standard_normal())) for _ in range(records)]


@pytest.mark.parametrize("pause", [1, 10])
def test_an_explosion_is_reported_at_the_second_record_before_the_loss(pause: int) -> None:
    """The norms of a 176B run in the four records before its loss jumped."""
    norms = [*calm(400), 3.9, 9.9, 66.0, 600.0, 600.0, *calm(30, seed=1)]
    losses = [2.0 * wobble for wobble in calm(404, 0.005)] + [7.0] * 31
    first, finding = explosions(losses, norms, pause)[0]
    assert first == 401
    assert finding.level is AlertLevel.WARNING
    assert finding.step == 400 * pause


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.4])
def test_noise_of_the_gradient_norm_is_silent(noise: float) -> None:
    assert not any(explosions([2.0] * 5000, calm(5000, noise, seed)) for seed in range(3))


def test_a_single_high_norm_is_silent() -> None:
    assert not explosions([2.0] * 401, [*calm(300), 6.0, *calm(100, seed=1)])


def test_norms_of_a_spike_in_progress_are_no_news() -> None:
    losses = [*calm(300, 0.01), 1.0, 5.0, *[6.0] * 8, *calm(60, 0.01, seed=1)]
    norms = [*calm(303), *[50.0] * 7, *calm(60, seed=1)]
    assert not explosions(losses, norms)
