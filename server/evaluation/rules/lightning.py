"""Lightning's `SpikeDetection`: the loss exceeds its running mean by twice that mean.

The defaults are a window of 10 losses, a warm-up of one, `rtol=2.0`, and `finite_only=True`: a loss that is not finite
is a spike.
"""

from __future__ import annotations

import numpy as np

from server.evaluation.rules.rule import PlainRule
from server.evaluation.signal_series import Fires, SignalSeries, before, mean_and_deviation, windows


def fires(series: SignalSeries) -> Fires:
    """Return whether the loss is at least three times the mean of the ten losses before."""
    mean, _ = mean_and_deviation(windows(before(series.loss), 10))
    return (series.loss - mean >= 2 * np.abs(mean)) | np.isinf(series.loss)


RULE = PlainRule(
    name="Lightning SpikeDetection", source="lightning SpikeDetection: window 10, rtol 2, finite_only", fires=fires
)
