"""Each layer against its own recent level, so that the layer which moves is the one that is seen. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCKS: Final = 12
"""Number of parts of the shown steps, each with one median."""
MIN_BLOCK: Final = 4
"""Smallest number of columns in a part."""
RECENT: Final = 3
"""Number of earlier parts whose median is the recent level; a spike in one of them does not change it."""


def against_usual(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return positive values divided by the recent level of their row, shape (rows, columns) as given.

    The recent level of a column is the median over the three parts of the shown steps before its own, interpolated
    between the parts; in the first part it is that part's own median. A zero is 0, but 1 in a layer that is always
    zero, because it is as usual there. A cell without a measurement is NaN.
    """
    rows, columns = values.shape
    if not columns:
        return values
    size = max(-(-columns // BLOCKS), min(MIN_BLOCK, columns))
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(np.isfinite(values) & (values > 0), np.log(values.astype(np.float64)), np.nan)
    starts = range(0, columns, size)
    medians = np.stack([_median(logs[:, start : start + size]) for start in starts], axis=1)  # [rows, parts]
    levels = np.stack(
        [_median(medians[:, max(part - RECENT, 0) : max(part, 1)]) for part in range(len(starts))], axis=1
    )
    middles = np.array([start + (min(size, columns - start) - 1) / 2 for start in starts])
    at = np.arange(columns)
    usual = np.stack([np.interp(at, middles, row) for row in levels]) if rows else np.empty((0, columns))
    relative = np.exp(logs - usual)
    is_zero = values == 0
    relative[is_zero] = np.where(np.isnan(usual), 1.0, 0.0)[is_zero]
    return relative.astype(np.float32)


def _median(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median of each row without its NaNs; NaN for a row that has nothing else."""
    rows = np.arange(len(logs))
    ordered = np.sort(logs, axis=1)  # NaNs last
    count = logs.shape[1] - np.isnan(logs).sum(axis=1)
    middles = ordered[rows, np.maximum(count - 1, 0) // 2], ordered[rows, count // 2]
    return np.asarray((middles[0] + middles[1]) / 2)
