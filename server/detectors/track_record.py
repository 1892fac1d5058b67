"""How the predictions of a run have fared, and what that allows the next one to claim.

Owns the counting: each warning is a claim with a due date, settled as the alert's lifecycle does, by a spike or by its
absence. Who hears three warnings in a row after which nothing came stops reading them, whatever the evidence looked
like. So from the third false one on, the claims of this run are tempered:

* for PAUSE·2ⁿ steps, n the number of false ones beyond, no claim is louder than a watch; from the sixth on none is
  heard at all. Then one may be loud again, and if it is false too the next pause is twice as long. Where nothing ever
  happens that makes at most 10 false predictions in 30,000 steps;
* each of the first three asks for more growth of the gradient before the next claim, against what is usual in the run;
* what is not told is settled all the same, and a spike that a claim saw coming, told or not, ends the pause at once and
  takes half of the count away. Small spikes (level watch) do not: in heavy-tailed noise they come by chance;
* a claim that stands is due after `LEAST_DUE` steps at the earliest, and counts anew then: a warning that never ends is
  as false as many short ones. Real build-ups last tens of steps, some hundreds.

Trade-off: in a run that was wrongly warned three times, the warnings of a real build-up are held back until it ends in
a spike. Bounded: four numbers.

>>> record = TrackRecord()
>>> for _ in range(3):
...     start = record.last_step + 1
...     for step in range(start, start + 200):
...         record.update(step, is_warned=step < start + 20, due=None, spiked=False)
>>> record.misses, record.is_tempered
(3, True)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import msgspec

from server.models import AlertLevel, Finding

TOLERATED: Final = 3
"""False claims in a row after which the next are tempered."""
SILENT: Final = 6
"""False claims in a row after which nothing is told while a pause lasts."""
PAUSE: Final = 250
"""Steps of the first pause."""
DEMAND: Final = 1.0
"""Times the usual |growth| that every false claim asks more of the next one, up to `TOLERATED` of them. Of normal noise
the mean of |slope| is 0.8 standard deviations: at three times the mean one in 120 slopes passes."""
MOST: Final = 10
"""False claims that are counted: the longest pause is 32,000 steps."""
MARGIN: Final = 20
"""Steps that a claim is waited for beyond its date, as in the alert's lifecycle."""
LEAST_DUE: Final = 100
"""Steps after which a claim is due, whatever its date: an alarm is early in the 100 steps before an onset."""


class TrackRecord(msgspec.Struct):
    """Of one run; it outlives an attempt, as what deceived the detectors does."""

    misses: int = 0
    """Claims in a row that were false."""
    due: int | None = None
    """Step by which the present claim has to come; None without one."""
    is_told: bool = False
    """Whether the present claim was told at its own level."""
    quiet_until: int = 0
    last_step: int = 0

    @property
    def is_tempered(self) -> bool:
        return self.last_step < self.quiet_until

    @property
    def demand(self) -> float:
        """Growth of the gradient that the next claim must show, in units of what is usual in this run."""
        return DEMAND * min(self.misses, TOLERATED)

    def update(self, step: int, *, is_warned: bool, due: int | None, spiked: bool) -> None:
        """``is_warned``: the predictor is at warning or above. ``due``: the last step of its band. ``spiked``: a spike
        worth a warning is under way, or the loss is no number any more."""
        self.last_step = step
        if spiked:
            if self.due is not None:
                self.misses, self.quiet_until = self.misses // 2, 0
            self.due = None
        elif self.due is not None and step >= self.due:
            if self.is_told:
                self.misses = min(self.misses + 1, MOST)
                if self.misses >= TOLERATED:
                    self.quiet_until = step + PAUSE * 2 ** (self.misses - TOLERATED)
            self.due = None
        elif is_warned and self.due is None:
            self.due = max(step + LEAST_DUE, step if due is None else due) + MARGIN
            self.is_told = not self.is_tempered

    def renew(self) -> None:
        """The run stepped back: a claim that is under way gets no result, and steps are counted anew."""
        self.quiet_until = max(self.quiet_until - self.last_step, 0)
        self.due, self.last_step = None, 0

    def tempered(self, finding: Finding | None) -> Finding | None:
        """A prediction as it may be told."""
        if finding is None or not self.misses:
            return finding
        evidence = {**finding.evidence, "false_alarms_before": self.misses}
        if not self.is_tempered:
            return replace(finding, evidence=evidence)
        if self.misses >= SILENT:
            return None
        note = f" Held at watch, as the last {self.misses} predictions of this run did not come."
        return replace(
            finding,
            level=AlertLevel.WATCH,
            title=finding.title.replace("predicted", "possible"),
            message=finding.message + note,
            evidence=evidence,
        )
