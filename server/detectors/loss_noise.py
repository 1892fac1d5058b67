"""One note about a loss whose noise is no bell: two-peaked, or with a heavy upper tail.

Rule: the upper tail of the loss around its level is three times wider than its middle and one record says nothing
about the next (two peaks, as mixup produces them), or single high losses are so frequent that the limit of the test
for rises has doubled (`server.detectors.rise_test`). The note is a watch that is given once in an attempt and holds for
20 records. From then on such losses count as noise, and only rises far above them are reported.

Trade-off: in such a run a spike of the height of the noise is not reported, or some records late.

>>> detector = LossNoiseDetector()
>>> reading = Reading(step=90, loss=1.2)
>>> detector.update(reading, Context(loss_noise="two-peaked"))
>>> detector.finding(reading, Context()).title
'The loss is two-peaked'
"""

from __future__ import annotations

from typing import Final

import msgspec

from server.detectors.context import Context
from server.detectors.signals import Reading
from server.models import AlertKind, AlertLevel, Cause, Finding

HOLD: Final = 20
"""Number of records for which the note holds."""


class LossNoiseDetector(msgspec.Struct):
    """Detector of losses whose noise looks like spikes."""

    step: int | None = None
    """Step at which the noise was recognised; None before that."""
    noise: str = ""
    """Shape of the noise in words."""
    is_over: bool = False
    """Whether the note has been given."""

    def update(self, reading: Reading, context: Context) -> None:
        """Add one reading."""
        if self.step is None and context.loss_noise:
            self.step, self.noise = reading.step, context.loss_noise
        elif self.step is not None and reading.step - self.step > HOLD * reading.interval:
            self.is_over = True

    def finding(self, reading: Reading, context: Context) -> Finding | None:
        """Return the note for 20 records after the noise was recognised."""
        del reading, context
        if self.step is None or self.is_over:
            return None
        return Finding(
            kind=AlertKind.LOSS_NOISE,
            level=AlertLevel.WATCH,
            step=self.step,
            title=f"The loss is {self.noise}",
            message=(
                f"The loss is {self.noise}: single high losses are part of its noise. They are not reported as spikes "
                "from now on; a rise is reported when several losses in a row are far above them."
            ),
            cause=Cause.UNKNOWN,
        )
