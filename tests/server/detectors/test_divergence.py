"""Losses that rise and stay: after a jump, slowly, and as NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest

from server.detectors.detector_suite import DetectorSuite
from server.models import AlertLevel, Finding, Sample, Stage, Verdict
from tests.support import streams


def verdicts(losses: list[float], pause: int = 1) -> list[Verdict]:
    suite = DetectorSuite()
    return [suite.update(Sample(step=k * pause, time=0.0, scalars={"loss": loss})) for k, loss in enumerate(losses)]


def falling(records: int, seed: int = 0, noise: float = 0.02) -> list[float]:
    generator = np.random.default_rng(seed)
    return [2 * math.exp(-k / 300) + 1 + noise * float(generator.random()) for k in range(records)]


def divergence(found: list[Verdict]) -> Finding | None:
    return next((one for one in found[-1].findings if one.kind == "divergence"), None)


@pytest.mark.parametrize("pause", [1, 100])
def test_a_jump_that_stays_did_not_recover(pause: int) -> None:
    found = verdicts([loss + 4 * (k >= 300) for k, loss in enumerate(falling(2000))], pause)
    lasting = divergence(found)
    assert lasting is not None
    assert lasting.level is AlertLevel.CRITICAL
    assert lasting.title == "Loss did not recover: stays at 5.01, was 1.76"
    assert lasting.step == 300 * pause
    assert all(streams.first([verdict], "spike") is not None for verdict in found[301:])
    assert Stage.STABLE not in {verdict.stage for verdict in found[300:]}


def test_a_slow_drift_did_not_recover() -> None:
    losses = [loss + 0.002 * max(k - 600, 0) for k, loss in enumerate(falling(2000))]
    lasting = divergence(verdicts(losses))
    assert lasting is not None
    assert lasting.level is AlertLevel.CRITICAL
    assert found_before(losses, 1100)


def found_before(losses: list[float], record: int) -> bool:
    """Return whether a divergence is reported by a record."""
    return streams.first(verdicts(losses[:record]), "divergence") is not None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [0.02, 0.5])
def test_a_falling_loss_never_drifts(seed: int, noise: float) -> None:
    assert streams.first(verdicts(falling(3000, seed, noise)), "divergence") is None


def test_a_loss_that_comes_back_ends_the_finding() -> None:
    losses = [loss + 4 * (300 <= k < 700) for k, loss in enumerate(falling(1000))]
    assert divergence(verdicts(losses)) is None
    assert found_before(losses, 690)


def test_a_loss_that_stays_nan_keeps_the_run_non_finite() -> None:
    found = verdicts([*falling(300), *[math.nan] * 500])
    assert {verdict.stage for verdict in found[300:]} == {Stage.NONFINITE}
    assert all(streams.first([verdict], "nonfinite", "critical") is not None for verdict in found[300:])
