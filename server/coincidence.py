"""Outliers of different runs at the same step: whether they coincide beyond chance, and what that says about the data.

Owns the decision and its words; contains no statements and no I/O. A run that shows an outlier where another run shows
one is evidence for the data; a run that passed the step without one is evidence against.

Rule: an outlier of another run at the same step (`is_same_step`) coincides if

* the loss patterns before both correlate by 0.6 or more: the runs read the same batches; or
* both runs have at least three outliers in common, and so many by chance have a probability below 10⁻⁴; or
* both are very large (12 deviations and 10 % of the level) and so many very large ones at one step by chance have a
  probability below 0.005, or 0.0025 if the patterns show that the data order is another one.

Of two outliers that coincide at least one is not quiet. A run whose outlier and pattern are equal to the last bit is
the same training recorded twice, and proves nothing.

Trade-off: 63 differences of independent losses correlate by 0.15 at random, so 0.6 is four standard deviations. Runs
that share half of each batch correlate by 0.6 to 0.8 and are named. Two runs without a pattern, of irregular
intervals or with fewer than 100 losses, need a very large outlier.

>>> pattern = bytes(range(63))
>>> mine = Outlier(step=2_263, loss=4.0, baseline=2.0, deviations=30.0, is_quiet=False, pattern=pattern)
>>> other = Candidate(run_id="b", name="gpt-b", outlier=msgspec.structs.replace(mine, loss=3.5))
>>> found = coinciding(mine, [other], Surroundings(records=1_000))
>>> judged(mine, found, passed=2).sentence
'gpt-b spiked at the same step (2,263). 2 other runs passed it without that.'
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import numpy as np

from client_sdk import protocol
from client_sdk.answers import Coincidence, SameStep
from server.detectors.advice import advice_after_spike
from server.detectors.signals import Reading
from server.models import AlertKind, Cause, Outlier

MAX_RUNS: Final = 8
"""Number of runs up to which those that show an outlier, and those that passed without it, are counted."""
NAMED: Final = 3
"""Number of runs that a sentence names."""
SAME_DATA: Final = 0.6
"""Correlation of the loss patterns from which two runs read the same batches."""
OTHER_DATA: Final = 0.3
"""Correlation below which they do not."""
MIN_COMMON: Final = 3
"""Smallest number of common outliers that show a shared data order."""
COMMON_CHANCE: Final = 1e-4
"""Largest probability of so many common outliers by chance."""
LARGE, LARGE_RISE = 12.0, 0.1
"""Height of a very large outlier, in deviations and relative to the level."""
SEARCHED: Final = 2_000
"""Number of records before an outlier among which very large ones of other runs are counted."""
LARGE_CHANCE, OTHER_CHANCE = 5e-3, 2.5e-3
"""Largest probability of very large outliers at one step by chance: usually, and for runs of another data order."""
_MOVED: Final = (AlertKind.SPIKE, AlertKind.BAD_BATCH)
"""Kinds of alerts whose cause follows the evidence for and against the data."""


Marks = Mapping[tuple[int, int], bytes]
"""Loss patterns of a run at its marks, keyed by step and logging interval."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An outlier of another run near the step of a run's own one."""

    run_id: str
    name: str
    outlier: Outlier
    common: int = 0
    """Number of other outliers that the two runs have in common."""
    expected: float = 0.0
    """Number of common outliers that would be expected by chance."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Frequency of very large outliers of other runs around a step, from which chance is computed."""

    large: int = 0
    """Number of very large outliers of other runs among these records, without those at the step itself."""
    records: int = 1
    """Number of records that were searched."""

    @property
    def rate(self) -> float:
        """Expected number of very large outliers at a step; half a one is added, so that it is never zero."""
        return (self.large + 0.5) / max(self.records, 1)


def is_same_step(one: Outlier, other: Outlier) -> bool:
    """Return whether two outliers are at the same place of the data.

    Runs that both log the position on one axis are compared by it, others by their steps. Positions and steps must be
    equal, except in logs that leave steps out: there they must be closer than the larger logging interval.

    >>> is_same_step(Outlier(step=7), Outlier(step=8))
    False
    >>> is_same_step(Outlier(step=2_260, interval=10), Outlier(step=2_263))
    True
    """
    if one.axis is not None and one.axis == other.axis and one.position is not None and other.position is not None:
        distance = abs(one.position - other.position)
        is_one_grid = one.spacing == other.spacing and one.interval == other.interval == 1
        return distance == 0 or (not is_one_grid and distance < max(one.spacing, other.spacing))
    return abs(one.step - other.step) < max(one.interval, other.interval, 1)


def is_very_large(outlier: Outlier) -> bool:
    """Return whether an outlier is 12 deviations and 10 % of the level above it, or more."""
    rise = outlier.loss - outlier.baseline
    return outlier.deviations >= LARGE and rise >= LARGE_RISE * abs(outlier.baseline)


def correlation(one: bytes, other: bytes) -> float | None:
    """Return the correlation of two loss patterns, or None if one is missing or constant.

    >>> correlation(bytes([1, 2, 3]), bytes([2, 4, 6])), correlation(b"", bytes([1]))
    (1.0, None)
    """
    if not one or len(one) != len(other):
        return None
    x, y = (np.frombuffer(pattern, dtype=np.int8).astype(np.float64) for pattern in (one, other))
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return None if size == 0 else round(float(x @ y) / size, 6)


def pattern_decides(mine: Outlier, other: Outlier) -> bool:
    """Return whether the loss patterns before two outliers show that their runs read the same batches."""
    like = _likeness(mine, other)
    return like is not None and like >= SAME_DATA


def coinciding(mine: Outlier, others: Sequence[Candidate], around: Surroundings) -> list[Candidate]:
    """Return the outliers of other runs that coincide with one beyond chance, the largest first."""
    near = [
        other
        for other in others
        if is_same_step(mine, other.outlier)
        and not (mine.is_quiet and other.outlier.is_quiet)
        and not _is_copy(mine, other.outlier)
    ]
    likeness = {other.run_id: _likeness(mine, other.outlier) for other in near}
    large = [other for other in near if is_very_large(mine) and is_very_large(other.outlier)]
    chance = _at_least(len({other.run_id for other in large}), around.rate)
    found: dict[str, Candidate] = {}
    for other in sorted(near, key=lambda other: other.outlier.deviations, reverse=True):
        like = likeness[other.run_id]
        is_other_data = like is not None and like < OTHER_DATA
        is_shared = like is not None and like >= SAME_DATA
        is_common = other.common >= MIN_COMMON and _at_least(other.common, other.expected) < COMMON_CHANCE
        is_rare = other in large and chance < (OTHER_CHANCE if is_other_data else LARGE_CHANCE)
        if is_shared or is_common or is_rare:
            found.setdefault(other.run_id, other)
    return list(found.values())


def reads_other_data(mine: Marks, other: Marks, step: int) -> bool:
    """Return whether the latest mark that two runs have in common up to a step shows that they read other data."""
    common = [key for key in mine.keys() & other.keys() if key[0] <= step]
    like = correlation(mine[max(common)], other[max(common)]) if common else None
    return like is not None and like < OTHER_DATA


def judged(mine: Outlier, same: Sequence[Candidate], passed: int, other_data: int = 0) -> Coincidence | None:
    """Return the evidence of other runs about an outlier, None if none has passed its step.

    ``other_data`` is the number of the runs that passed it and read other data.
    """
    runs = tuple(SameStep(run_id=one.run_id, name=one.name, step=one.outlier.step) for one in same[:MAX_RUNS])
    return _phrased(
        Coincidence(
            step=mine.step, runs=runs, same=len(same), passed=min(passed, MAX_RUNS), other_data=min(other_data, passed)
        )
    )


def more_passed(mine: Outlier, before: Coincidence | None, passed: int, other_data: int = 0) -> Coincidence | None:
    """Return the evidence about an outlier after more runs passed its step without one."""
    known = before or Coincidence(step=mine.step)
    total = min(known.passed + passed, MAX_RUNS)
    other = min(known.other_data + other_data, total)
    return _phrased(msgspec.structs.replace(known, passed=total, other_data=other))


def _phrased(found: Coincidence) -> Coincidence | None:
    if not found.same and not found.passed:
        return None
    return msgspec.structs.replace(found, sentence=_sentence(found))


def _sentence(found: Coincidence) -> str:
    """Return the evidence of other runs in words."""
    runs = "1 other run" if found.passed == 1 else f"{_counted(found.passed)} other runs"
    if not found.same:
        told = f"{runs} passed step {found.step:,} without it"
        if not found.other_data:
            return f"{told}."
        if found.other_data < found.passed:
            return f"{told}, of which {found.other_data:,} read other data."
        return (
            f"{told}, but {'its losses show that it reads' if found.passed == 1 else 'their losses show'} other data."
        )
    names = [_name(run) for run in found.runs[:NAMED]]
    more = found.same - len(names)
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    if more > 0:
        listed = f"{', '.join(names)} and {_counted(more)} more"
    steps = {run.step for run in found.runs}
    where = f"step ({found.step:,})" if steps == {found.step} else "position in the data"
    if where != f"step ({found.step:,})":
        listed = ", ".join(f"{_name(run)} (step {run.step:,})" for run in found.runs[:NAMED])
        listed += f" and {_counted(more)} more" if more > 0 else ""
    passed = f" {runs} passed it without that." if found.passed else ""
    return f"{listed} spiked at the same {where}.{passed}"


def _counted(number: int) -> str:
    return f"{number:,} or more" if number >= MAX_RUNS else f"{number:,}"


def _name(run: SameStep) -> str:
    return " ".join(run.name.split()) or run.run_id


AlertT = TypeVar("AlertT", bound=protocol.Alert)


def informed(alert: AlertT, found: Coincidence | None) -> AlertT:
    """Return an alert with what other runs say about its step: as a sentence, as evidence, and in its cause.

    Runs that spiked at the same step turn an unknown cause into a bad batch. Runs that only passed the step without it
    turn a bad batch into an unknown cause, unless all of them read other data. A cause with evidence of its own stays.
    """
    if found is None:
        return alert
    evidence = dict(alert.evidence)
    if found.same:
        names = ", ".join(_name(run) for run in found.runs[:NAMED])
        evidence["same_step_runs"] = names + (f" and {found.same - NAMED} more" if found.same > NAMED else "")
    if found.passed:
        evidence["passed_without"] = found.passed
    cause, advice = alert.cause, alert.advice
    moved = {(Cause.UNKNOWN, True): Cause.BAD_BATCH, (Cause.BAD_BATCH, False): Cause.UNKNOWN}
    is_evidence = found.same > 0 or found.passed > found.other_data
    new = moved.get((Cause(cause), found.same > 0)) if alert.kind in _MOVED and is_evidence else None
    if new is not None:
        cause, advice = new.value, advice_after_spike(new, Reading(step=alert.step))
    return msgspec.structs.replace(
        alert, message=f"{alert.message} {found.sentence}", evidence=evidence, cause=cause, advice=advice
    )


def _is_copy(one: Outlier, other: Outlier) -> bool:
    """Return whether two outliers are the same record, stored twice."""
    return bool(one.pattern) and (one.loss, one.baseline, one.pattern) == (other.loss, other.baseline, other.pattern)


def _likeness(one: Outlier, other: Outlier) -> float | None:
    """Return the correlation of the patterns, None if they are not of the same steps."""
    if one.interval != other.interval or (one.step != other.step and one.axis is None):
        return None
    return correlation(one.pattern, other.pattern)


def _at_least(count: int, expected: float) -> float:
    """Return the probability that a Poisson number with this expectation reaches a count.

    >>> round(_at_least(1, 0.5), 3), _at_least(0, 0.5)
    (0.393, 1.0)
    """
    if count <= 0:
        return 1.0
    term = total = math.exp(-expected)
    for number in range(1, count):
        term *= expected / number
        total += term
    return max(0.0, 1.0 - total)
