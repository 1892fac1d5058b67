"""The signals of a recording as arrays, one value for each sample: the input of the plain rules. Pure.

Every value depends on its own sample and those before it. A signal that a recording lacks is NaN, which no rule fires
on, because a comparison with NaN is false.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from server.evaluation.recording import Recording

SLOPE_STEPS: Final = 12
"""Number of samples in the regression of log‖g‖."""
Array = NDArray[np.float64]
Fires = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class SignalSeries:
    """Signals of one recording, each of shape (samples,)."""

    loss: Array
    """Loss; infinite where it is not finite."""
    grad_norm: Array
    rms_ratio: Array
    """Largest RMS_t of a layer."""
    decoupling: Array
    """Σg²/Σv̂ over all layers."""
    lambda_max: Array
    """Last measured λ_max over the limit 2/η."""
    lambda_grad: Array
    """Last measured λ_grad over the limit 2/η."""

    @cached_property
    def grad_ratio(self) -> Array:
        """Ratio of ‖g‖ to its moving average (decay 0.98) before this sample."""
        return self.grad_norm / average_before(self.grad_norm, 0.98)

    @cached_property
    def growth(self) -> Array:
        """Slope of log‖g‖ per sample over the last 12 samples."""
        with np.errstate(all="ignore"):
            logs = np.log(np.clip(self.grad_norm, 1e-30, 1e30))
        at = np.arange(SLOPE_STEPS) - (SLOPE_STEPS - 1) / 2
        slopes: Array = windows(logs, SLOPE_STEPS) @ at / (at @ at)
        return slopes


def series_of(recording: Recording) -> SignalSeries:
    """Return the signals of a recording."""
    samples = recording.samples
    scalars = {
        name: np.array([sample.scalars.get(name, np.nan) for sample in samples], dtype=np.float64)
        for name in ("loss", "grad_norm", "lambda_max", "lambda_grad", "stability_limit", "lr")
    }
    with np.errstate(all="ignore"):
        limit = np.where(np.isfinite(scalars["stability_limit"]), scalars["stability_limit"], 2 / scalars["lr"])
        squares, moments = _sums(recording)
        return SignalSeries(
            loss=np.where(np.isfinite(scalars["loss"]), scalars["loss"], np.inf),
            grad_norm=scalars["grad_norm"],
            rms_ratio=np.array([_largest(sample.statistic("rms_ratio")) for sample in samples]),
            decoupling=squares / moments,
            lambda_max=last_known(scalars["lambda_max"]) / limit,
            lambda_grad=last_known(scalars["lambda_grad"]) / limit,
        )


def last_known(values: Array) -> Array:
    """Return each value, or the last one before it that is not NaN."""
    at = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return values[at] if len(values) else values


def windows(values: Array, length: int) -> Array:
    """Return the last `length` values up to each one, shape (samples, length); NaN before the first one.

    >>> windows(np.array([1.0, 2.0, 3.0]), 2).tolist()[1:]
    [[1.0, 2.0], [2.0, 3.0]]
    """
    return sliding_window_view(np.concatenate([np.full(length - 1, np.nan), values]), length)


def before(values: Array) -> Array:
    """Return the value before each one; NaN before the first one."""
    return np.concatenate([[np.nan], values[:-1]])


def average_before(values: Array, decay: float) -> Array:
    """Return the moving average of the finite values before each one, corrected for its start."""
    averages = np.full(len(values), np.nan)
    total = weight = 0.0
    for position, value in enumerate(values.tolist()):
        if weight:
            averages[position] = total / weight
        if np.isfinite(value):
            total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
    return averages


def mean_and_deviation(values: Array) -> tuple[Array, Array]:
    """Return the mean and the sample deviation of the values that are finite in each row; NaN for fewer than two."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    filled = np.where(known, values, 0.0)
    with np.errstate(all="ignore"):
        mean = filled.sum(axis=1) / np.where(count > 0, count, np.nan)
        spread = np.where(known, values - mean[:, None], 0.0)
        deviation = np.sqrt((spread**2).sum(axis=1) / np.where(count > 1, count - 1, np.nan))
    return mean, deviation


def at_least_once(fires: Fires, length: int) -> Fires:
    """Return whether a condition was true at one of the last `length` samples."""
    found: Fires = np.nanmax(windows(fires.astype(np.float64), length), axis=1) > 0.5
    return found


def in_a_row(fires: Fires, length: int) -> Fires:
    """Return whether a condition has been true at the last `length` samples."""
    rows = windows(fires.astype(np.float64), length)
    found: Fires = np.where(np.isnan(rows), 0.0, rows).min(axis=1) > 0.5
    return found


def _sums(recording: Recording) -> tuple[Array, Array]:
    """Return Σg² and Σv̂ over all layers."""
    squares, moments = [], []
    for sample in recording.samples:
        norms, roots = sample.statistic("grad_norm"), sample.statistic("v_rms")
        if norms is None or roots is None or sample.layout is None:
            squares.append(np.nan)
            moments.append(np.nan)
            continue
        squares.append(float(np.sum(norms.astype(np.float64) ** 2)))
        moments.append(float(np.sum(roots.astype(np.float64) ** 2 * np.asarray(sample.layout.sizes))))
    return np.array(squares), np.array(moments)


def _largest(values: NDArray[np.float32] | None) -> float:
    if values is None:
        return np.nan
    known = values[~np.isnan(values)]
    return float(known.max()) if known.size else np.nan
