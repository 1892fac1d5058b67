"""A plain rule: whether it fires at each sample, from the signals up to that sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from server.evaluation.signal_series import Fires, SignalSeries


@dataclass(frozen=True, kw_only=True)
class PlainRule:
    """A rule that another program ships or a paper proposes, as a baseline for the detectors."""

    name: str
    source: str
    """Program or paper that states the rule, with the parameters that it gives."""
    fires: Callable[[SignalSeries], Fires]
    """Whether the rule is true at each sample, shape (samples,)."""
    needs_curvature: bool = False
