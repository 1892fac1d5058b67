"""Two dozen lines of rules: a decoupled second moment and a growing gradient, with and without curvature.

They are the simplest combinations of the signals that the detectors read, and the bar that these must pass. Without
curvature: v was decoupled from the gradient (Σg² < 0.1·Σv̂) within ten samples, and ‖g‖ climbs by 3 % a sample and is
1.5 times its average. With it: λ_grad is above the limit while ‖g‖ climbs by 2 % and Σg² < Σv̂; or the combination
without curvature holds and λ_max was within 10 % of the limit during the last ten samples.
"""

from __future__ import annotations

from server.evaluation.rules.rule import PlainRule
from server.evaluation.signal_series import Fires, SignalSeries, at_least_once


def without_curvature(series: SignalSeries) -> Fires:
    """Return whether v was just decoupled and the gradient climbs."""
    is_climbing = (series.growth > 0.03) & (series.grad_ratio > 1.5)
    return is_climbing & at_least_once(series.decoupling < 0.1, 10)


def with_curvature(series: SignalSeries) -> Fires:
    """Return whether the gradient climbs along a direction beyond the limit, or climbs while λ_max is near it."""
    is_beyond = (series.lambda_grad > 1) & (series.growth > 0.02) & (series.decoupling < 1)
    return is_beyond | (without_curvature(series) & at_least_once(series.lambda_max > 0.9, 10))


WITH = PlainRule(
    name="combination with curvature",
    source="λ_grad > 2/η with growth and decoupling",
    fires=with_curvature,
    needs_curvature=True,
)
WITHOUT = PlainRule(name="combination without", source="‖g‖ climbs after v was decoupled", fires=without_curvature)
