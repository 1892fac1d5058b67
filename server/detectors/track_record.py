"""The track record of a run's predictions, and what it allows the next prediction to claim.

Owns the counting. Each warning is a claim with a due step, settled like the alert by a spike or by its absence. People
stop reading warnings after three false ones in a row, whatever the evidence. So from the third false claim on, the
claims of this run are tempered:

* For 250·2ⁿ steps no claim is reported above level watch, where n is the number of further false claims; from the sixth
  false claim on none is reported at all. Then one claim may be loud again, and if it is false too, the next pause is
  twice as long. A run in which nothing ever happens so gets about ten false predictions in 30,000 steps.
* Each of the first three false claims asks for more growth of the gradient before the next claim, compared to the usual
  growth of the run.
* Claims that are not reported are settled all the same. A spike that a claim predicted, reported or not, ends the pause
  at once and halves the count. A small spike (level watch) settles a claim without counting for or against it, because
  in heavy-tailed noise small spikes come by chance.
* A standing claim is due after 100 steps at the earliest and then counts again: a warning that never ends is as false
  as many short ones. Real build-ups last tens of steps, sometimes hundreds.
* A watch claims nothing and does not count. But a list of watches is noise as well, so after six of them in a row that
  passed without a spike, further ones are not reported for pauses that double in the same way.

Trade-off: in a run with three false warnings, the warnings of a real build-up may be held back until its spike comes.
The memory is bounded: a handful of numbers.

>>> record = TrackRecord()
>>> for _ in range(3):
...     start = record.last_step + 1
...     for step in range(start, start + 200):
...         record.update(step, AlertLevel.WARNING if step < start + 20 else None, due=None, spike=None)
>>> record.claims.misses, record.is_tempered
(3, True)
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from server.models import AlertLevel, Finding

LOUD: Final = (AlertLevel.WARNING, AlertLevel.CRITICAL)
"""Levels at which a prediction is a claim; a watch claims nothing."""
TOLERATED: Final = 3
"""Number of consecutive false claims from which the next ones are tempered."""
MAX_WATCHES: Final = 6
"""Number of consecutive watches without a spike from which the next ones are not reported."""
SILENT: Final = 6
"""Number of consecutive false claims from which nothing is reported during a pause."""
PAUSE: Final = 250
"""Length of the first pause in steps."""
DEMAND: Final = 1.0
"""Growth that each of the first `TOLERATED` false claims adds to what the next one must show, over the usual growth.

In normal noise the mean of |slope| is 0.8 standard deviations, so one in 120 slopes exceeds three times the mean.
"""
MAX_MISSES: Final = 10
"""Number of false claims that are counted at most; the longest pause is 32,000 steps."""
MARGIN: Final = 20
"""Number of steps that a claim is still waited for beyond its forecast, as in the lifecycle of alerts."""
MIN_DUE: Final = 100
"""Smallest number of steps until a claim is due, because a warning may precede the onset by 100 steps."""


class Patience(msgspec.Struct):
    """The number of consecutive misses, and the pause that follows from them."""

    misses: int = 0
    """Number of consecutive misses."""
    quiet_until: int = 0
    """Step at which the pause ends."""

    def count_miss(self, step: int, tolerated: int) -> None:
        """Count a miss; from `tolerated` misses on a pause begins, each twice as long as the last one."""
        self.misses = min(self.misses + 1, tolerated + MAX_MISSES - TOLERATED)
        if self.misses >= tolerated:
            self.quiet_until = step + PAUSE * 2 ** (self.misses - tolerated)

    def count_hit(self) -> None:
        """Halve the number of misses and end the pause."""
        self.misses, self.quiet_until = self.misses // 2, 0

    def renew(self, last_step: int) -> None:
        """Continue the pause in a new attempt whose steps begin again."""
        self.quiet_until = max(self.quiet_until - last_step, 0)


class TrackRecord(msgspec.Struct):
    """The track record of one run. It outlives an attempt, because what misled the detectors usually does too."""

    claims: Patience = msgspec.field(default_factory=Patience)
    watches: Patience = msgspec.field(default_factory=Patience)
    due: int | None = None
    """Step by which the present claim must have come true; None without a claim."""
    is_told: bool = False
    """Whether the present claim was reported at its own level."""
    is_watching: bool = False
    """Whether a watch is reported that has not become a claim."""
    last_step: int = 0
    """Step of the last update."""

    @property
    def is_tempered(self) -> bool:
        """Whether predictions of this run are held at level watch."""
        return self.last_step < self.claims.quiet_until

    @property
    def demand(self) -> float:
        """Growth of the gradient that the next claim must show, in units of the usual growth of this run."""
        return DEMAND * min(self.claims.misses, TOLERATED)

    def update(self, step: int, level: str | None, *, due: int | None, spike: AlertLevel | None) -> None:
        """Add one step: the predictor's own level, the last step of its forecast, and the level of a spike in progress.

        A level of None or "" is no prediction. A loss that is no longer finite counts as a critical spike.
        """
        self.last_step = step
        is_warned = level in LOUD
        self._follow_watch(step, bool(level), is_warned, spike)
        if spike is not None:
            if self.due is not None and spike is not AlertLevel.WATCH:
                self.claims.count_hit()
                self.watches.count_hit()
            self.due = None
        elif self.due is not None and step >= self.due:
            if self.is_told:
                self.claims.count_miss(step, TOLERATED)
            self.due = None
        elif is_warned and self.due is None:
            self.due = max(step + MIN_DUE, step if due is None else due) + MARGIN
            self.is_told = not self.is_tempered

    def _follow_watch(self, step: int, is_up: bool, is_warned: bool, spike: AlertLevel | None) -> None:
        if self.is_watching and not is_up and spike is None:
            self.watches.count_miss(step, MAX_WATCHES)
        is_audible = step >= self.watches.quiet_until
        self.is_watching = is_up and not is_warned and spike is None and self.due is None and is_audible

    def renew(self) -> None:
        """Begin a new attempt: the present claim gets no result, and a pause continues from the first step."""
        self.claims.renew(self.last_step)
        self.watches.renew(self.last_step)
        self.due, self.is_watching, self.last_step = None, False, 0

    def tempered(self, finding: Finding) -> Finding | None:
        """Return a prediction as it may be reported, or None if it may not."""
        misses = self.claims.misses
        is_held = self.is_tempered and finding.level is not AlertLevel.WATCH
        if (is_held or finding.level is AlertLevel.WATCH) and self.last_step < self.watches.quiet_until:
            return None
        if self.is_tempered and misses >= SILENT:
            return None
        if not misses:
            return finding
        evidence = {**finding.evidence, "false_alarms_before": misses}
        if not is_held:
            return replace(finding, evidence=evidence)
        note = f" Held at level watch, because the last {misses} predictions of this run were false alarms."
        return replace(
            finding,
            level=AlertLevel.WATCH,
            title=finding.title.replace("predicted", "possible"),
            message=finding.message + note,
            evidence=evidence,
        )
