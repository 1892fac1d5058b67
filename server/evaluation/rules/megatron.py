"""Megatron-LM's check for a spiky loss in its rerun state machine.

A loss is unexpectedly large if it is at least ten times the largest of the first hundred, or not finite.
"""

from __future__ import annotations

import numpy as np

from server.evaluation.rules.rule import PlainRule
from server.evaluation.signal_series import Fires, SignalSeries

FIRST = 100  # samples
FACTOR = 10.0


def fires(series: SignalSeries) -> Fires:
    """Return whether the loss is ten times the largest one of the beginning, or not finite."""
    first = series.loss[:FIRST]
    known = first[np.isfinite(first)]
    is_large = np.zeros(len(series.loss), dtype=bool)
    if known.size:
        is_large[FIRST:] = series.loss[FIRST:] >= FACTOR * known.max()
    return is_large | np.isinf(series.loss)


RULE = PlainRule(
    name="Megatron-LM spiky loss", source="megatron rerun_state_machine: 10 × the largest of 100 samples", fires=fires
)
