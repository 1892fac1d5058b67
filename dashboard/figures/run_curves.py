"""Curves of compared runs on a common horizontal axis: steps, time or tokens. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client_sdk.answers import Buckets
from dashboard.figures.loss import numbers

Floats = NDArray[np.float64]
ENVELOPE_POINTS = 240
"""Number of places at which healthy runs are compared with each other."""
MIN_HEALTHY = 2
"""Number of healthy runs that an envelope needs."""
SECONDS_PER_UNIT = 60.0
"""The axis of time is in minutes."""


@dataclass(frozen=True, kw_only=True)
class RunAxis:
    """Place of the steps of one run on the horizontal axis."""

    steps: Floats
    """Steps in ascending order, shape (n,)."""
    places: Floats
    """Place of each of these steps, ascending, in units of the axis, shape (n,)."""

    def at(self, steps: Floats) -> Floats:
        """Return the places of steps, interpolated between those that are known."""
        return _along(steps, self.steps, self.places)

    def step_at(self, place: float) -> float:
        """Return the step at a place of the axis."""
        return float(_along(np.array([place]), self.places, self.steps)[0])

    def moved(self, origin: float) -> RunAxis:
        """Return the axis with 0 at a place of this one."""
        return RunAxis(steps=self.steps, places=self.places - origin)


@dataclass(frozen=True, kw_only=True)
class RunCurve:
    """A scalar of one run, in buckets."""

    name: str
    """Name of the run."""
    place: int
    """Position of the run in the comparison, which decides its colour."""
    x: Floats
    """Places of the buckets on the horizontal axis, shape (n,)."""
    low: Floats
    high: Floats
    last: Floats
    step: Floats
    """First steps of the buckets."""


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Extremes and median of healthy runs along the horizontal axis; NaN where too few of them have values."""

    x: Floats
    low: Floats
    high: Floats
    middle: Floats
    runs: int
    """Number of runs."""


def step_places(first: int, last: int) -> RunAxis:
    """Return the axis on which every step is its own place."""
    ends = np.array([first, max(last, first + 1)], dtype=np.float64)
    return RunAxis(steps=ends, places=ends)


def time_places(step_time: Buckets | None) -> RunAxis | None:
    """Return the axis of the minutes of training, added up from the seconds of each step; None without any.

    Pauses between attempts are not part of it. In buckets of several steps each step counts as the mean of the
    bucket's shortest, longest and last one.
    """
    if step_time is None or len(step_time.step) < 2:
        return None
    steps = np.asarray(step_time.step, dtype=np.float64)
    several = np.vstack([numbers(column) for column in (step_time.min, step_time.max, step_time.last)])
    seconds = np.nan_to_num(several.mean(axis=0), nan=0.0, posinf=0.0)
    spent = np.cumsum(seconds[:-1] * np.diff(steps))
    return RunAxis(steps=steps, places=np.concatenate([[0.0], spent]) / SECONDS_PER_UNIT)


def token_places(tokens: Buckets | None) -> RunAxis | None:
    """Return the axis of the tokens that training had read; None without any."""
    if tokens is None:
        return None
    steps, read = np.asarray(tokens.step, dtype=np.float64), numbers(tokens.last)
    known = np.isfinite(read)
    if known.sum() < 2:
        return None
    return RunAxis(steps=steps[known], places=np.maximum.accumulate(read[known]))


def run_curve(buckets: Buckets | None, axis: RunAxis, *, name: str, place: int) -> RunCurve:
    """Return a scalar of a run along an axis."""
    if buckets is None:
        empty = np.array([], dtype=np.float64)
        return RunCurve(name=name, place=place, x=empty, low=empty, high=empty, last=empty, step=empty)
    step = np.asarray(buckets.step, dtype=np.float64)
    low, high, last = (numbers(column) for column in (buckets.min, buckets.max, buckets.last))
    return RunCurve(name=name, place=place, x=axis.at(step), low=low, high=high, last=last, step=step)


def envelope(curves: Sequence[RunCurve]) -> Envelope | None:
    """Return the envelope of healthy runs, or None if fewer than `MIN_HEALTHY` have values."""
    known = [curve for curve in curves if curve.x.size >= 2]
    if len(known) < MIN_HEALTHY:
        return None
    x = np.linspace(min(curve.x[0] for curve in known), max(curve.x[-1] for curve in known), ENVELOPE_POINTS)
    low = np.vstack([_resampled(x, curve.x, curve.low) for curve in known])
    high = np.vstack([_resampled(x, curve.x, curve.high) for curve in known])
    last = np.vstack([_resampled(x, curve.x, curve.last) for curve in known])
    enough = np.isfinite(last).sum(axis=0) >= MIN_HEALTHY
    empty = np.full(x.size, math.nan)
    lowest, highest, middle = empty.copy(), empty.copy(), empty.copy()
    if enough.any():
        lowest[enough] = np.nanmin(low[:, enough], axis=0)
        highest[enough] = np.nanmax(high[:, enough], axis=0)
        middle[enough] = np.nanmedian(last[:, enough], axis=0)
    return Envelope(x=x, low=lowest, high=highest, middle=middle, runs=len(known))


def left_envelope(curve: RunCurve, band: Envelope) -> float | None:
    """Return the place from which a run stays above an envelope up to its end, or None if it is within it there."""
    has_band = np.isfinite(band.high)
    if not has_band.any():
        return None
    x = band.x[has_band]
    cell = float(band.x[1] - band.x[0])  # the end of the band lies within a cell of the last place that has one
    top = np.interp(curve.x, x, band.high[has_band])
    known = (curve.x >= x[0] - cell) & (curve.x <= x[-1] + cell) & np.isfinite(curve.last)
    above = (curve.last > top)[known]
    if not above.size or not above[-1]:
        return None
    within = np.flatnonzero(~above)
    first = 0 if within.size == 0 else int(within[-1]) + 1
    return float(curve.x[known][first])


def _along(at: Floats, known: Floats, values: Floats) -> Floats:
    """Interpolate, and go on at the mean rate beyond the known ends."""
    inside: Floats = np.interp(at, known, values)
    width = known[-1] - known[0]
    rate = (values[-1] - values[0]) / width if width > 0 else 0.0
    beyond: Floats = np.minimum(at - known[0], 0.0) + np.maximum(at - known[-1], 0.0)
    return inside + rate * beyond


def _resampled(x: Floats, known: Floats, values: Floats) -> Floats:
    finite = np.isfinite(values)
    if finite.sum() < 2:
        return np.full(x.size, math.nan)
    return np.interp(x, known[finite], values[finite], left=math.nan, right=math.nan)
