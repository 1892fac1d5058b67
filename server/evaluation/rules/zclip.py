"""ZClip: the gradient norm is 2.5 deviations above its moving average.

Source: Kumar et al. 2025, "ZClip: Adaptive Spike Mitigation for LLM Pre-Training" (arXiv 2504.02507). The averages of
the norm and of its squared deviation have a decay of 0.97 and start from the first 25 norms. A norm of z deviations
counts as one of 2.5²/z in the averages, as it is clipped there.
"""

from __future__ import annotations

import math

import numpy as np

from server.evaluation.rules.rule import PlainRule
from server.evaluation.signal_series import Fires, SignalSeries

DECAY = 0.97
THRESHOLD = 2.5  # deviations
WARM_UP = 25  # samples


def fires(series: SignalSeries) -> Fires:
    """Return whether ZClip would clip the gradient."""
    found = np.zeros(len(series.grad_norm), dtype=bool)
    first: list[float] = []
    mean = variance = 0.0
    for position, norm in enumerate(series.grad_norm.tolist()):
        if not math.isfinite(norm):
            continue
        if len(first) < WARM_UP:
            first.append(norm)
            mean, variance = float(np.mean(first)), float(np.var(first))
            continue
        deviation = math.sqrt(variance) + 1e-6
        z = (norm - mean) / deviation
        found[position] = z > THRESHOLD
        counted = mean + THRESHOLD**2 / z * deviation if z > THRESHOLD else norm
        mean = DECAY * mean + (1 - DECAY) * counted
        variance = DECAY * variance + (1 - DECAY) * (counted - mean) ** 2
    return found


RULE = PlainRule(name="ZClip", source="arXiv 2504.02507: z > 2.5 of ‖g‖, decay 0.97, warm-up 25", fires=fires)
