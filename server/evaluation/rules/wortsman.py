"""Wortsman's RMS spike: the gradient of a layer is 2.3 times what its second moment remembers.

Source: Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language models" (arXiv
2304.13013): RMS_t = √mean(g²/max(v, ε²)) ≥ 2.3, after which loss spikes follow by one to eight steps.
"""

from __future__ import annotations

from server.evaluation.rules.rule import PlainRule
from server.evaluation.signal_series import Fires, SignalSeries


def fires(series: SignalSeries) -> Fires:
    """Return whether RMS_t of a layer is at least 2.3."""
    return series.rms_ratio >= 2.3


RULE = PlainRule(name="Wortsman RMS_t", source="arXiv 2304.13013: RMS_t of a layer ≥ 2.3", fires=fires)
