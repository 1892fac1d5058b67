"""The spike score of OLMo 2: values at least seven deviations from the mean of the last 1,000.

Source: OLMo et al. 2024, "2 OLMo 2 Furious" (arXiv 2501.00656). The paper counts such steps; here each is an alarm.
"""

from __future__ import annotations

import numpy as np

from server.evaluation.rules.rule import PlainRule
from server.evaluation.signal_series import Fires, SignalSeries, before, mean_and_deviation, windows

WINDOW = 1_000  # samples
LEAST = 64
"""Number of losses from which the rule may fire here, so that short runs are judged at all."""


def fires(series: SignalSeries) -> Fires:
    """Return whether the loss is seven deviations above its mean."""
    earlier = windows(before(series.loss), WINDOW)
    mean, deviation = mean_and_deviation(earlier)
    is_known: Fires = np.isfinite(earlier).sum(axis=1) >= LEAST
    return is_known & (series.loss >= mean + 7 * deviation)


RULE = PlainRule(name="OLMo 2 spike score", source="arXiv 2501.00656: 7 deviations over 1,000 steps", fires=fires)
