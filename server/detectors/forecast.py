"""The forecast of a spike: a step with its range, from the growth of the gradient, the trend of λ_max, and theory.

Owns the arithmetic of the forecast; does not decide whether there is anything to forecast.

A direction of curvature λ whose gradient is c holds c²/(2λ) of the loss. The date is when that loss, at its growth,
reaches what counts as the onset of a spike: the amplitude has to climb by ½·log(rise / held). What the directions
hold is measured (`mode_loss`) or, where no direction is followed, what one at its limit would hold if all of the
gradient lay along it. The growth per step is the mean of the slope that was measured and of the one that belongs to
the present ratio of λ_max to its limit (`theoretical_growth`), and it increases with that ratio, whose trend is
continued. No constant is fitted to recordings here but the range. Where neither growth nor loss is known, log‖g‖ has
to climb by −½·log(Σg²/Σv̂), until the gradient is as large as √v̂ remembers.

Measurements: docs/explanation/forecast.md.
"""

from __future__ import annotations

import math
from typing import Final

from server.detectors.calibration import EARLIEST, LATEST, RANGES
from server.detectors.signals import Reading
from server.models import PredictedStep

HORIZON: Final = 400
"""Number of steps ahead beyond which nothing is forecast."""
CLIMBING: Final = 0.02
"""Slope of log‖g‖ per step below which growth cannot be told from noise."""
FITTING: Final = 0.4
"""Smallest share of the variance of log‖g‖ that its slope must explain to count as growth."""
HIDDEN: Final = 8.0
"""Remaining climb of log‖g‖ that doubles the time from the crossing to the spike while no growth is seen.

The growing direction hides under the noise of ‖g‖, and an update below the resolution of the weights does not grow
(measured: 2 to 3 times the steps at a climb of 14).
"""
SWINGING: Final = 0.05
"""Growth of the gradient along the unstable directions per step from which it is an oscillation that builds up."""
ALTERNATING: Final = 0.75
"""Share of the last steps at which that gradient must have changed its sign; drift changes it rarely."""
FASTEST: Final = 20.0
"""Largest growth per step that is reckoned with, so that no value overflows."""
STEEPEST: Final = 0.05
"""Largest rise of log λ_max per step that is continued."""
ACCELERATION: Final = 0.67
"""Ratio of real to naive remaining steps where only the slope is known (measured: 16 steps instead of 24)."""
EARLIEST_TREND, LATEST_TREND = 0.5, 1.8
"""Range of a forecast from the trend of λ_max alone, in units of the remaining steps."""
SLACK: Final = 1
"""Number of steps that are added to the late end of every range."""


def theoretical_growth(ratio: float, beta1: float) -> float:
    """Return the growth of log‖g‖ per step along a direction whose curvature is `ratio` × the limit 2/η.

    Along an eigenvector, momentum turns θ into a recurrence of second order with the characteristic polynomial
    z² + (1+β1)(2·ratio − 1)·z + β1 = 0; at ratio 1 its largest root is −1, and above it the oscillation grows by
    log|z| per step (Cohen et al. 2022, arXiv 2207.14484, section 2).

    >>> theoretical_growth(1.0, 0.9)
    0.0
    >>> round(theoretical_growth(1.01, 0.9), 3)
    0.154
    """
    if ratio <= 1.0:
        return 0.0
    trace = (1.0 + beta1) * (2.0 * min(ratio, 1e6) - 1.0)
    return math.log(0.5 * (trace + math.sqrt(max(trace * trace - 4.0 * beta1, 0.0))))


def remaining_climb(reading: Reading) -> float | None:
    """Return by how much log‖g‖ must still grow until RMS_t ≈ 1; None without second moments.

    >>> round(remaining_climb(Reading(step=1, decoupling=0.01)), 2)
    2.3
    """
    if reading.decoupling is None:
        return None
    return max(0.5 * math.log(1.0 / reading.decoupling), 0.0)


def crossing_step(reading: Reading) -> int | None:
    """Return the step at which λ_max crossed the limit, or at which its trend will cross it.

    None if λ_max is below the limit and does not rise fast enough to cross it within the horizon.
    """
    if reading.stability is None:
        return None
    if reading.above_steps > 0:
        return reading.step - reading.above_steps + 1
    if reading.stability_growth <= 0:
        return None
    steps = -math.log(max(reading.stability, 1e-12)) / reading.stability_growth
    return reading.step + math.ceil(max(steps, 0.0)) if steps <= HORIZON else None


def forecast(reading: Reading, rise: float | None = None) -> PredictedStep | None:
    """Return the step at which a spike is expected, with its range; None if the evidence gives none.

    ``rise`` is the rise of the loss, in its own unit, that counts as the onset of a spike.

    >>> forecast(Reading(step=100, decoupling=1e-4, growth=0.2, growth_fit=0.9))
    PredictedStep(low=108, best=116, high=133)
    >>> swinging = Reading(step=100, mode_loss=1e-6, mode_growth=0.2, mode_alternation=1.0, stability=1.0)
    >>> forecast(swinging, rise=1e-2)
    PredictedStep(low=112, best=124, high=149)
    """
    build_up = _build_up(reading, rise)
    curved = reading.stability is not None and reading.stability_growth > 0
    if build_up is not None:
        climb, growth = build_up
        steps = _steps_to_climb(reading, climb, growth)
        low, high = EARLIEST, LATEST
    else:
        hidden = remaining_climb(reading)
        if hidden is None or not curved:
            return None
        steps = _steps_to_climb(reading, hidden, 0.0)
        if steps is not None:
            crossing = crossing_step(reading)
            before = 0.0 if crossing is None else min(max(float(crossing - reading.step), 0.0), steps)
            steps = before + (steps - before) * (1.0 + hidden / HIDDEN)
        low, high = EARLIEST_TREND, LATEST_TREND
    if steps is None or steps > HORIZON:
        return None
    best = max(1, round(steps))
    return PredictedStep(
        low=reading.step + max(1, min(math.floor(low * steps), best)),
        best=reading.step + best,
        high=reading.step + math.ceil(high * steps) + SLACK,
    )


def trend(reading: Reading) -> float:
    """Return the rise of log λ_max per step that a forecast continues: as much of it as its trend explains."""
    return min(max(reading.stability_growth, 0.0), STEEPEST) * reading.stability_fit


def is_swinging(reading: Reading) -> bool:
    """Return whether the gradient along the directions of largest curvature grows and changes its sign at every step.

    This is the first instability, which has period two; drift changes the sign rarely.
    """
    return reading.mode_loss is not None and reading.mode_growth > SWINGING and reading.mode_alternation > ALTERNATING


def _build_up(reading: Reading, rise: float | None) -> tuple[float, float] | None:
    """Return by how much the logarithm of the amplitude must still grow, and its growth per step; None if none is seen.

    The directions hold c²/(2λ) of the loss, so that the climb is ½·log(rise / held). Where no direction is followed,
    all of the gradient is taken to lie along one at its limit. The growth is averaged over 12 steps, so that it lags
    behind while it increases; the growth that belongs to the present ratio to the limit does not, but need not be
    reached yet. The mean of both is unbiased on recorded runs.
    """
    is_clear = reading.growth_fit > FITTING or reading.grad_ratio > 1.2
    if is_swinging(reading):
        held, growth = reading.mode_loss, reading.mode_growth
    elif reading.growth > CLIMBING and is_clear:
        memory, decoupling = reading.memory_loss, reading.decoupling
        held = None if memory is None or decoupling is None else memory * decoupling
        growth = reading.growth
    else:
        return None
    is_held = held is not None and 0.0 < held < math.inf and rise is not None
    climb = 0.5 * max(math.log(rise) - math.log(held), 0.0) if is_held and held and rise else remaining_climb(reading)
    if climb is None:
        return None
    growth = min(growth, FASTEST)
    if reading.stability is None:
        return climb, growth / ACCELERATION
    return climb, 0.5 * (growth + max(growth, theoretical_growth(reading.stability, reading.beta1)))


def dated(step: int, steps: float) -> PredictedStep:
    """Return the forecast of a spike so many steps after `step`, from observed growth.

    >>> dated(100, 10.0)
    PredictedStep(low=105, best=110, high=121)
    """
    best = max(1, round(min(steps, HORIZON)))
    high = math.ceil(LATEST * min(steps, HORIZON)) + SLACK
    return PredictedStep(low=step + max(1, math.floor(EARLIEST * best)), best=step + best, high=step + high)


def ranged(predicted: PredictedStep, step: int, sign: str, *, is_curved: bool) -> PredictedStep:
    """Return a forecast that was made at `step` with the range that is calibrated for its kind of evidence.

    >>> ranged(PredictedStep(low=105, best=110, high=121), 100, "reset", is_curved=True)
    PredictedStep(low=105, best=110, high=121)
    """
    found = RANGES.get((sign, is_curved))
    if found is None:
        return predicted
    low, high = found
    steps = predicted.best - step
    return PredictedStep(
        low=step + max(1, min(math.floor(low * steps), steps)),
        best=predicted.best,
        high=step + max(math.ceil(high * steps), steps) + SLACK,
    )


def _steps_to_climb(reading: Reading, climb: float, observed: float) -> float | None:
    """Return the number of steps until the growth sums up to `climb`; None if it takes longer than the horizon.

    The growth of a step is the observed one plus what the rise of λ_max adds to it.
    """
    ratio = reading.stability if reading.stability is not None else 0.0
    start = theoretical_growth(ratio, reading.beta1)
    factor = math.exp(trend(reading))
    before = _steps_below_limit(ratio, factor)  # only what is observed adds to the climb there
    if observed * before >= climb:
        return float(max(math.ceil(climb / observed), 1)) if observed else 1.0
    total = observed * before
    ratio *= factor**before
    for ahead in range(before + 1, HORIZON + 1):
        ratio *= factor
        total += observed + max(theoretical_growth(ratio, reading.beta1) - (start if observed else 0.0), 0.0)
        if total >= climb:
            return float(ahead)
    return None


def _steps_below_limit(ratio: float, factor: float) -> int:
    """Return the number of steps, up to the horizon, at which a ratio that grows by `factor` a step is not above 1.

    >>> _steps_below_limit(0.5, 2.0), _steps_below_limit(0.9, 1.0), _steps_below_limit(1.1, 1.0)
    (1, 400, 0)
    """
    if ratio > 1.0:
        return 0
    if factor <= 1.0 or ratio <= 0.0:
        return HORIZON
    return min(math.floor(-math.log(ratio) / math.log(factor)), HORIZON)
