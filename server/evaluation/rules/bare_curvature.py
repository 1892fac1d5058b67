"""Curvature alone: λ_max, or λ_grad, above the limit 2/η.

Source: Cohen et al. 2022 (arXiv 2207.14484) and Bai et al. 2026. Runs at the edge of stability are above the limit for
much of their time, so that λ_max alone must be above it for ten samples in a row.
"""

from __future__ import annotations

from server.evaluation.rules.rule import PlainRule
from server.evaluation.signal_series import Fires, SignalSeries, in_a_row


def is_above(series: SignalSeries) -> Fires:
    """Return whether λ_max has been above the limit for ten samples."""
    return in_a_row(series.lambda_max > 1, 10)


def is_directed(series: SignalSeries) -> Fires:
    """Return whether λ_grad is above the limit."""
    return series.lambda_grad > 1


LAMBDA_MAX = PlainRule(name="bare λ_max", source="λ_max > 2/η for ten samples", fires=is_above, needs_curvature=True)
LAMBDA_GRAD = PlainRule(name="bare λ_grad", source="λ_grad > 2/η", fires=is_directed, needs_curvature=True)
