"""Forecasts of spikes on streams whose spike is known, and the growth that theory predicts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from server.detectors.calibration import RANGES
from server.detectors.forecast import SLACK, ranged, theoretical_growth
from server.detectors.period_two import stability_ratio
from server.models import PredictedStep
from tests.support import streams


def over(rate: float) -> float:
    """Return the ratio to the limit at which a direction grows at this rate."""
    return stability_ratio(rate, beta1=0.9)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("decoupling", [1e-3, 1e-6, 1e-9])
def test_pure_exponential_is_forecast_before_it_comes(rate: float, decoupling: float) -> None:
    start = 100
    due = start + math.ceil(0.5 * math.log(streams.ONSET / decoupling) / rate)
    found = streams.verdicts(
        streams.exponential(
            start=start, rate=rate, decoupling=decoupling, steps=due + 10, onset=streams.ONSET, ratio=over(rate)
        )
    )
    opened = streams.first(found, "spike-predicted", "warning", "critical")
    came = streams.first(found, "spike")
    assert opened is not None
    assert came is not None
    assert start < opened[0] < due <= came[0] <= due + 2


@pytest.mark.parametrize("rate", [0.1, 0.2])
def test_band_holds_the_date_of_a_pure_exponential(rate: float) -> None:
    decoupling = 1e-9
    due = 100 + math.ceil(0.5 * math.log(streams.ONSET / decoupling) / rate)
    found = streams.verdicts(
        streams.exponential(
            start=100, rate=rate, decoupling=decoupling, steps=due, onset=streams.ONSET, ratio=over(rate)
        )
    )
    # The slope of log‖g‖ covers 12 steps, so the forecast has settled 15 steps into the climb.
    bands = [v.forecast for v in found if 115 <= v.step < due - 3]
    inside = [band is not None and band.low <= due <= band.high for band in bands]
    assert len(inside) > 10
    assert np.mean(inside) > 0.9


def test_forecast_is_never_in_the_past() -> None:
    found = streams.verdicts(streams.approaching(400, crossing=150, rate=0.004, decoupling=1e-4))
    dated = [(v.step, v.forecast) for v in found if v.forecast is not None]
    assert dated
    assert all(step < band.low <= band.best <= band.high for step, band in dated)


def test_rising_curvature_is_a_watch_first_and_a_warning_later() -> None:
    found = streams.verdicts(streams.approaching(400, crossing=250, rate=0.002, decoupling=1e-6))
    watch = streams.first(found, "spike-predicted")
    warning = streams.first(found, "spike-predicted", "warning", "critical")
    assert watch is not None
    assert warning is not None
    assert watch[1].level == "watch"
    assert watch[0] < 250 <= warning[0]
    crossing = watch[1].evidence["crossing_step"]
    assert isinstance(crossing, int)
    assert abs(crossing - 250) <= 10


def test_crossing_step_is_kept_once_it_is_past() -> None:
    found = streams.verdicts(streams.approaching(300, crossing=250, rate=0.002, decoupling=1e-6))
    last = found[-1].findings[0]
    assert last.evidence["crossing_step"] in range(250, 256)
    assert last.evidence["lambda_max"] == pytest.approx(200 * math.exp(0.002 * 50), rel=0.001)


def test_curvature_over_the_limit_alone_is_not_an_alarm() -> None:
    samples = (
        streams.sample(step, 1.0, decoupling=0.8, lambda_max=230.0 + 10 * math.sin(step), lambda_grad=90.0)
        for step in range(1, 500)
    )
    assert streams.first(streams.verdicts(samples), "spike-predicted", "warning", "critical") is None


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_a_date_has_the_range_of_its_kind_of_evidence(kind: tuple[str, bool], steps: int) -> None:
    sign, is_curved = kind
    low, high = RANGES[kind]
    found = ranged(PredictedStep(low=101, best=100 + steps, high=500), 100, sign, is_curved=is_curved)
    assert found.best == 100 + steps
    assert found.low - 100 == max(1, min(math.floor(low * steps), steps))
    assert found.high - 100 == max(math.ceil(high * steps), steps) + SLACK
    assert 100 < found.low <= found.best < found.high


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("ratio", [0.5, 0.99, 1.02, 1.3])
def test_theory_agrees_with_momentum_simulated_on_a_quadratic(beta1: float, ratio: float) -> None:
    curvature = ratio * 2 * (1 + beta1) / (1 - beta1)  # limit of EMA momentum at learning rate 1
    x, m, sizes = 1.0, 0.0, []
    for _ in range(400):
        m = beta1 * m + (1 - beta1) * curvature * x
        x -= m
        sizes.append(max(math.hypot(x, m), 1e-300))
    growth = math.log(sizes[-1] / sizes[-101]) / 100
    assert theoretical_growth(ratio, beta1) == pytest.approx(max(growth, 0.0), abs=2e-3)
