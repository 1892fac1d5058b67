"""A spike of the loss as it happens: median and MAD of recent losses, scale-free.

Rules: with m and s the median and 1.4826·MAD of the last 40 losses outside spikes, the loss is *high* above
m + max(6 s, 1 % of m, 10⁻⁴ of the run's first loss). A spike begins when two of three losses are high, or at once
when one is above m + max(12 s, 50 % of m, the same floor). It ends when three losses in a row are back within a
quarter of the peak, or after 150 steps, when the new level is learnt.

Trade-off: the absolute floor hides changes that mean nothing (1e-14 → 3e-14 when training began at 1) and the factor 6
hides the noise of small batches; a rise by 3 % on a quiet curve (Marin 32B: 1.96 → 2.02) passes both. Six deviations of
a heavy-tailed loss are crossed now and then, so small spikes are reported at level watch.

>>> detector = SpikeDetector()
>>> _ = [detector.update(step, 1.0 + 0.001 * (step % 3)) for step in range(50)]
>>> detector.active
False
>>> detector.update(50, 3.0).began
True

References: OLMo 2's and OLMo-core's spike scores (6–7 σ); marin#1390.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from server.detectors.advice import advice_after_spike
from server.detectors.causes import CauseOfSpike
from server.detectors.robust import Window, median, median_and_spread
from server.detectors.signals import Reading
from server.models import AlertKind, AlertLevel, Event, EventKind, Finding

WINDOW: Final = 40
LEAST: Final = 10
"""Losses needed before anything is judged."""
HIGH, VERY_HIGH = 6.0, 12.0
"""In robust standard deviations."""
RISE, STEEP_RISE = 0.01, 0.5
"""Relative to the median."""
FLOOR: Final = 1e-4
"""Relative to the first losses of the run: less is numerically negligible."""
LONGEST: Final = 150
BACK: Final = 0.25
AFTERSHOCK: Final = 20
"""Steps after a spike in which another one belongs to it: same onset, same cause."""
RISE_STEPS: Final = 60
"""The rise that led to a spike is followed back this far at most."""


class Change(msgspec.Struct, frozen=True):
    """What one loss changed."""

    began: bool = False
    ended: bool = False


class SpikeDetector(msgspec.Struct):
    """Follows the loss; `active` from the step a spike is recognised until it is over."""

    losses: Window = msgspec.field(default_factory=lambda: Window(WINDOW))
    scale: float = 0.0
    """Level of the run's first losses."""
    seen: int = 0
    active: bool = False
    onset: int = 0
    """First step of the rise."""
    trigger: int = 0
    peak: float = 0.0
    peak_step: int = 0
    baseline: float = 0.0
    deviation: float = 0.0
    back: int = 0
    shifted: bool = False
    """The last spike ended because its level became the new one."""
    high: list[bool] = []
    """Of the last three losses."""
    rise_start: int | None = None
    gap: int = 0
    settling: list[float] = []
    """Losses since a spike began, for the level after it."""
    tail_until: int | None = None
    """Step at which the decay after a spike is given up and its level learnt; None outside a tail."""
    ended: int | None = None
    """Step at which the last spike was over."""
    cause: CauseOfSpike | None = None
    """Judged once, when the spike began."""

    def update(self, step: int, loss: float | None) -> Change:
        if loss is None or not math.isfinite(loss):
            return Change()
        self.seen += 1
        if self.seen <= 3:
            self.scale = max(self.scale, abs(loss))
        return self._during(step, loss) if self.active else self._outside(step, loss)

    def _outside(self, step: int, loss: float) -> Change:
        in_tail = self._in_tail(step, loss)
        values = self.settling if in_tail else self.losses.values
        if len(values) >= (3 if in_tail else LEAST):
            self.baseline = median(values)
            level = abs(self.baseline)
            floor = FLOOR * self.scale
            rise = loss - self.baseline
            is_up = rise > max(RISE * level, floor)
            # Most losses are not up at all: of those nobody asks how much the others deviate.
            self.deviation = median_and_spread(values)[1] if is_up else 0.0
            caution = 2.0 if not in_tail and len(values) < WINDOW // 2 else 1.0
            is_high = is_up and rise > caution * max(
                HIGH * self.deviation, (STEEP_RISE if in_tail else RISE) * level, floor
            )
            is_very_high = is_up and rise > caution * max(VERY_HIGH * self.deviation, STEEP_RISE * level, floor)
            self._follow_rise(step, is_up and rise > 3 * self.deviation)
            self.high = [*self.high[-2:], is_high]
            if is_very_high or (is_high and sum(self.high) >= 2):
                self.active, self.trigger, self.back, self.shifted = True, step, 0, False
                again = self.ended is not None and step - self.ended <= AFTERSHOCK
                if not again:
                    self.onset = step if self.rise_start is None else max(self.rise_start, step - RISE_STEPS)
                    self.cause = None
                self.peak, self.peak_step, self.settling = loss, step, [loss]
                return Change(began=True)
            if is_high:
                return Change()
        if in_tail:
            self.settling = [*self.settling[-(LEAST - 1) :], loss]
        else:
            self.losses.push(loss)
        return Change()

    def _in_tail(self, step: int, loss: float) -> bool:
        """Whether the loss is still on its way back; the losses before the spike stay the measure until it is."""
        if self.tail_until is None:
            return False
        values = self.losses.values
        level, spread = median_and_spread(values)
        back = level + max(HIGH * spread, RISE * abs(level), FLOOR * self.scale)
        if loss > back and step < self.tail_until:
            return True
        if loss > back:
            self.losses.values = list(self.settling)
        self.tail_until = None
        return False

    def _follow_rise(self, step: int, rising: bool) -> None:
        """Keep the first step of the present rise; two steps below its threshold do not end it."""
        if rising:
            self.rise_start = step if self.rise_start is None else self.rise_start
            self.gap = 0
        else:
            self.gap += 1
            if self.gap > 2:
                self.rise_start = None

    def _during(self, step: int, loss: float) -> Change:
        if loss > self.peak:
            self.peak, self.peak_step = loss, step
        self.settling = [*self.settling[-(WINDOW - 1) :], loss]
        self.back = self.back + 1 if loss <= self.baseline + BACK * (self.peak - self.baseline) else 0
        if self.back < 3 and step - self.trigger < LONGEST:
            return Change()
        self.shifted = self.back < 3
        if self.shifted:
            self.losses.values = list(self.settling)
        else:
            self.settling = self.settling[-3:]
            self.tail_until = step + LONGEST
        self.active, self.high, self.rise_start, self.ended = False, [], None, step
        return Change(ended=True)

    def finding(self, reading: Reading) -> Finding | None:
        """What holds while a spike is under way."""
        cause = self.cause
        if not self.active or cause is None:
            return None
        rise = self.peak - self.baseline
        deviations = rise / self.deviation if self.deviation > 0 else None
        tall = rise > 0.2 * abs(self.baseline) or (deviations is not None and deviations > 25)
        level = AlertLevel.WARNING if tall and rise > 1e-3 * self.scale else AlertLevel.WATCH
        if rise > self.scale and level is AlertLevel.WARNING:
            level = AlertLevel.CRITICAL
        return Finding(
            kind=AlertKind.SPIKE,
            level=level,
            step=self.onset,
            title=f"Loss spike at step {self.onset}",
            message=f"The loss rose from {self.baseline:.3g} to {self.peak:.3g}. {cause.sentence}",
            cause=cause.cause,
            layers=reading.layers,
            layer_shares=reading.layer_shares,
            evidence={
                "loss_baseline": self.baseline,
                "loss_peak": self.peak,
                "peak_step": self.peak_step,
                "loss_deviations": deviations,
                **cause.evidence,
            },
            advice=advice_after_spike(cause.cause, reading),
        )

    def event(self) -> Event:
        """The spike that has just ended."""
        return Event(
            step=self.onset,
            kind=EventKind.SPIKE,
            detail={
                "loss": self.peak,
                "baseline": self.baseline,
                "peak_step": self.peak_step,
                "recovered": int(not self.shifted),
            },
        )
