"""The outlier rule of OLMo-core's `SkipStepOptimizer`.

A step is skipped if its loss or its gradient norm lies more than 6 deviations above the mean of the last 128, once half
of them are known.
"""

from __future__ import annotations

import numpy as np

from server.evaluation.rules.rule import PlainRule
from server.evaluation.signal_series import Array, Fires, SignalSeries, before, mean_and_deviation, windows

INTERVAL = 128  # samples
DEVIATIONS = 6.0


def fires(series: SignalSeries) -> Fires:
    """Return whether the loss or the gradient norm is an outlier."""
    return _is_outlier(series.loss) | _is_outlier(series.grad_norm)


def _is_outlier(values: Array) -> Fires:
    earlier = windows(before(values), INTERVAL)
    mean, deviation = mean_and_deviation(earlier)
    is_known: Fires = np.isfinite(earlier).sum(axis=1) >= INTERVAL // 2
    return is_known & (values > mean + DEVIATIONS * deviation)


RULE = PlainRule(
    name="OLMo-core skip step", source="olmo_core SkipStepOptimizer: 6 deviations over 128 steps", fires=fires
)
