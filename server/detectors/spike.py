"""A spike of the loss as it happens, found with a robust level and a sequential test; independent of scale.

Rule: with m the expected loss and s its deviation (`server.detectors.loss_level`), s at least a sixth of 1 % of m
and of 10⁻⁴ of the run's first loss, a spike begins when the sequential test of `server.detectors.rise_test` finds a
rise, or at once when one loss is above m + max(12 s, 50 % of m, the same floor). Its onset is the first loss of the
rise. It ends when three losses in a row are back within a quarter of the peak, or after 150 records (40 for a watch),
when the new level is learnt. A rise far above a small one that has lasted for ten records is another spike.

Level: critical for a rise above the run's first losses; warning for one by 20 % of m or 25 s, and for a smaller one
that does harm: the median of five or more losses since its onset is above m by 5 % and 3 s. Otherwise watch. A single
high loss is a watch however tall it is, because one that returns at once does no harm: the losses after it are compared
to m until they are back or there are ten. It has its full level at once when something explains it (a predicted spike,
a changed learning rate, a lost state, non-finite gradients), and when it is the third single one within 100 losses.

Trade-off: the absolute floor hides changes without meaning (1e-14 → 3e-14 when training began at 1), and the test hides
the noise of small batches; a rise by 3 % on a quiet curve (Marin 32B: 1.96 → 2.02) passes both. A loss that swings for
many records looks like a rise now and then, so small rises that do not last are reported at level watch.

>>> detector = SpikeDetector()
>>> for step in range(50):
...     detector.update(Reading(step=step, loss=1.0 + 0.001 * (step % 3)), Context())
>>> detector.active
False
>>> reading = Reading(step=50, loss=3.0)
>>> detector.update(reading, Context())
>>> detector.finding(reading, Context()).message
'The loss rose from 1 to 3. No build-up was seen before it.'

References: the spike scores of OLMo 2 and OLMo-core (6–7 σ); marin#1390.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from server.detectors.advice import advice_after_spike
from server.detectors.causes import CauseOfSpike
from server.detectors.context import Context
from server.detectors.loss_level import LossLevel
from server.detectors.rise_test import ALLOWANCE, CAP, LIMIT, RiseTest
from server.detectors.robust import RecentValues, median, median_and_spread
from server.detectors.signals import Reading
from server.models import AlertKind, AlertLevel, Cause, Event, EventKind, Finding

WINDOW: Final = 40
"""Number of losses since the onset from which a new level is learnt."""
MIN_LOSSES: Final = 10
"""Number of losses before which a run is not called stable."""
MIN_JUDGED: Final = 8
"""Number of losses before which no rise is looked for."""
HIGH, VERY_HIGH = 6.0, 12.0
"""Rises of the loss in robust standard deviations."""
RISE, STEEP_RISE = 0.01, 0.5
"""Rises of the loss relative to the median."""
FLOOR: Final = 1e-4
"""Rise of the loss relative to the first losses of the run, below which it is numerically negligible."""
LONGEST: Final = 150
"""Number of records after which a spike ends and its level becomes the new one."""
SMALL_LONGEST: Final = 40
"""The same for a spike of level watch."""
BRIEF: Final = 12
"""Number of losses of a spike, three of them back, up to which it was over soon."""
BRIEF_SPIKES, BRIEF_LOSSES = 4, 60
"""Number of such spikes, and the losses within which they end, that make a two-peaked loss."""
SEPARATE, FAR = 10, 4.0
"""Number of records after which a rise by so many times the height of a small spike is another spike."""
BACK: Final = 0.25
"""Share of the peak's height under which the loss is back."""
SMALL: Final = 8.0
"""Deviations up to which a spike that was over counts as noise while the swing of the loss is unknown."""
NOISE: Final = 3.0
"""Deviations from the level before under which the loss is back there."""
AFTERSHOCK: Final = 20
"""Number of records after a spike that left the loss higher in which another one has the same onset and cause."""
STEEP_ONLY: Final = 2.0
"""Weight of the spread of the last losses where the deviation is not known yet; only steep rises count then."""
LASTING_LOSSES, LASTING_DEVIATIONS, LASTING_SHARE = 5, 3.0, 0.05
"""Number of losses since the onset, and the rise of their median in deviations and relative, that make a new level."""
REPEATED: Final = 3
"""Number of single high losses that are no accident any more."""
REPEAT_RECORDS: Final = 100
"""Number of losses within which they must happen."""
RESTLESS: Final = 2 * LIMIT
"""Limit of the test from which single high losses belong to the noise."""
RESTART: Final = 0.1
"""Largest relative distance to the run's first loss at which a loss looks like a start."""
RESTART_GRADIENT: Final = 1.5
"""Largest ratio to the run's first gradient norm, or its inverse, at which a gradient norm looks like a start."""
EXPLAINED: Final = (Cause.STALE_SECOND_MOMENT, Cause.LEARNING_RATE, Cause.STATE_LOSS, Cause.NUMERICAL)
"""Causes that make a single high loss more than an outlier."""


class SpikeDetector(msgspec.Struct):
    """Detector of spikes of the loss."""

    losses: RecentValues = msgspec.field(default_factory=lambda: RecentValues(WINDOW))
    """Recent losses outside spikes in snapshots of older versions; `level` learns them at the first loss."""
    level: LossLevel = msgspec.field(default_factory=LossLevel)
    """Level of the losses outside spikes."""
    test: RiseTest = msgspec.field(default_factory=RiseTest)
    """Sequential test for a rise."""
    scale: float = 0.0
    """Level of the run's first losses."""
    seen: int = 0
    """Number of finite losses so far."""
    active: bool = False
    """Whether a spike is in progress, from the step at which it was recognised."""
    onset: int = 0
    """First step of the rise that led to the spike."""
    trigger: int = 0
    """Step at which the spike was recognised."""
    peak: float = 0.0
    """Largest loss of the spike."""
    peak_step: int = 0
    """Step of the largest loss."""
    baseline: float = 0.0
    """Level of the losses before the spike."""
    before: float = 0.0
    """Level before the last spike, which later losses do not change."""
    deviation: float = 0.0
    """Deviation of the losses before the spike from their level."""
    back: int = 0
    """Number of the latest consecutive losses that are back within a quarter of the peak."""
    shifted: bool = False
    """Whether the last spike ended because its level became the new one."""
    is_back: bool = True
    """Whether the loss was back at the level before the last spike when that ended."""
    high_count: int = 0
    """Number of high losses of the spike."""
    lone: list[int] = []
    """Counts of losses at which the latest spikes of a single high loss began."""
    brief: list[int] = []
    """Counts of losses at which the latest spikes that were over soon ended."""
    brief_rises: list[float] = []
    """Heights of these spikes."""
    first_loss: float | None = None
    """First loss of the attempt."""
    first_gradient: float | None = None
    """Gradient norm that was logged with it."""
    settling: list[float] = []
    """Losses since the spike began, from which the level after it is learnt."""
    ended: int | None = None
    """Step at which the last spike was over."""
    cause: CauseOfSpike | None = None
    """Cause of the spike, judged once when it began."""

    def update(self, reading: Reading, context: Context) -> Event | None:
        """Add one reading and return an event for a spike that ended at its step."""
        step, loss = reading.step, reading.loss
        event = None
        if loss is not None and math.isfinite(loss):
            self.seen += 1
            if self.seen == 1:
                self.first_loss, self.first_gradient = loss, reading.grad_norm
            if self.seen <= 3:
                self.scale = max(self.scale, abs(loss))
            if self.losses.values:
                self.level.restart(self.losses.values)
                self.level.sequence, self.level.swing = [], 0.0  # these losses are not consecutive ones
                self.losses.values = []
            if not self.active:
                self._outside(step, loss, reading)
                if self.active and self.cause is None:
                    self.cause = self._restart(reading) or context.causes.judge(reading, self.onset)
            elif self._ends(step, loss, reading.loss_interval):
                event = self._event()
                context.is_level_new = self.shifted
            elif self.cause is None or self.cause.cause is Cause.UNKNOWN:
                # A bad batch is known only once the loss is back.
                self.cause = context.causes.judge(reading, self.onset)
        context.loss_noise = self._noise
        context.is_spiking, context.spike_peak_step = self.active, self.peak_step
        context.spike_onset, context.spike_trigger = self.onset, self.trigger
        if self.active or event is not None:
            self.before = self.baseline
        context.spike_baseline = self.before
        return event

    def _restart(self, reading: Reading) -> CauseOfSpike | None:
        """Return the cause of a jump back to the loss and the gradient norm with which the run began, or None."""
        loss, norm, first, first_norm = reading.loss, reading.grad_norm, self.first_loss, self.first_gradient
        if loss is None or norm is None or first is None or first_norm is None or self.onset != reading.step:
            return None
        is_loss_back = abs(loss - first) <= RESTART * abs(first - self.baseline)
        if not is_loss_back or max(norm / first_norm, first_norm / norm) > RESTART_GRADIENT:
            return None
        return CauseOfSpike(
            cause=Cause.STATE_LOSS,
            sentence=(
                f"Loss and gradient norm are as at the start of the run ({first:.3g} and {first_norm:.3g}): it was "
                "restarted, or its weights were lost."
            ),
            evidence={"loss_start": first, "grad_norm": norm, "grad_norm_start": first_norm},
        )

    def _outside(self, step: int, loss: float, reading: Reading) -> None:
        """Add a loss while no spike is in progress, and begin one if it makes a rise."""
        level, test = self.level, self.test
        is_rising = test.total > 0
        if not is_rising:
            level.follow(reading.loss_pause)
            expected = level.expected
            if expected is None or self.seen <= MIN_JUDGED:
                level.push(loss)
                return
            self.baseline = expected
        rise = loss - self.baseline
        size = abs(self.baseline)
        floor = max(RISE * size, FLOOR * self.scale)
        if not is_rising:
            if rise <= ALLOWANCE / HIGH * floor:  # most losses need no deviation of the others
                level.push(loss, expected)
                return
            deviation = level.deviation
            self.deviation = STEEP_ONLY * median_and_spread(level.recent)[1] if deviation is None else deviation
        is_known = level.deviation is not None
        is_very_high = rise > max(VERY_HIGH * self.deviation, STEEP_RISE * size, FLOOR * self.scale)
        unit = max(self.deviation, floor / HIGH)
        score = rise / unit if unit > 0 else 0.0
        if not is_known and not is_very_high:
            score = 0.0
        last = test.losses[-1] if is_rising else level.recent[-1]
        news = score - level.memory * (last - self.baseline) / unit if score else 0.0
        if news <= ALLOWANCE and not is_rising:
            level.push(loss, expected)
            return
        is_restless = test.limit(self.seen) > RESTLESS
        if test.add(step, loss, score, news, self.seen) or (is_very_high and not is_restless):
            self._begin(step, reading.loss_interval)
        elif test.is_over:
            test.note(self.seen, test.peak)
            for one, score in zip(test.losses, test.scores, strict=True):
                if score < HIGH:
                    level.push(one)
            test.clear()

    def _begin(self, step: int, interval: int) -> None:
        """Begin a spike with the losses of the rise; those before it belong to the level."""
        test = self.test
        start = test.start
        for one in test.losses[:start]:
            self.level.push(one)
        self.active, self.trigger, self.back, self.shifted = True, step, 0, False
        if self.is_back or self.ended is None or test.steps[start] - self.ended > AFTERSHOCK * interval:
            self.onset = test.steps[start]
            self.cause = None
            self.high_count = 0
        losses, steps = test.losses[start:], test.steps[start:]
        self.high_count += 1 if test.is_single else 2
        self.peak = max(losses)
        self.peak_step = steps[losses.index(self.peak)]
        self.settling = losses[-WINDOW:]
        test.clear()

    def _ends(self, step: int, loss: float, interval: int) -> bool:
        """Add a loss to the spike in progress and return whether the spike ends with it."""
        if self._is_new_rise(step, loss, interval):
            self._begin_anew(step, loss)
            return False
        if loss > self.peak:
            self.peak, self.peak_step = loss, step
        self.settling = [*self.settling[-(WINDOW - 1) :], loss]
        level = abs(self.baseline)
        is_high = loss - self.baseline > max(HIGH * self.deviation, RISE * level, FLOOR * self.scale)
        self.high_count = min(self.high_count + is_high, WINDOW)
        self.back = self.back + 1 if loss <= self.baseline + BACK * (self.peak - self.baseline) else 0
        longest = SMALL_LONGEST if self._level_by_height() is AlertLevel.WATCH else LONGEST
        is_long = step - self.trigger >= longest * interval
        unit = max(self.deviation, RISE / HIGH * level, FLOOR / HIGH * self.scale)
        is_back = self.back >= 3 and median(self.settling[-3:]) - self.baseline <= NOISE * unit
        is_single = self.high_count < 2 and len(self.settling) < 2 * LASTING_LOSSES
        # The level after a single high loss is compared to the one before it for a while.
        if not is_long and (self.back < 3 or (is_single and not is_back)):
            return False
        self.shifted, self.is_back = self.back < 3, is_back
        is_noise = not self.shifted and self.level.swing == 0 and self.peak - self.baseline <= SMALL * unit
        if is_noise:
            self.level.add_noise(self.settling if self.is_back else self.settling[:-3])
        if self.shifted:
            self.level.restart(self.settling)
        elif not self.is_back:
            self.level.restart(self.settling[-3:], floor=self.deviation, is_same_noise=is_noise)
        if self.high_count < 2:
            self.lone = [*self.lone[-(REPEATED - 2) :], self.seen]
            self.test.note(self.seen, CAP - ALLOWANCE)
        if not self.shifted and len(self.settling) <= BRIEF:
            self._note_brief()
        self.active, self.ended = False, step
        return True

    def _note_brief(self) -> None:
        """Remember a spike that was over soon; several in a short time are the upper peak of the noise."""
        self.brief = [*self.brief[-(BRIEF_SPIKES - 1) :], self.seen]
        self.brief_rises = [*self.brief_rises[-(BRIEF_SPIKES - 1) :], self.peak - self.baseline]
        if len(self.brief) == BRIEF_SPIKES and self.seen - self.brief[0] <= BRIEF_LOSSES:
            self.level.remember_tail(median(self.brief_rises))

    def _is_new_rise(self, step: int, loss: float, interval: int) -> bool:
        """Return whether a loss jumps far above a small rise that has lasted for a while."""
        if step - self.trigger < SEPARATE * interval:
            return False
        small, steep = self.peak - self.baseline, STEEP_RISE * abs(self.baseline)
        return small < 0.5 * steep and loss - self.peak > max(FAR * small, steep)

    def _begin_anew(self, step: int, loss: float) -> None:
        """Begin another spike at the level that the small rise before it has reached."""
        self.baseline = median(self.settling[-2 * LASTING_LOSSES :])
        self.onset = self.trigger = self.peak_step = step
        self.peak, self.settling, self.high_count, self.back, self.cause = loss, [loss], 1, 0, None

    @property
    def _is_lasting(self) -> bool:
        """Whether the level of the losses since the spike began is higher than before it."""
        if len(self.settling) < LASTING_LOSSES:
            return False
        rise = median(self.settling[-2 * LASTING_LOSSES :]) - self.baseline
        return rise > max(LASTING_DEVIATIONS * self.deviation, LASTING_SHARE * abs(self.baseline), 1e-3 * self.scale)

    @property
    def _noise(self) -> str:
        """Shape of the noise in words if it looks like spikes; "" otherwise."""
        if self.level.is_two_peaked:
            return "two-peaked"
        return "heavy-tailed" if self.test.peaks and self.test.limit(self.seen) > RESTLESS else ""

    @property
    def _deviations(self) -> float | None:
        """Height of the spike in robust standard deviations of the losses before it."""
        return (self.peak - self.baseline) / self.deviation if self.deviation > 0 else None

    @property
    def _is_single(self) -> bool:
        """Whether the spike is a single high loss so far that nothing explains and that is no repetition."""
        is_explained = self.cause is not None and self.cause.cause in EXPLAINED
        if self.high_count >= 2 or is_explained or self._is_lasting:
            return False
        recent = sum(self.seen - count <= REPEAT_RECORDS for count in self.lone)
        return recent < REPEATED - 1

    def _level(self) -> AlertLevel:
        return AlertLevel.WATCH if self._is_single else self._level_by_height()

    def _level_by_height(self) -> AlertLevel:
        before = self.baseline if self.active else self.before
        rise, deviations = self.peak - before, self._deviations
        is_tall = rise > 0.2 * abs(before) or (deviations is not None and deviations > 25) or self._is_lasting
        if not is_tall or rise <= 1e-3 * self.scale:
            return AlertLevel.WATCH
        return AlertLevel.CRITICAL if rise > self.scale else AlertLevel.WARNING

    def finding(self, reading: Reading, context: Context) -> Finding | None:
        """Return the finding while a spike is in progress, or its loss stays up after it."""
        cause = self.cause
        is_lasting = (self.shifted or self.active) and context.is_level_raised
        if cause is None or not (self.active or is_lasting):
            return None
        ending = " It did not recover." if is_lasting else ""
        return Finding(
            kind=AlertKind.SPIKE,
            level=self._level_by_height() if is_lasting else self._level(),
            step=self.onset,
            title=f"Loss spike at step {self.onset}",
            message=f"The loss rose from {self.before:.3g} to {self.peak:.3g}. {cause.sentence}{ending}",
            cause=cause.cause,
            layers=reading.layers,
            layer_shares=reading.layer_shares,
            evidence={
                "loss_baseline": self.before,
                "loss_peak": self.peak,
                "peak_step": self.peak_step,
                "loss_deviations": self._deviations,
                **cause.evidence,
            },
            advice=advice_after_spike(cause.cause, reading),
        )

    def _event(self) -> Event:
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
