"""A spike that has not come yet: Adam's mechanism at work, with a forecast of the step.

Rule: the predictor looks for six signs (each of them alone raises false alarms on healthy runs):

* *directional*: λ_grad is above the limit while ‖g‖ climbs and v lags behind;
* *oscillation*: the gradient along the directions of largest curvature grows and changes its sign at every step, v was
  just decoupled, λ_max is near the limit, the directions hold a part of the loss that is not negligible, and the loss
  they hold will count as a rise within 25 steps (`forecast`);
* *alternation*: the component of the gradient that changes its sign at every step grows, v lags behind, and the growth
  leads to a spike by its expected height; it needs no curvature (`period_two`);
* *climb*: v was just decoupled (Σg²/Σv̂ < 0.1) and has not caught up, ‖g‖ is above its mean and climbs steadily, with
  λ_max near the limit where curvature is measured;
* *crossed*: v has been decoupled deeply for a while and λ_max passed the limit less than 100 steps ago, so that nothing
  stops the growth;
* *reset*: v was lost and restarts from a single gradient.

A sign whose spike would be a mere ripple by its expected height (`height`) is a watch. Where curvature is measured, so
is one whose date is more than 25 steps away, and one in the first 100 records while the loss still falls.

The level is watch while λ_max nears or crosses the limit with v decoupled and a spike in reach; warning when a sign
holds; critical when λ_grad is above the limit and the gradient grows, or the forecast is less than 20 steps away. A
level holds for 20 records after its last sign. After false alarms a sign must show more growth (`track_record`).

Trade-off: spikes that depend on one batch leave no such trace and are not predicted.

>>> predictor, context = SpikePredictor(), Context()
>>> for step in range(1, 41):
...     growing = Reading(step=step, min_decoupling=0.01, decoupling=0.01, growth=0.1, growth_fit=0.9, grad_ratio=3.0)
...     predictor.update(growing, context)
>>> predictor.finding(growing, context).title
'Spike predicted at step 56'

References: Bai et al. and Cohen et al. 2022 (arXiv 2207.14484); docs/explanation/science.md, "Five stages of a spike".
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

import msgspec

from server.detectors.advice import advice_before_spike
from server.detectors.causes import is_stale
from server.detectors.context import Context
from server.detectors.forecast import crossing_step, dated, forecast, is_swinging, ranged, theoretical_growth
from server.detectors.height import EXTRAPOLATED, Height, HeightRecord
from server.detectors.period_two import PeriodTwo, Swing, is_steady
from server.detectors.robust import median
from server.detectors.signals import Reading
from server.detectors.track_record import LOUD
from server.models import AlertKind, AlertLevel, Cause, Finding, PredictedStep

HOLD: Final = 20
"""Number of records for which a level outlives its last sign."""
NEAR: Final = 0.9
"""Ratio of λ_max to the limit from which a climb counts as Adam's mechanism."""
DEEP: Final = 0.01
"""Value of Σg²/Σv̂ below which the crossing of λ_max alone is a warning."""
FAST: Final = 0.005
"""Rise of log λ_max per step that nothing slows down before the spike (modular addition: 0.6–2.6 % per step)."""
STEADY: Final = 0.8
"""Smallest share of the variance of log λ_max that its trend must explain to be extrapolated."""
APPROACHING: Final = 0.7
"""Ratio of λ_max to the limit from which its trend is extrapolated."""
IN_REACH: Final = 100
"""Number of steps before the crossing from which it is a watch."""
SOON: Final = 25
"""Number of steps before the forecast spike from which a sign is a warning where λ_max is known; many die out."""
OVERDUE: Final = 100
"""Number of steps above the limit after which a crossing without growth is none: an instability would have grown."""
UNBELIEVED: Final = 10.0
"""Ratio to the limit that cannot last, because the gradient would grow 35 times larger at each step.

Coordinates whose gradient vanished inflate λ_max."""
PART: Final = 0.15
"""Least growth along the directions of an oscillation, in units of the one that belongs to the ratio to the limit.

A direction that is over its limit for a moment only grows by less."""
HELD: Final = 1e-5
"""Share of the loss that the directions must hold, below which their growth is rounding or noise."""
NEXT: Final = 20
"""Number of steps before the loss rises by its date from which an alternation is a warning, and before a watch."""
LEAST_PEAK, FAR_PEAK = 0.05, 4.0
"""Heights by the growth of the alternating part relative to what is worth a warning: the least one, as the growth still
increases at first, and one that is enough by itself."""
VAST: Final = 1_000
"""Rise of the loss relative to its level from which no number is given, because the loss is near zero."""
IMMINENT: Final = 20
"""Number of steps before the forecast spike from which the level is critical."""
AFTERMATH: Final = 20
"""Number of records after a spike in which nothing is predicted: the spike inflated v, so Σg²/Σv̂ is small anyway."""
SETTLING: Final = 30
"""Number of first samples of a run in which nothing is predicted, because λ_max is then above its limit for a while and
the oscillation dies out as the loss falls."""
FALLING, STILL_FALLING = 100, 0.95
"""Number of first samples in which a sign is a watch while the loss is below this share of its median, for the same
reason."""


class Sign(StrEnum):
    """Signs of a build-up; `APPROACH` alone is a watch."""

    NONE = "none"
    APPROACH = "approach"
    CROSSED = "crossed"
    CLIMB = "climb"
    OSCILLATION = "oscillation"
    ALTERNATION = "alternation"
    DIRECTIONAL = "directional"
    RESET = "reset"


NO_SIGN: Final[str] = Sign.NONE.value
ALARMS: Final = (Sign.CROSSED, Sign.CLIMB, Sign.OSCILLATION, Sign.ALTERNATION, Sign.DIRECTIONAL, Sign.RESET)
"""Signs that raise the level to warning or above."""
CERTAIN: Final = (Sign.RESET, Sign.OSCILLATION, Sign.DIRECTIONAL)
"""Signs to which an alternation of the whole gradient adds nothing."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """The strongest sign of a reading and the forecast that goes with it."""

    sign: Sign
    predicted: PredictedStep | None


class SpikePredictor(msgspec.Struct):
    """Detector of the build-up before a spike."""

    seen: int = 0
    """Number of readings so far."""
    since: int | None = None
    """First step at which the present build-up was recognised."""
    level: str = ""
    """Level of the present prediction, "" for none."""
    has_warned: bool = False
    """Whether the present build-up reached a warning; its title then never falls back to "possible"."""
    sign: str = NO_SIGN
    """Latest sign of the present build-up."""
    last_alarm: int | None = None
    """Last step with a sign of level warning or above."""
    last_watch: int | None = None
    """Last step with a sign of level watch."""
    last_critical: int | None = None
    """Last step with a sign of level critical."""
    predicted: tuple[int, int, int] | None = None
    """Low, best and high end of the last forecast."""
    quiet_until: int = 0
    """Step before which the aftermath of a spike is not mistaken for the next build-up."""
    period_two: PeriodTwo = msgspec.field(default_factory=PeriodTwo)
    """Recent growth of the component of the gradient that alternates."""
    height: HeightRecord = msgspec.field(default_factory=HeightRecord)
    """Forecast of how far the loss would rise."""

    def update(self, reading: Reading, context: Context) -> None:
        """Add one reading."""
        self._follow(reading, context)
        context.prediction_level = self.level
        expected = self.forecast(reading.step)
        context.prediction_due = None if expected is None else expected.high

    def _follow(self, reading: Reading, context: Context) -> None:
        self.seen += 1
        is_jumping = context.is_jumping and context.jump_level is not AlertLevel.WATCH
        self.height.update(reading, is_jumping=is_jumping)
        swing = self.period_two.update(reading, self.height.memory, self.height.beta2)
        if is_jumping:  # the spike has come, so there is nothing to predict
            self._forget()
            self.quiet_until = reading.step + AFTERMATH * reading.interval
        if self.seen <= SETTLING or reading.step < self.quiet_until:
            return
        demand = context.record.demand
        evidence = judge(reading, demand, self.height.onset_rise())
        ahead = _steps_ahead(evidence, reading)
        self.height.note_state(reading, EXTRAPOLATED if ahead is None else ahead)
        evidence = self._with_alternation(evidence, swing, reading, demand)
        if evidence.predicted is not None:
            is_curved = reading.stability is not None
            expected = ranged(evidence.predicted, reading.step, evidence.sign.value, is_curved=is_curved)
            self.predicted = (expected.low, expected.best, expected.high)
        step = reading.step
        if evidence.sign in ALARMS:
            self.height.note_sign()
        is_judged = evidence.sign is Sign.ALTERNATION and reading.stability_peak is None
        is_certain = is_judged or evidence.sign is Sign.RESET  # whose height is judged already
        is_tall = evidence.sign in ALARMS and not self._is_ripple(reading)
        ahead = _steps_ahead(evidence, reading)
        is_far = reading.stability is not None and ahead is not None and ahead > SOON
        if is_certain or (is_tall and not is_far and not self._is_settling(reading)):
            self.last_alarm, self.sign = step, evidence.sign.value
            soon = evidence.predicted is not None and evidence.predicted.best - step < IMMINENT
            if evidence.sign is Sign.DIRECTIONAL or soon:
                self.last_critical = step
        elif evidence.sign is not Sign.NONE:
            self.last_watch = step
            if not _is_held(self.last_alarm, reading):
                self.sign = evidence.sign.value
        if _is_held(self.last_critical, reading):
            self.level = AlertLevel.CRITICAL.value
        elif _is_held(self.last_alarm, reading):
            self.level = AlertLevel.WARNING.value
        elif _is_held(self.last_watch, reading):
            self.level = AlertLevel.WATCH.value
        elif self.level or self.predicted is not None:
            if self.has_warned:
                self.height.note_miss()
            self.height.note_end()
            self._forget()
        if self.level and self.since is None:
            self.since = step
        self.has_warned = self.has_warned or self.level in LOUD

    def _with_alternation(self, evidence: Evidence, swing: Swing | None, reading: Reading, demand: float) -> Evidence:
        """Return the evidence, or that of the period-two component where it says more."""
        if swing is None or evidence.sign in CERTAIN or not swing.builds_up(demand * reading.growth_usual):
            return evidence
        if reading.stability_peak is not None and reading.stability_peak <= NEAR:
            return evidence
        steps = swing.steps_until(self.height.onset_floor())
        if swing.peak is None or steps is None:
            return evidence
        is_dated = reading.stability is not None and evidence.predicted is not None
        predicted = evidence.predicted if is_dated else dated(reading.step, steps)
        if steps <= NEXT and self._is_tall(swing.peak):
            return Evidence(sign=Sign.ALTERNATION, predicted=predicted)
        return evidence if evidence.sign is not Sign.NONE else Evidence(sign=Sign.APPROACH, predicted=predicted)

    def _is_tall(self, peak: float) -> bool:
        """Return whether the spike of an alternation is worth a warning, by its usual height and the `peak` of growth.

        Warnings that passed without a spike do not count against it, because its growth is evidence of this spike.
        """
        level, expected = abs(median(self.height.losses.values)), self.height.forecast()
        worth = self.height.warning_rise()
        if peak > FAR_PEAK * worth or expected is None:
            return peak > FAR_PEAK * worth
        return peak > LEAST_PEAK * worth and expected.best * 2.0**self.height.misses * level > worth

    def _is_ripple(self, reading: Reading) -> bool:
        """Return whether the expected rise is no reason for a warning.

        It must be larger where the alternating part is known and curvature is not.
        """
        expected = self.height.forecast()
        if reading.stability_peak is not None or reading.period_two is None or expected is None:
            return self.height.is_ripple
        level = abs(median(self.height.losses.values))
        return expected.best * level <= self.height.warning_rise()

    def _is_settling(self, reading: Reading) -> bool:
        """Return whether the run has only begun and its loss still falls, where curvature is measured."""
        return self.seen <= FALLING and reading.stability_peak is not None and self.height.falls_below(STILL_FALLING)

    def _forget(self) -> None:
        self.level, self.since, self.sign, self.predicted = "", None, NO_SIGN, None
        self.has_warned = False
        self.last_alarm = self.last_watch = self.last_critical = None

    def forecast(self, step: int) -> PredictedStep | None:
        """Return the last forecast, moved to the step after this one where it is overdue."""
        if self.predicted is None or not self.level:
            return None
        low, best, high = (max(value, step + 1) for value in self.predicted)
        return PredictedStep(low=low, best=best, high=high)

    def finding(self, reading: Reading, context: Context) -> Finding | None:
        """Return the prediction as far as the track record of the run allows it."""
        return context.record.tempered(self._finding(reading, context)) if self.level else None

    def _finding(self, reading: Reading, context: Context) -> Finding:
        cause = Cause.STATE_LOSS if self.sign == Sign.RESET else context.causes.judge_build_up(reading)
        predicted = self.forecast(reading.step)
        height = None if self.sign == Sign.RESET else self.height.forecast()
        when = "soon" if predicted is None else f"at step {predicted.best}"
        return Finding(
            kind=AlertKind.SPIKE_PREDICTED,
            level=AlertLevel(self.level),
            step=reading.step if self.since is None else self.since,
            title=f"Spike predicted {when}" if self.has_warned else f"Spike possible {when}",
            message=_sentence(self.sign, reading) + _height_sentence(height),
            cause=cause,
            predicted_step=predicted,
            layers=reading.layers,
            layer_shares=reading.layer_shares,
            evidence={
                "sign": self.sign,
                "stability_ratio": reading.stability,
                "lambda_max": reading.lambda_max,
                "stability_limit": reading.limit,
                "lambda_max_growth_per_step": reading.stability_growth,
                "crossing_step": crossing_step(reading),
                "lambda_grad_ratio": reading.gradient_stability,
                "decoupling": reading.decoupling,
                "decoupled_steps": reading.decoupled_steps,
                "gradient_growth_per_step": reading.growth,
                "grad_norm_ratio": reading.grad_ratio,
                "expected_rise": None if height is None else height.best,
                "expected_rise_low": None if height is None else height.low,
                "expected_rise_high": None if height is None else height.high,
                "alternating_share": reading.period_two,
                "alternation_growth_per_step": reading.period_two_growth,
                "mode_growth_per_step": reading.mode_growth if reading.mode_loss is not None else None,
            },
            advice=advice_before_spike(cause, reading),
        )


def judge(reading: Reading, demand: float = 0.0, rise: float | None = None) -> Evidence:
    """Return the strongest sign in one reading, with its forecast.

    `demand` is the growth of the gradient that a sign must show, in units of the usual growth of this run; `rise` is
    what counts as the onset of a spike (`forecast`).
    """
    step = reading.step
    if reading.state_reset:
        return Evidence(sign=Sign.RESET, predicted=PredictedStep(low=step + 1, best=step + 2, high=step + 20))
    predicted = forecast(reading, rise)
    stale = is_stale(reading)
    if _is_directional(reading, stale, demand):
        return Evidence(sign=Sign.DIRECTIONAL, predicted=predicted)
    ahead = math.inf if predicted is None else predicted.best - step
    if stale and ahead <= SOON and _is_oscillation(reading, demand):
        return Evidence(sign=Sign.OSCILLATION, predicted=predicted)
    if stale and _is_climb(reading, demand):
        return Evidence(sign=Sign.CLIMB, predicted=predicted)
    if predicted is None or not stale:
        return Evidence(sign=Sign.NONE, predicted=None)
    if ahead <= SOON and _is_crossed(reading):
        return Evidence(sign=Sign.CROSSED, predicted=predicted)
    crossing = crossing_step(reading)
    steady = reading.stability_fit > STEADY and crossing is not None and crossing - step <= IN_REACH
    ratio = reading.stability or 0.0
    if ratio > 1.0 or (steady and ratio > APPROACHING):
        return Evidence(sign=Sign.APPROACH, predicted=predicted)
    return Evidence(sign=Sign.NONE, predicted=None)


def _is_directional(reading: Reading, stale: bool, demand: float) -> bool:
    """Return whether the gradient grows along a direction past its limit while v lags behind."""
    if reading.gradient_stability is None or reading.growth <= max(0.02, demand * reading.growth_usual):
        return False
    if reading.decoupling is not None and reading.decoupling >= 1.0:
        return False
    if reading.stability is not None and reading.stability > UNBELIEVED and reading.above_steps > OVERDUE:
        return False
    return reading.gradient_stability > 1.0 and (stale or reading.gradient_above_count >= 2)


def _is_oscillation(reading: Reading, demand: float) -> bool:
    """Return whether the first instability, which has period two, grows along the directions of largest curvature."""
    if reading.mode_loss is None or reading.loss is None or not is_swinging(reading):
        return False
    if reading.mode_growth <= demand * reading.growth_usual:
        return False
    if reading.decoupling is not None and reading.decoupling >= 1.0:
        return False  # v catches up
    ratio = 0.0 if reading.stability is None else reading.stability
    if reading.mode_growth < PART * theoretical_growth(ratio, reading.beta1):
        return False
    is_near = reading.stability_peak is not None and reading.stability_peak > NEAR
    return is_near and reading.mode_loss > HELD * abs(reading.loss)


def _is_climb(reading: Reading, demand: float) -> bool:
    """Return whether ‖g‖ climbs above its mean, with λ_max near the limit where it is measured."""
    if reading.growth <= max(0.03, demand * reading.growth_usual):
        return False
    if reading.decoupling is not None and reading.decoupling >= 1.0:
        return False  # v catches up
    if reading.stability_peak is None:
        return reading.grad_ratio > (2.0 if reading.period_two is None else 1.5) and not is_steady(reading)
    return reading.stability_peak > NEAR and reading.grad_ratio > 1.5


def _is_crossed(reading: Reading) -> bool:
    """Return whether λ_max is past the limit, or about to pass it, and nothing stops it.

    v must be decoupled deeply, and λ_max rise fast or the gradient already lie partly along its direction.
    """
    if reading.min_decoupling is None or reading.min_decoupling >= DEEP or reading.stability is None:
        return False
    if reading.above_steps > OVERDUE:
        return False
    fast = reading.stability_growth > FAST and reading.stability_fit > STEADY and reading.stability > 1.0
    leaning = reading.gradient_stability is None or reading.gradient_stability > 0.5
    return fast or (reading.above_steps >= 10 and reading.stability_growth >= 0 and leaning)


def _steps_ahead(evidence: Evidence, reading: Reading) -> int | None:
    return None if evidence.predicted is None else evidence.predicted.best - reading.step


def _is_held(step: int | None, reading: Reading) -> bool:
    return step is not None and reading.step - step < HOLD * reading.interval


def _sentence(sign: str, reading: Reading) -> str:
    """Return the reason for a prediction in one sentence with numbers."""
    if sign == Sign.RESET:
        return "The optimizer's second moment restarted from a single gradient, so every weight takes a full-size step."
    parts = []
    if reading.decoupled_steps > 1:
        parts.append(f"v has been decaying on its own for {reading.decoupled_steps} steps")
    elif reading.decoupling is not None:
        parts.append(f"v lags behind the gradient (Σg²/Σv̂ {reading.decoupling:.2g})")
    if reading.gradient_stability is not None and reading.gradient_stability > 1.0:
        parts.append(f"λ_grad is {reading.gradient_stability:.2f} × the limit")
    if reading.stability is not None:
        where = "through" if reading.stability > 1.0 else "towards"
        if reading.stability_growth > 0:
            percent = 100 * math.expm1(reading.stability_growth)
            parts.append(
                f"λ_max grew {percent:.2g} % per step {where} the limit 2/η (now {reading.stability:.2f} × the limit)"
            )
        else:
            parts.append(f"λ_max is {reading.stability:.2f} × the limit 2/η")
    if sign == Sign.ALTERNATION and reading.period_two is not None and reading.period_two_growth is not None:
        percent = 100 * math.expm1(reading.period_two_growth)
        parts.append(
            f"the part of the gradient that changes its sign at every step ({reading.period_two:.0%} of it) grows "
            f"by {percent:.2g} % per step"
        )
    elif reading.growth > 0.02:
        parts.append(f"the gradient grows {100 * math.expm1(reading.growth):.2g} % per step")
    if not parts:
        return "There are signs of a build-up."
    text = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] + "."
    return "T" + text[1:] if text.startswith("the ") else text  # v and λ keep their case


def _height_sentence(height: Height | None) -> str:
    """Return the expected height in one sentence that follows others; "" if it is unknown."""
    if height is None:
        return ""
    if height.best >= VAST:
        return f" The loss may rise by more than {min(height.low, VAST):,.0f} × its level."
    low, best, high = (f"{value:,.3g}" for value in (height.low, height.best, height.high))
    return f" The loss may rise by {best} × its level (between {low} and {high})."
