"""The z-score automation of Weights & Biases, for the loss.

The defaults of `wandb.automations.MetricZScoreFilter` are a window of 30 values and a threshold of 3. By default it
fires in both directions; only rises count here, because a fall of the loss is good news.
"""

from __future__ import annotations

from server.evaluation.rules.rule import PlainRule
from server.evaluation.signal_series import Fires, SignalSeries, before, mean_and_deviation, windows


def fires(series: SignalSeries) -> Fires:
    """Return whether the loss is three deviations above the mean of the 30 losses before."""
    mean, deviation = mean_and_deviation(windows(before(series.loss), 30))
    return series.loss > mean + 3 * deviation


RULE = PlainRule(name="W&B z-score", source="wandb.automations.MetricZScoreFilter: window 30, threshold 3", fires=fires)
