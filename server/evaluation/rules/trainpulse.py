"""trainpulse's checks: the loss is above five times its rolling mean, or the gradient norm above 100.

The defaults of `trainpulse.MonitorConfig` are `loss_spike_threshold=5.0` over 50 losses and `grad_norm_threshold=100`.
"""

from __future__ import annotations

import numpy as np

from server.evaluation.rules.rule import PlainRule
from server.evaluation.signal_series import Fires, SignalSeries, before, mean_and_deviation, windows


def fires(series: SignalSeries) -> Fires:
    """Return whether the loss or the gradient norm is too large."""
    mean, _ = mean_and_deviation(windows(before(series.loss), 50))
    return (series.loss > 5 * mean) | (series.grad_norm > 100) | np.isinf(series.loss)


RULE = PlainRule(
    name="trainpulse", source="trainpulse MonitorConfig: 5 × the mean of 50 losses, ‖g‖ > 100", fires=fires
)
