"""Measurement of the evidence from other runs: recurring outliers that are named, and outliers named wrongly.

The logs of a kind stand for runs of one project that all passed each other's steps. Truth is taken from the losses on
both sides of a record, which the product does not have when it decides:

* Two logs read the same data around a step if the differences of their losses from 100 records before to 100 records
  after it, without the five around it, correlate by more than a half.
* A record is an outlier if its loss is more than 6 deviations and 1 % above the median of the 50 losses on each side.
  It *recurs* if at least three logs of the same data show one at its step.

A log recorded twice counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from server.coincidence import SEARCHED, Candidate, Surroundings, coinciding, is_same_step, is_very_large
from server.detectors.robust import median_and_spread
from server.models import Outlier

SIDE: Final = 50
"""Number of losses on each side of a record that tell whether it is an outlier."""
DEVIATIONS, RISE = 6.0, 0.01
"""Height of an outlier in deviations, and relative to the median."""
AROUND: Final = 100
"""Number of records on each side of a step that tell whether two logs read the same data."""
GAP: Final = 2
"""Number of records on each side of the step itself that are left out of it."""
SHARED: Final = 0.5
"""Correlation above which two logs read the same data."""
RECURS: Final = 3
"""Number of logs of the same data that make an outlier recur."""


@dataclass(frozen=True, kw_only=True)
class LossLog:
    """The losses of a log with the outliers that the product found in it."""

    name: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    outliers: tuple[Outlier, ...]


@dataclass(frozen=True, kw_only=True)
class CoincidenceScore:
    """Recurring outliers and what was named."""

    events: int = 0
    """Number of outliers that are events of their runs."""
    recurring: int = 0
    """Number of outliers of all logs that recur."""
    found: int = 0
    """Number of recurring outliers that are events of their run."""
    named: int = 0
    """Number of recurring outliers for which another run is named."""
    pairs: int = 0
    """Number of pairs of an event and a run that is named with it."""
    false: tuple[str, ...] = ()
    """Pairs of runs that read other data at the step, in words."""

    @property
    def share(self) -> float:
        """Share of the recurring outliers that are named; 1 where none recurs."""
        return self.named / self.recurring if self.recurring else 1.0


def measure(logs: Iterable[LossLog]) -> CoincidenceScore:
    """Return the score of the logs of one project."""
    unique = list({log.losses: log for log in logs}.values())
    same_data = _SameData(unique)
    tall = {log.name: {log.steps[at] for at in tall_records(log.losses)} for log in unique}
    named = {log.name: _named(log, unique) for log in unique}
    recurring = found = told = 0
    for log in unique:
        for step in tall[log.name]:
            alike = [other for other in unique if step in tall[other.name] and same_data(log, other, step)]
            if len(alike) >= RECURS:
                recurring += 1
                found += step in named[log.name]
                told += bool(named[log.name].get(step))
    pairs = [(log, other, step) for log in unique for step, others in named[log.name].items() for other in others]
    by_name = {log.name: log for log in unique}
    return CoincidenceScore(
        events=sum(map(len, named.values())),
        recurring=recurring,
        found=found,
        named=told,
        pairs=len(pairs),
        false=tuple(
            f"{log.name} at step {step}: {other}"
            for log, other, step in pairs
            if not same_data(log, by_name[other], step)
        ),
    )


def tall_records(losses: Sequence[float]) -> list[int]:
    """Return the positions of the losses far above their neighbours on both sides.

    >>> tall_records([1.0 + 0.01 * (at % 2) for at in range(60)] + [2.0] + [1.0 + 0.01 * (at % 2) for at in range(60)])
    [60]
    """
    found = []
    for at in range(SIDE, len(losses) - 1):
        sides = [*losses[at - SIDE : at], *losses[at + 1 : at + 1 + SIDE]]
        level, spread = median_and_spread(sides)
        if losses[at] - level > max(DEVIATIONS * spread, RISE * abs(level)):
            found.append(at)
    return found


class _SameData:
    """The truth about two logs at a step: whether they read the same data around it."""

    def __init__(self, logs: Sequence[LossLog]) -> None:
        self._losses: Mapping[str, NDArray[np.float64]] = {log.name: np.array(log.losses) for log in logs}
        self._known: dict[tuple[str, str, int], bool] = {}

    def __call__(self, one: LossLog, other: LossLog, step: int) -> bool:
        if one.name == other.name:
            return True
        first, second = sorted((one.name, other.name))
        key = (first, second, step)
        if key not in self._known:
            self._known[key] = self._shared(one, other, step)
        return self._known[key]

    def _shared(self, one: LossLog, other: LossLog, step: int) -> bool:
        begin = max(one.steps[0], other.steps[0], step - AROUND)
        end = min(one.steps[-1], other.steps[-1], step + AROUND)
        x, y = (self._losses[log.name][begin - log.steps[0] : end + 1 - log.steps[0]] for log in (one, other))
        if len(x) != len(y) or len(x) < AROUND // 2:
            return False
        x, y = np.diff(x), np.diff(y)
        away = np.abs(np.arange(begin, end) - step) > GAP
        x, y = (np.clip(part - np.median(part), *np.quantile(part, (0.02, 0.98))) for part in (x[away], y[away]))
        return bool(np.corrcoef(x, y)[0, 1] > SHARED)


def _named(log: LossLog, logs: Sequence[LossLog]) -> dict[int, list[str]]:
    """Return the names of the runs that are named with each event of a log, keyed by step."""
    found = {}
    for outlier in log.outliers:
        if not outlier.deviations:
            continue
        others = [
            Candidate(run_id=other.name, name=other.name, outlier=one)
            for other in logs
            if other is not log
            for one in other.outliers
            if one.deviations and is_same_step(outlier, one)
        ]
        same = [one.run_id for one in coinciding(outlier, others, _around(outlier, log, logs))] if others else []
        if same or not outlier.is_quiet:
            found[outlier.step] = same
    return found


def _around(outlier: Outlier, log: LossLog, logs: Sequence[LossLog]) -> Surroundings:
    reach = SEARCHED * outlier.interval
    large = sum(
        is_very_large(one) and 0 < outlier.step - one.step <= reach
        for other in logs
        if other is not log
        for one in other.outliers
    )
    return Surroundings(large=large, records=min(SEARCHED, outlier.step // max(outlier.interval, 1)))
