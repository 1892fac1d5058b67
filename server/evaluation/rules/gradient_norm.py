"""The gradient norm is three times its moving average: the plainest rule about gradients."""

from __future__ import annotations

from server.evaluation.rules.rule import PlainRule
from server.evaluation.signal_series import Fires, SignalSeries


def fires(series: SignalSeries) -> Fires:
    """Return whether ‖g‖ is above three times its average with a decay of 0.98."""
    return series.grad_ratio > 3


RULE = PlainRule(name="gradient norm", source="‖g‖ > 3 × its moving average, decay 0.98", fires=fires)
