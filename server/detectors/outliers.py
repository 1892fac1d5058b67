"""Outliers of the loss: single records far above their neighbours, kept so that other runs can be compared.

Rule: with m and s the median and 1.4826·MAD of the last 64 losses, a loss is an outlier above m + max(4.5 s, 0.5 % of
|m|). It is an event above m + max(5 s, 1 % of |m|). A smaller one is *quiet*: it becomes an event once another run
shows an outlier there. Losses that follow an outlier and are still high belong to it. A run with many outliers is
heavy-tailed: while 16 of them lie within 800 records, only those above their median count.

Each outlier carries the *loss pattern* before it: the differences of the last 64 losses between neighbours, divided by
their robust standard deviation. Two runs that read the same batches have nearly the same pattern, whatever their
model and optimizer are (correlation 0.9 and above on public GPT logs), and runs of another data order do not (0 ± 0.2).
The differences remove the level and the slope of the curve. Patterns are also taken at some fixed steps, the *marks*,
so that runs without a common outlier can be compared.

Trade-off: the patterns of the first 100 losses are missing, because there the curve itself is the pattern. An outlier
during a spike that lasts is not found.

>>> detector = OutlierDetector()
>>> context = Context()
>>> for step in range(60):
...     event = detector.update(Reading(step=step, loss=2.0 + 0.01 * (step % 3)), context)
>>> detector.update(Reading(step=60, loss=2.5), context).kind
<EventKind.LOSS_OUTLIER: 'loss-outlier'>
>>> context.outlier.step
60
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Final

import msgspec

from server.detectors.context import Context
from server.detectors.robust import RecentValues, median_and_spread
from server.detectors.signals import TINY, Reading
from server.models import AlertKind, Event, EventKind, Finding, Outlier

WINDOW: Final = 64
"""Number of losses before an outlier from which level, deviation and pattern are taken."""
MIN_LOSSES: Final = 40
"""Number of losses before which nothing is judged."""
MIN_PATTERN: Final = 100
"""Number of losses before which no pattern is taken."""
REFRESH: Final = 8
"""Number of losses after which the cheap threshold is computed again."""
QUIET, QUIET_RISE = 4.5, 0.005
"""Rise of an outlier that only other runs are compared to, in deviations and relative to the level."""
LOUD, LOUD_RISE = 5.0, 0.01
"""Rise of an outlier that is an event, in deviations and relative to the level."""
MAX_PATTERN: Final = 5.0
"""Largest absolute value in a pattern, in deviations; it keeps one outlier from deciding a correlation."""
PATTERN_SCALE: Final = 25.0
"""Units of the stored pattern for each deviation, so that `MAX_PATTERN` fits a signed byte."""
KNOWN: Final = 16
"""Number of latest outliers from which a heavy tail is recognised."""
KNOWN_RECORDS: Final = 800
"""Number of records within which so many outliers are a heavy tail."""
FIRST_MARK: Final = 128
"""Step from which the first record is a mark; each further mark is at twice the step."""
NAMED_KINDS: Final = (AlertKind.SPIKE, AlertKind.BAD_BATCH, AlertKind.GRADIENT_EXPLOSION)
"""Kinds of findings that name the outlier with which they began."""
AXES: Final = ("data_position", "tokens", "samples")
"""Scalars that give the position in the data, the most exact one first."""
KEEP: Final = 8
"""Number of the latest outliers that findings may name."""


class OutlierDetector(msgspec.Struct):
    """Detector of outliers of the loss."""

    losses: RecentValues = msgspec.field(default_factory=lambda: RecentValues(WINDOW))
    count: int = 0
    """Number of finite losses so far."""
    even: int = 0
    """Number of the latest losses that follow each other at one interval."""
    last_step: int | None = None
    """Step of the last finite loss."""
    interval: int = 1
    """Number of steps between the last two losses."""
    ceiling: float = math.inf
    """Loss above which the exact rule is computed."""
    is_high: bool = False
    """Whether the last loss was an outlier or belonged to one."""
    heights: list[float] = []
    """Heights of the latest outliers in deviations."""
    counts: list[int] = []
    """Counts of losses at which these outliers came."""
    steps: list[int] = []
    """Steps of the latest outliers, for the findings about them."""
    last_position: float | None = None
    """Position in the data at the last loss."""

    def update(self, reading: Reading, context: Context) -> Event | None:
        """Add one reading, and return the event of an outlier at its step."""
        loss = reading.loss
        if loss is None or not math.isfinite(loss):
            return None
        axis, position = position_of(context.scalars)
        spacing = 0.0 if position is None or self.last_position is None else position - self.last_position
        interval = 1 if self.last_step is None else reading.step - self.last_step
        self.even = self.even + 1 if interval == self.interval else 1
        self.interval, self.last_step, self.last_position = interval, reading.step, position
        event = None
        if self.count >= MIN_LOSSES:
            height = self._height(loss)
            if height is not None:
                outlier = Outlier(
                    step=reading.step,
                    loss=loss,
                    baseline=height[0],
                    deviations=height[1],
                    interval=interval,
                    is_quiet=height[1] < LOUD or loss - height[0] < LOUD_RISE * abs(height[0]),
                    pattern=self._pattern(),
                    axis=axis,
                    position=position,
                    spacing=spacing,
                )
                context.outlier = outlier
                event = None if outlier.is_quiet else _event(outlier)
            elif _crosses_mark(reading.step - interval, reading.step):
                context.outlier = Outlier(step=reading.step, interval=interval, pattern=self._pattern())
        self.losses.push(loss)
        self.count += 1
        if self.count % REFRESH == 0 and self.count >= MIN_LOSSES:
            level, spread = median_and_spread(self.losses.values)
            self.ceiling = level + 0.75 * max(QUIET * spread, QUIET_RISE * abs(level))
        return event

    def _height(self, loss: float) -> tuple[float, float] | None:
        """Return the level before a loss and its height in deviations if a new outlier begins with it."""
        if loss <= self.ceiling:
            self.is_high = False
            return None
        level, spread = median_and_spread(self.losses.values)
        rise = loss - level
        threshold = max(QUIET * spread, QUIET_RISE * abs(level), 0.0)
        if rise <= threshold:
            self.is_high = False
            return None
        # Before enough losses were seen, an outlier may have begun unnoticed.
        has_begun = self.is_high or self.losses.values[-1] - level > threshold
        self.is_high = True
        if has_begun:
            return None
        # Losses without any noise have no deviation; the rise is then compared to the smallest one that counts.
        deviations = min(rise / max(spread, QUIET_RISE * abs(level) / QUIET, TINY), 1e6)
        is_heavy = len(self.counts) == KNOWN and self.count - self.counts[0] < KNOWN_RECORDS
        usual = sorted(self.heights)[len(self.heights) // 2] if is_heavy else 0.0
        self.heights = [*self.heights[-(KNOWN - 1) :], deviations]
        self.counts = [*self.counts[-(KNOWN - 1) :], self.count]
        if deviations <= usual:
            return None
        assert self.last_step is not None
        self.steps = [*self.steps[-(KEEP - 1) :], self.last_step]
        return level, deviations

    def _pattern(self) -> bytes:
        """Return the pattern of the losses before this one as signed bytes; empty if they are too few or uneven."""
        if self.count < MIN_PATTERN or self.even <= WINDOW:
            return b""
        differences = [after - before for before, after in pairwise(self.losses.values)]
        centre, spread = median_and_spread(differences)
        scale = PATTERN_SCALE / max(spread, TINY)
        if spread <= TINY or not all(map(math.isfinite, (*differences, scale))):
            return b""
        bound = PATTERN_SCALE * MAX_PATTERN
        values = (round(min(max((value - centre) * scale, -bound), bound)) for value in differences)
        return bytes(value & 0xFF for value in values)

    def finding(self, reading: Reading, context: Context) -> None:
        """Report no finding: an outlier that matters is a spike or a bad batch."""
        del reading, context

    def name_outlier(self, finding: Finding) -> Finding:
        """Return a finding with the step of the outlier that it is about as evidence, if there is one."""
        if finding.kind not in NAMED_KINDS:
            return finding
        step = self.outlier_within(finding.step, finding.evidence.get("peak_step"))
        if step is None:
            return finding
        return msgspec.structs.replace(finding, evidence={**finding.evidence, "outlier_step": step})

    def outlier_within(self, first: int, last: object) -> int | None:
        """Return the step of the first known outlier from one step to another one, or None."""
        end = last if isinstance(last, int) else first
        return next((step for step in self.steps if first <= step <= max(first, end)), None)


def position_of(scalars: Mapping[str, float]) -> tuple[str | None, float | None]:
    """Return the name and the value of the scalar that gives the position in the data; (None, None) without one.

    >>> position_of({"loss": 2.0, "tokens": 4096.0})
    ('tokens', 4096.0)
    """
    for axis in AXES:
        value = scalars.get(axis)
        if value is not None and math.isfinite(value):
            return axis, value
    return None, None


def _event(outlier: Outlier) -> Event:
    detail = {"loss": outlier.loss, "baseline": outlier.baseline, "deviations": outlier.deviations}
    return Event(step=outlier.step, kind=EventKind.LOSS_OUTLIER, detail=detail)


def _crosses_mark(before: int, step: int) -> bool:
    """Return whether 128 times a power of two lies above the step before and not above this one.

    >>> _crosses_mark(255, 256), _crosses_mark(250, 260), _crosses_mark(256, 257)
    (True, True, False)
    """
    return step >= FIRST_MARK and before < FIRST_MARK << ((step // FIRST_MARK).bit_length() - 1)
