"""A loss that does not come back.

Rule: with m the median of the last 40 losses, the loss did not recover if

* a spike has lasted for 60 records and the losses do not fall, or it ended after 150 records without a return, and m is
  20 % above the level before the spike; or
* without a spike, m has been above the lowest earlier m for 80 losses, by more than 15 %, and is now the highest of
  these and above by more than 25 %, 8 robust standard deviations and 2 % of the run's first losses (a drift).

This is critical if m is half above the level before and the losses do not fall, and if m exceeds three times the run's
first losses; otherwise it is a warning. A drift after a jump of the learning rate is a warning. The finding holds until
m is back within a quarter of the rise.

Trade-off: a drift below 25 % of the best level is not reported, because validation noise and the end of a schedule move
the loss by as much. A run whose data become harder, so that its loss rises for good, is reported.

>>> detector = DivergenceDetector()
>>> for step in range(160):
...     reading = Reading(step=step, loss=1.0 if step < 100 else 9.0)
...     detector.update(reading, Context())
>>> detector.finding(reading, Context()).title
'Loss diverged by step 119'
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from server.detectors.advice import advice_after_spike
from server.detectors.context import Context
from server.detectors.robust import RecentValues, median, median_and_spread
from server.detectors.signals import Reading
from server.models import AlertKind, AlertLevel, Cause, Finding

WINDOW: Final = 40
"""Number of losses in the median."""
WORSE: Final = 3.0
"""Ratio of the median to the first losses from which the run diverges."""
BETTER: Final = 1.5
"""Ratio below which the run no longer diverges (hysteresis)."""
SHIFT: Final = 0.2
"""Smallest rise after a spike, relative to the level before it, that counts as not recovered."""
SEVERE: Final = 0.5
"""Relative rise above the level before from which the level of the finding is critical."""
NEGLIGIBLE: Final = 0.02
"""Rise relative to the run's first losses below which it does not matter."""
LASTING: Final = 60
"""Number of records after which a spike whose losses do not fall has not recovered."""
BLOCK: Final = 10
"""Number of losses between two medians that are compared for a drift."""
BLOCKS: Final = 8
"""Number of medians for which a drift must last."""
DRIFT, DRIFT_SPREADS, DRIFTING = 0.25, 8.0, 0.6
"""Relative rise and rise in deviations that make a drift, and the share of it that all its medians must reach."""
BACK: Final = 0.25
"""Share of the rise under which the loss is back."""


class DivergenceDetector(msgspec.Struct):
    """Detector of losses that rise and stay."""

    losses: RecentValues = msgspec.field(default_factory=lambda: RecentValues(WINDOW))
    first: list[float] = []
    """First three losses of the attempt."""
    step: int | None = None
    """Step since which the run diverges."""
    level: float = 0.0
    """Median of the last losses."""
    shifted: bool = False
    """Unused field of snapshot version 1."""
    before: float | None = None
    """Level before the rise; None if the finding compares to the start of the run."""
    top: float = 0.0
    """Highest median since the rise."""
    is_mild: bool = False
    """Whether a changed learning rate explains the rise."""
    count: int = 0
    """Number of losses since the last median that is compared for a drift."""
    medians: list[float] = []
    """Latest medians, one for each block of losses."""
    best: float | None = None
    """Lowest median of the attempt."""
    best_spread: float = 0.0
    """Robust standard deviation of the losses at the lowest median."""
    best_step: int = 0
    """Step of the lowest median."""

    def update(self, reading: Reading, context: Context) -> None:
        """Add one reading."""
        self._follow(reading, context)
        context.is_level_raised = self.step is not None

    def _follow(self, reading: Reading, context: Context) -> None:
        loss = reading.loss
        if loss is None or not math.isfinite(loss):
            return
        if len(self.first) < 3:
            self.first = [*self.first, loss]
        self.losses.push(loss)
        start = max(map(abs, self.first))
        if len(self.losses.values) < WINDOW or start <= 0:
            return
        self.count += 1
        if self.count >= BLOCK:
            self.count = 0
            self._follow_drift(reading.step, start, context)
        is_far_up = max(self.losses.values) > BETTER * start
        is_long = context.is_spiking and reading.step - context.spike_trigger >= LASTING * reading.loss_interval
        if self.step is None and not is_far_up and not context.is_level_new and not is_long:
            return  # the median is not above it either, and needs no sort
        self.level = median(self.losses.values)
        if self.step is None:
            self._open(reading.step, start, context, is_long)
        self.top = max(self.top, self.level)
        if self.step is not None and self._is_back(start):
            self.step = self.before = None

    def _open(self, step: int, start: float, context: Context, is_long: bool) -> None:
        before = context.spike_baseline
        has_stayed = context.is_level_new or (is_long and not self._is_falling(self.level - before))
        if has_stayed and self.level - before > max(SHIFT * abs(before), NEGLIGIBLE * start):
            self._raise(context.spike_onset, before, context)
        elif self.level > WORSE * start or (context.is_level_new and self.level > BETTER * start):
            self.step, self.top = step, self.level

    def _raise(self, step: int, before: float, context: Context) -> None:
        self.step, self.before, self.top = step, before, self.level
        jumped = context.causes.lr_jump_step
        self.is_mild = jumped is not None and jumped >= self.best_step

    def _follow_drift(self, step: int, start: float, context: Context) -> None:
        """Add the median of a block, and begin a finding if the medians have drifted up."""
        level, spread = median_and_spread(self.losses.values)
        self.medians = [*self.medians[-(BLOCKS - 1) :], level]
        if self.best is None or level < self.best:
            self.best, self.best_spread, self.best_step = level, spread, step
        if self.step is not None or context.is_spiking or len(self.medians) < BLOCKS:
            return
        rise = max(DRIFT * abs(self.best), DRIFT_SPREADS * self.best_spread, NEGLIGIBLE * start)
        if level - self.best > rise and min(self.medians) - self.best > DRIFTING * rise and level >= max(self.medians):
            self.level = level
            self._raise(self.best_step, self.best, context)

    def _is_back(self, start: float) -> bool:
        if self.before is None:
            return self.level < BETTER * start
        return self.level <= self.before + BACK * (self.top - self.before)

    def _is_critical(self, start: float) -> bool:
        if self.level > WORSE * start:
            return True
        if self.before is None or self.is_mild:
            return False
        rise = self.level - self.before
        return rise > SEVERE * abs(self.before) and not self._is_falling(rise)

    def _is_falling(self, rise: float) -> bool:
        """Return whether the newer half of the losses is lower than the older one by a twentieth of the rise."""
        older, newer = median(self.losses.values[: WINDOW // 2]), median(self.losses.values[WINDOW // 2 :])
        return newer < older - 0.05 * rise

    def finding(self, reading: Reading, context: Context) -> Finding | None:
        """Return the finding while the loss stays up."""
        del context
        if self.step is None:
            return None
        start = max(abs(value) for value in self.first)
        message = (
            f"The loss stays at {self.level:.3g}, {self.level / start:.3g} times its value at the start ({start:.3g})."
        )
        title = f"Loss diverged by step {self.step}"
        if self.before is not None:
            title = f"Loss did not recover: stays at {self.level:.3g}, was {self.before:.3g}"
            message = (
                f"The loss was {self.before:.3g} before step {self.step}, and stays at {self.level:.3g} since then."
            )
        return Finding(
            kind=AlertKind.DIVERGENCE,
            level=AlertLevel.CRITICAL if self._is_critical(start) else AlertLevel.WARNING,
            step=self.step,
            title=title,
            message=message,
            cause=Cause.DIVERGENCE,
            layers=reading.layers,
            layer_shares=reading.layer_shares,
            evidence={
                "loss": self.level,
                "loss_start": start,
                "loss_before": self.before,
                "update_ratio": reading.update_ratio,
            },
            advice=advice_after_spike(Cause.DIVERGENCE, reading),
        )
