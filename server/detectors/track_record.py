"""How the predictions of a run have fared, and what that allows the next one to claim.

Owns the counting: each warning is a claim with a due date, settled as the alert's lifecycle does, by a spike or by its
absence. Who hears three warnings in a row after which nothing came stops reading them, whatever the evidence looked
like. So from the third false one on, the claims of this run are tempered:

* for PAUSE·2ⁿ steps, n the number of false ones beyond, no claim is louder than a watch; from the sixth on none is
  heard at all. Then one may be loud again, and if it is false too the next pause is twice as long. Where nothing ever
  happens that makes about ten false predictions in 30,000 steps;
* each of the first three asks for more growth of the gradient before the next claim, against what is usual in the run;
* what is not told is settled all the same, and a spike that a claim saw coming, told or not, ends the pause at once and
  takes half of the count away. A small spike (level watch) settles a claim without a word for or against: in
  heavy-tailed noise they come by chance;
* a claim that stands is due after `LEAST_DUE` steps at the earliest, and counts anew then: a warning that never ends is
  as false as many short ones. Real build-ups last tens of steps, some hundreds;
* a watch claims nothing and counts for nothing, but a list of them is noise as well: after `MANY` that passed in a row
  further ones are silent, for pauses that double in the same way.

Trade-off: in a run that was wrongly warned three times, the warnings of a real build-up are held back until it ends in
a spike. Bounded: a handful of numbers.

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

TOLERATED: Final = 3
"""False claims in a row after which the next are tempered."""
MANY: Final = 6
"""Watches in a row that passed after which the next are silent."""
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


class Patience(msgspec.Struct):
    """How often something came to nothing, and the pause that this costs."""

    misses: int = 0
    """In a row."""
    quiet_until: int = 0

    def lose(self, step: int, tolerated: int) -> None:
        """Once more; from ``tolerated`` times on a pause begins, each twice as long as the last."""
        self.misses = min(self.misses + 1, tolerated + MOST - TOLERATED)
        if self.misses >= tolerated:
            self.quiet_until = step + PAUSE * 2 ** (self.misses - tolerated)

    def regain(self) -> None:
        """It came true."""
        self.misses, self.quiet_until = self.misses // 2, 0

    def renew(self, last_step: int) -> None:
        """Steps are counted anew."""
        self.quiet_until = max(self.quiet_until - last_step, 0)


class TrackRecord(msgspec.Struct):
    """Of one run; it outlives an attempt, as what deceived the detectors does."""

    claims: Patience = msgspec.field(default_factory=Patience)
    watches: Patience = msgspec.field(default_factory=Patience)
    due: int | None = None
    """Step by which the present claim has to come; None without one."""
    is_told: bool = False
    """Whether the present claim was told at its own level."""
    is_watching: bool = False
    """A watch is under way that has claimed nothing, and is told."""
    last_step: int = 0

    @property
    def is_tempered(self) -> bool:
        """No prediction of this run is louder than a watch."""
        return self.last_step < self.claims.quiet_until

    @property
    def demand(self) -> float:
        """Growth of the gradient that the next claim must show, in units of what is usual in this run."""
        return DEMAND * min(self.claims.misses, TOLERATED)

    def update(self, step: int, level: str | None, *, due: int | None, spike: AlertLevel | None) -> None:
        """``level``: the predictor's own; None or empty for none. ``due``: the last step of its band. ``spike``: level
        of the one that is under way; critical too where the loss is no number any more."""
        self.last_step = step
        is_warned = level in (AlertLevel.WARNING, AlertLevel.CRITICAL)
        self._follow_watch(step, bool(level), is_warned, spike)
        if spike is not None:
            if self.due is not None and spike is not AlertLevel.WATCH:
                self.claims.regain()
                self.watches.regain()
            self.due = None
        elif self.due is not None and step >= self.due:
            if self.is_told:
                self.claims.lose(step, TOLERATED)
            self.due = None
        elif is_warned and self.due is None:
            self.due = max(step + LEAST_DUE, step if due is None else due) + MARGIN
            self.is_told = not self.is_tempered

    def _follow_watch(self, step: int, is_up: bool, is_warned: bool, spike: AlertLevel | None) -> None:
        if self.is_watching and not is_up and spike is None:
            self.watches.lose(step, MANY)
        told = step >= self.watches.quiet_until
        self.is_watching = is_up and not is_warned and spike is None and self.due is None and told

    def renew(self) -> None:
        """The run stepped back: what is under way gets no result, and steps are counted anew."""
        self.claims.renew(self.last_step)
        self.watches.renew(self.last_step)
        self.due, self.is_watching, self.last_step = None, False, 0

    def tempered(self, finding: Finding | None) -> Finding | None:
        """A prediction as it may be told."""
        if finding is None:
            return None
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
        note = f" Held at watch, as the last {misses} predictions of this run did not come."
        return replace(
            finding,
            level=AlertLevel.WATCH,
            title=finding.title.replace("predicted", "possible"),
            message=finding.message + note,
            evidence=evidence,
        )
