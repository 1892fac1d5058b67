"""A spike that has not come yet: Adam's mechanism seen at work, with a date.

Signs (each alone raises false alarms on healthy runs; `docs/science.md` has the counts):

* *directional*: λ_grad is above the limit while ‖g‖ climbs and v lags behind;
* *climb*: v was just decoupled (Σg²/Σv̂ < 0.1), ‖g‖ is above its mean and climbs steadily, with λ_max near the limit
  where curvature is measured;
* *crossed*: v has been decoupled deeply for a while and λ_max stays above the limit: nothing holds the growth back;
* *reset*: v was lost and restarts from a single gradient.

Levels: watch while λ_max nears or crosses the limit with v decoupled and a date in reach; warning when a sign holds;
critical when λ_grad is above the limit and the gradient grows, or the date is less than 20 steps away. A level holds
for 20 steps after its last sign. After false alarms more growth is asked for (`track_record`). Trade-off: spikes that
hang on one batch leave no such trace and are not forecast.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

import msgspec

from server.detectors.advice import advice_before_spike
from server.detectors.causes import CauseTracker, cause_of_build_up, is_stale
from server.detectors.forecast import crossing_step, forecast
from server.detectors.signals import Reading
from server.models import AlertKind, AlertLevel, Cause, Finding, PredictedStep

HOLD: Final = 20
"""Steps for which a level outlives its last sign."""
NEAR: Final = 0.9
"""λ_max over the limit from which a climb is taken for Adam's mechanism."""
DEEP: Final = 0.01
"""Σg²/Σv̂ from which the crossing of λ_max alone is a warning."""
FAST: Final = 0.005
"""Rise of log λ_max a step that nothing slows down before the spike (modular addition: 0.6–2.6 % a step)."""
STEADY: Final = 0.8
"""Share of the variance of log λ_max that its trend must explain to be extrapolated."""
APPROACHING: Final = 0.7
"""λ_max over the limit from which its trend is worth extrapolating."""
IN_REACH: Final = 100
"""Steps to the crossing from which it is watched."""
SOON: Final = 60
"""Steps to the spike from which a crossing alone is a warning."""
IMMINENT: Final = 20
AFTERMATH: Final = 20
"""Steps after a spike: v is inflated by it, so Σg²/Σv̂ is small for that reason alone."""
SETTLING: Final = 10
"""First steps of a run, in which everything grows."""


class Sign(StrEnum):
    NONE = "none"
    APPROACH = "approach"
    CROSSED = "crossed"
    CLIMB = "climb"
    DIRECTIONAL = "directional"
    RESET = "reset"


LOUD: Final = (AlertLevel.WARNING.value, AlertLevel.CRITICAL.value)
NO_SIGN: Final[str] = Sign.NONE.value
ALARMS: Final = (Sign.CROSSED, Sign.CLIMB, Sign.DIRECTIONAL, Sign.RESET)


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What one reading says."""

    sign: Sign
    predicted: PredictedStep | None


class SpikePredictor(msgspec.Struct):
    seen: int = 0
    since: int | None = None
    """Step at which the present build-up was first held to be one."""
    level: str = ""
    """The one that holds, "" for none."""
    has_warned: bool = False
    """Whether the present build-up reached a warning: what was predicted is not called possible again."""
    sign: str = NO_SIGN
    last_alarm: int | None = None
    last_watch: int | None = None
    last_critical: int | None = None
    predicted: tuple[int, int, int] | None = None
    """Low, best, high as last dated."""
    quiet_until: int = 0
    """Step before which the aftermath of a spike is not taken for the next one's build-up."""

    @property
    def warned(self) -> bool:
        return self.level in LOUD

    def update(self, reading: Reading, spiking: bool, demand: float = 0.0) -> None:
        """`spiking`: a spike is under way, so there is nothing to predict. ``demand``: see `judge`."""
        self.seen += 1
        if spiking:
            self._forget()
            self.quiet_until = reading.step + AFTERMATH
        if self.seen <= SETTLING or reading.step < self.quiet_until:
            return
        evidence = judge(reading, demand)
        if evidence.predicted is not None:
            dated = evidence.predicted
            self.predicted = (dated.low, dated.best, dated.high)
        step = reading.step
        if evidence.sign in ALARMS:
            self.last_alarm, self.sign = step, evidence.sign.value
            soon = evidence.predicted is not None and evidence.predicted.best - step < IMMINENT
            if evidence.sign is Sign.DIRECTIONAL or soon:
                self.last_critical = step
        elif evidence.sign is Sign.APPROACH:
            self.last_watch = step
            if not _held(self.last_alarm, step):
                self.sign = evidence.sign.value
        if _held(self.last_critical, step):
            self.level = AlertLevel.CRITICAL.value
        elif _held(self.last_alarm, step):
            self.level = AlertLevel.WARNING.value
        elif _held(self.last_watch, step):
            self.level = AlertLevel.WATCH.value
        elif self.level or self.predicted is not None:
            self._forget()
        if self.level and self.since is None:
            self.since = step
        self.has_warned = self.has_warned or self.warned

    def _forget(self) -> None:
        self.level, self.since, self.sign, self.predicted = "", None, NO_SIGN, None
        self.has_warned = False
        self.last_alarm = self.last_watch = self.last_critical = None

    def date(self, step: int) -> PredictedStep | None:
        """The last date given, never in the past: what is overdue is due."""
        if self.predicted is None or not self.level:
            return None
        low, best, high = (max(value, step + 1) for value in self.predicted)
        return PredictedStep(low=low, best=best, high=high)

    def finding(self, reading: Reading, tracker: CauseTracker) -> Finding | None:
        if not self.level:
            return None
        cause = Cause.STATE_LOSS if self.sign == Sign.RESET else cause_of_build_up(reading, tracker)
        predicted = self.date(reading.step)
        when = "soon" if predicted is None else f"at step {predicted.best}"
        return Finding(
            kind=AlertKind.SPIKE_PREDICTED,
            level=AlertLevel(self.level),
            step=reading.step if self.since is None else self.since,
            title=f"Spike predicted {when}" if self.has_warned else f"Spike possible {when}",
            message=_sentence(self.sign, reading),
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
            },
            advice=advice_before_spike(cause, reading),
        )


def judge(reading: Reading, demand: float = 0.0) -> Evidence:
    """The strongest sign in one reading, and its date. ``demand``: growth of the gradient that is asked for, in units
    of what is usual in this run."""
    step = reading.step
    if reading.state_reset:
        return Evidence(sign=Sign.RESET, predicted=PredictedStep(low=step + 1, best=step + 2, high=step + 20))
    predicted = forecast(reading)
    stale = is_stale(reading)
    if _is_directional(reading, stale, demand):
        return Evidence(sign=Sign.DIRECTIONAL, predicted=predicted)
    if stale and _is_climb(reading, demand):
        return Evidence(sign=Sign.CLIMB, predicted=predicted)
    if predicted is None or not stale:
        return Evidence(sign=Sign.NONE, predicted=None)
    if _is_crossed(reading) and predicted.best - step <= SOON:
        return Evidence(sign=Sign.CROSSED, predicted=predicted)
    crossing = crossing_step(reading)
    steady = reading.stability_fit > STEADY and crossing is not None and crossing - step <= IN_REACH
    ratio = reading.stability or 0.0
    if ratio > 1.0 or (steady and ratio > APPROACHING):
        return Evidence(sign=Sign.APPROACH, predicted=predicted)
    return Evidence(sign=Sign.NONE, predicted=None)


def _is_directional(reading: Reading, stale: bool, demand: float) -> bool:
    """The gradient lies along a direction that is past its limit, and grows; v has not noticed."""
    if reading.gradient_stability is None or reading.growth <= max(0.02, demand * reading.growth_usual):
        return False
    if reading.decoupling is not None and reading.decoupling >= 1.0:
        return False
    return reading.gradient_stability > 1.0 and (stale or reading.gradient_above_count >= 2)


def _is_climb(reading: Reading, demand: float) -> bool:
    """‖g‖ is above its mean and climbs; λ_max, where it is measured, is near the limit."""
    if reading.growth <= max(0.03, demand * reading.growth_usual):
        return False
    if reading.stability_peak is None:
        return reading.grad_ratio > 2.0
    return reading.stability_peak > NEAR and reading.grad_ratio > 1.5


def _is_crossed(reading: Reading) -> bool:
    """λ_max is past the limit, or about to be, deep in the decoupling, and nothing holds it: it rises fast, or the
    gradient already leans towards its direction."""
    if reading.decoupling_least is None or reading.decoupling_least >= DEEP or reading.stability is None:
        return False
    fast = reading.stability_growth > FAST and reading.stability_fit > STEADY and reading.stability > NEAR
    leaning = reading.gradient_stability is None or reading.gradient_stability > 0.5
    return fast or (reading.above_steps >= 10 and reading.stability_growth >= 0 and leaning)


def _held(step: int | None, now: int) -> bool:
    return step is not None and now - step < HOLD


def _sentence(sign: str, reading: Reading) -> str:
    """Why, in one sentence with numbers."""
    if sign == Sign.RESET:
        return "The optimizer's second moment restarted from a single gradient: every weight takes a step of full size."
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
            parts.append(f"λ_max grew {percent:.2g} % a step {where} 2/η (now {reading.stability:.2f} ×)")
        else:
            parts.append(f"λ_max is {reading.stability:.2f} × the limit 2/η")
    if reading.growth > 0.02:
        parts.append(f"the gradient grows {100 * math.expm1(reading.growth):.2g} % a step")
    text = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else "signs of a build-up"
    return text + "."
