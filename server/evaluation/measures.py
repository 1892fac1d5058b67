"""The measures that scores are added up to over runs, and their confidence intervals. Pure.

Owns the definition of each measure: a ratio of two counts over the runs, or a median over the spikes that were told of
early. Intervals are percentiles of the measure over 2,000 draws of as many runs with replacement (the bootstrap), so
that the spikes of one run, which resemble each other, count as one observation. A draw in which a measure is not
defined is left out; fewer than half of the draws give no interval.

>>> measure(MEASURES["precision"], [])
Estimate(value=None, low=None, high=None, count=0)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from server.evaluation.scores import NARROW, Recall, RunScore

DRAWS: Final = 2_000
"""Number of draws behind an interval."""
COVERAGE: Final = 0.95
"""Share of the draws that an interval contains."""
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Share:
    """A ratio of two sums over the runs."""

    title: str
    hits: Callable[[RunScore], float]
    """Count of one run above the line."""
    cases: Callable[[RunScore], float]
    """Count of one run below the line."""
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Median:
    """A median over the spikes that were told of early, in all runs together."""

    title: str
    values: Callable[[RunScore], list[float]]
    """Values of one run."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The value of a measure with its confidence interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None
    count: int
    """Number of cases behind it: the spikes, alarms or steps below the line, or the values of a median."""


def _early(run: RunScore) -> tuple[Recall, ...]:
    """Return the spikes of a run that arose by themselves and were told of early."""
    return run.recalled if run.truth.is_intrinsic else ()


def _of_early(
    judge: Callable[[Recall], bool | None],
) -> tuple[Callable[[RunScore], float], Callable[[RunScore], float]]:
    """Return the number of early spikes that a judge calls right, and the number that it can judge."""
    return (
        lambda run: sum(judge(recall) is True for recall in _early(run)),
        lambda run: sum(judge(recall) is not None for recall in _early(run)),
    )


def _is_narrow_and_true(recall: Recall) -> bool | None:
    if recall.is_in_band is None or recall.width is None:
        return None
    return recall.is_in_band and recall.width <= NARROW


def _early_share(title: str, judge: Callable[[Recall], bool | None]) -> Share:
    """Return the share of the early spikes that a judge calls right, of those that it can judge."""
    return Share(
        title=title,
        hits=lambda run: sum(judge(recall) is True for recall in _early(run)),
        cases=lambda run: sum(judge(recall) is not None for recall in _early(run)),
    )


MEASURES: Final[Mapping[str, Share | Median]] = {
    "early": Share(
        title="early recall",
        hits=lambda run: len(_early(run)),
        cases=lambda run: len(run.events) if run.truth.is_intrinsic else 0,
    ),
    "faults": Share(
        title="early recall of injected faults",
        hits=lambda run: 0 if run.truth.is_intrinsic or run.truth.is_control else len(run.recalled),
        cases=lambda run: 0 if run.truth.is_intrinsic or run.truth.is_control else len(run.events),
    ),
    "precision": Share(title="precision", hits=lambda run: run.useful, cases=lambda run: run.useful + len(run.false)),
    "healthy": Share(
        title="false alarms per 1,000 healthy steps",
        hits=lambda run: len(run.false) if run.truth.is_control else 0,
        cases=lambda run: run.clean_steps if run.truth.is_control else 0,
        scale=1_000,
    ),
    "clean": Share(
        title="false alarms per 1,000 event-free steps",
        hits=lambda run: len(run.false),
        cases=lambda run: run.clean_steps,
        scale=1_000,
    ),
    "lead": Median(title="median lead to the onset, in steps", values=lambda run: [r.lead for r in _early(run)]),
    "peak": Median(title="median lead to the peak, in steps", values=lambda run: [r.lead_to_peak for r in _early(run)]),
    "dated": _early_share("early alarms with a date", lambda recall: recall.alarm.predicted is not None),
    "band": _early_share("onset inside the first range", lambda recall: recall.is_in_band),
    "width": Median(
        title="width of the range over the time left",
        values=lambda run: [recall.width for recall in _early(run) if recall.width is not None],
    ),
    "narrow": _early_share(f"inside a range of at most {NARROW} × the time left", _is_narrow_and_true),
    "date": _early_share("date within a factor of two", lambda recall: recall.is_date_right),
    "sized": _early_share("early alarms with a height", lambda recall: recall.alarm.height is not None),
    "height": _early_share("height within a factor of three", lambda recall: recall.is_height_right),
    "cause": Share(
        title="cause right",
        hits=lambda run: sum(cause in event.causes for event, cause in run.causes),
        cases=lambda run: len(run.causes),
    ),
}
"""All measures, in the order in which they are printed."""


def draws(runs: int, seed: int = 0) -> Array:
    """Return how often each run is drawn, shape (draws, runs)."""
    if not runs:
        return np.zeros((0, 0))
    drawn = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=DRAWS)
    return drawn.astype(np.float64)


def measure(one: Share | Median, runs: Sequence[RunScore], weights: Array | None = None) -> Estimate:
    """Return a measure over several runs. `weights` are the `draws` of its interval; without them it has none."""
    if isinstance(one, Share):
        hits = np.array([one.hits(run) for run in runs], dtype=np.float64)
        cases = np.array([one.cases(run) for run in runs], dtype=np.float64)
        total = cases.sum()
        value = float(one.scale * hits.sum() / total) if total else None
        drawn = None if weights is None or value is None else _shares(weights, hits, cases, one.scale)
        return _estimate(value, drawn, int(total))
    values = [one.values(run) for run in runs]
    flat = np.array([value for own in values for value in own], dtype=np.float64)
    if not flat.size:
        return _estimate(None, None, 0)
    owners = np.repeat(np.arange(len(values)), [len(own) for own in values])
    drawn = None if weights is None else _medians(weights, flat, owners)
    return _estimate(float(np.median(flat)), drawn, flat.size)


def _shares(weights: Array, hits: Array, cases: Array, scale: float) -> Array:
    with np.errstate(all="ignore"):
        found: Array = scale * (weights @ hits) / (weights @ cases)
    return found


def _medians(weights: Array, values: Array, owners: NDArray[np.intp]) -> Array:
    """Return the median of the values of each draw: the mean of those at which half of their weight is reached."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[:, owners[order]], axis=1)
    total = reached[:, -1:]
    first, second = np.argmax(reached >= total / 2, axis=1), np.argmax(reached > total / 2, axis=1)
    ordered = values[order]
    return np.where(total[:, 0] > 0, (ordered[first] + ordered[second]) / 2, np.nan)


def _estimate(value: float | None, drawn: Array | None, count: int) -> Estimate:
    if value is None or drawn is None:
        return Estimate(value=value, low=None, high=None, count=count)
    known = drawn[np.isfinite(drawn)]
    if 2 * known.size < drawn.size:
        return Estimate(value=value, low=None, high=None, count=count)
    low, high = np.quantile(known, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Estimate(value=value, low=float(low), high=float(high), count=count)
