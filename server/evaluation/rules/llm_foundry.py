"""llm-foundry's `KillLossSpike`: five losses in a row above twice the mean of the last hundred.

The defaults are `window_size=100`, `outlier_multiplier=2` and `patience=4`. Its second check, a loss above
`loss_cap=10` for most of the window, is about losses of language models and left out.
"""

from __future__ import annotations

import numpy as np

from server.evaluation.rules.rule import PlainRule
from server.evaluation.signal_series import Fires, SignalSeries, before, in_a_row, mean_and_deviation, windows

WINDOW = 100  # samples
PATIENCE = 4  # outliers


def fires(series: SignalSeries) -> Fires:
    """Return whether the last five losses were outliers."""
    earlier = windows(before(series.loss), WINDOW)
    mean, _ = mean_and_deviation(earlier)
    is_full = ~np.isnan(earlier).any(axis=1)
    return in_a_row(is_full & (series.loss > 2 * mean), PATIENCE + 1)


RULE = PlainRule(
    name="llm-foundry KillLossSpike", source="llmfoundry KillLossSpike: 2 × the mean of 100, patience 4", fires=fires
)
