"""A gradient norm that explodes, usually before the loss does.

Rule: with m and s the median and 1.4826·MAD of log‖g‖ over the last 256 records (s at least 0.1), a record is anomalous
if log‖g‖ exceeds m by 8 s and by log 2.5, and by more than nine of ten of the anomalies that the run has shown already.
The second anomalous record within three raises a warning; a single one beyond 16 s and log 20 does so at once. The
scalar `grad_norm` is enough. Where the second moments are measured, the predictor judges the growth instead. While a
spike of the loss is in progress nothing new is reported. The finding holds for 20 records after the last anomalous one.

Trade-off: until 50 norms were logged, and after a norm that grew slowly, nothing is reported. A run whose norms jump
now and then without consequence is expected to do so, and is reported only for larger jumps.

>>> detector = GradientExplosionDetector()
>>> norms = [1.0 + 0.05 * (step % 3) for step in range(100)] + [3.9, 9.9]
>>> for step, norm in enumerate(norms):
...     reading = Reading(step=step, loss=2.0, grad_norm=norm)
...     detector.update(reading, Context())
>>> detector.finding(reading, Context()).title
'Gradient norm explodes: ×9.43 at step 101'
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from server.detectors.advice import advice_before_spike
from server.detectors.context import Context
from server.detectors.robust import RecentValues, median_and_spread
from server.detectors.signals import Reading
from server.models import AlertKind, AlertLevel, Cause, Finding

MEMORY: Final = 256
"""Number of norms from which location and scale are taken."""
MIN_NORMS: Final = 50
"""Number of norms before which nothing is judged."""
REFRESH: Final = 8
"""Number of norms after which location and scale are computed again."""
MIN_SPREAD: Final = 0.1
"""Smallest robust standard deviation of log‖g‖."""
DEVIATIONS, RATIO = 8.0, math.log(2.5)
"""Rise of log‖g‖ of an anomalous record, in standard deviations and as it is."""
FAR_DEVIATIONS, FAR_RATIO = 16.0, math.log(20.0)
"""Rise of log‖g‖ that is reported at the first record."""
WITHIN: Final = 3
"""Number of records within which the second anomalous one must follow."""
HOLD: Final = 20
"""Number of records after the last anomalous one for which the finding holds."""
KNOWN: Final = 16
"""Number of the latest anomalies of a run that are remembered."""
USUAL: Final = 4
"""Number of harmless anomalies from which larger ones are required."""


class GradientExplosionDetector(msgspec.Struct):
    """Detector of an exploding gradient norm."""

    norms: RecentValues = msgspec.field(default_factory=lambda: RecentValues(MEMORY))
    """Recent values of log‖g‖."""
    count: int = 0
    """Number of norms so far."""
    centre: float = 0.0
    """Median of the recent values."""
    spread: float = 0.0
    """Robust standard deviation of the recent values."""
    anomalies: list[int] = []
    """Counts of norms at the last two anomalous records."""
    onset: int = 0
    """Step of the first anomalous record of the present sequence."""
    step: int | None = None
    """Step of the last anomalous record of the finding that holds."""
    peak: float = 0.0
    """Largest rise of log‖g‖ of the finding."""
    peak_step: int = 0
    """Step of the largest norm of the finding."""
    known: list[float] = []
    """Rises of the latest anomalous records that were over without a finding."""

    def update(self, reading: Reading, context: Context) -> None:
        """Add one reading."""
        if self.step is not None and reading.step - self.step > HOLD * reading.interval:
            self.step = None
        if reading.grad_norm is None or reading.decoupling is not None:
            return
        if reading.is_norm_new:
            self.norms.values = []
        value = math.log(reading.grad_norm)
        self.count += 1
        known = len(self.norms.values)
        if known >= MIN_NORMS:
            if self.count % REFRESH == 0 or known == MIN_NORMS or not self.spread:
                self.centre, spread = median_and_spread(self.norms.values)
                self.spread = max(spread, MIN_SPREAD)
            rise = value - self.centre
            if rise > RATIO and rise > DEVIATIONS * self.spread:
                self._add(rise, reading, context)
        self.norms.push(value)

    def _add(self, rise: float, reading: Reading, context: Context) -> None:
        """Add an anomalous record."""
        self.anomalies = [*self.anomalies[-1:], self.count]
        is_second = len(self.anomalies) == 2 and self.anomalies[1] - self.anomalies[0] < WITHIN
        if not is_second:
            self.onset = reading.step
        usual = sorted(self.known)[int(0.9 * len(self.known))] if len(self.known) >= USUAL else 0.0
        is_far = rise > FAR_RATIO and rise > FAR_DEVIATIONS * self.spread
        if self.step is not None:
            self.step = reading.step
            if rise > self.peak:
                self.peak, self.peak_step = rise, reading.step
        elif (is_second or is_far) and rise > usual and not context.is_spiking:
            self.step, self.peak, self.peak_step = reading.step, rise, reading.step
        self.known = [*self.known[-(KNOWN - 1) :], rise]

    def finding(self, reading: Reading, context: Context) -> Finding | None:
        """Return the finding for 20 records after an anomalous gradient norm."""
        del context
        if self.step is None:
            return None
        ratio = math.exp(min(self.peak, 700.0))
        usual = math.exp(min(self.centre, 700.0))
        return Finding(
            kind=AlertKind.GRADIENT_EXPLOSION,
            level=AlertLevel.WARNING,
            step=self.onset,
            title=f"Gradient norm explodes: ×{ratio:.3g} at step {self.peak_step}",
            message=(
                f"Since step {self.onset} the gradient norm has left its usual range: it is up to {ratio:.3g} times "
                f"its usual value {usual:.3g}. The loss often follows within a few steps."
            ),
            cause=Cause.UNKNOWN,
            layers=reading.layers,
            layer_shares=reading.layer_shares,
            evidence={
                "grad_norm_usual": usual,
                "grad_norm_ratio": ratio,
                "grad_norm_deviations": self.peak / self.spread,
                "peak_step": self.peak_step,
            },
            advice=advice_before_spike(Cause.UNKNOWN, reading),
        )
