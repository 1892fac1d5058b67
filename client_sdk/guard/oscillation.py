"""The sign of an instability: the period-two component of the gradient grows steadily. Pure.

Owns the decision from the sums that `direction` reads at each step; no tensors. Where the logarithm of ‖e‖ follows a
rising straight line over the last steps, e is most of the gradient, and v has not caught up with the gradient, a
direction is over its stability limit. The growth ρ a step says by how much (`GradientResponse.stability_ratio`), and
the height of the rise that is ahead follows from the same numbers (docs/explanation/forecast.md)::

    held   = c²/(2·r·L)                                     the loss that the direction holds, c = ‖y‖ along it
    height = held · (r² − 1)·(1 − ρ⁻²)/((1 − β2)·D)         when v has caught up, D = Σg²/Σv̂ along it

with L = 2/(η·gain), the limit in the coordinates of y.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

from client_sdk.guard.direction import DECAY, Amounts

WINDOW: Final = 8
"""Steps whose growth is fitted."""
BRIEF: Final = 4
"""Steps that are enough where the growth is fast."""
FAST: Final = 0.15
"""Growth of the logarithm a step from which on `BRIEF` steps are enough."""
GROWING: Final = 0.04
"""Least growth of the logarithm a step."""
STRAIGHT: Final = 0.7
"""Least share of the variance that the straight line explains."""
ALTERNATING: Final = 0.55
"""Least share of e in the norm of the recent gradients, of that which a pure oscillation has; noise has a third."""
SETTLED: Final = 20
"""Steps after which the filter is judged."""


@dataclass(frozen=True, kw_only=True)
class Oscillation:
    """A direction that oscillates and grows."""

    growth: float
    """Growth of the logarithm of its amplitude a step."""
    stability_ratio: float
    """Curvature of the direction over its limit."""
    share: float
    """Share of the component in the norm of the recent gradients, 0 to 1."""
    decoupling: float
    """Σg²/Σv̂; below 1 while v has not caught up. NaN without a second moment."""
    held: float
    """Loss that the direction holds now."""
    height: float
    """Loss that it will hold at its peak, if nothing is done."""


class OscillationSign:
    """The decision after each step. Its memory is bounded."""

    def __init__(self) -> None:
        self._steps = 0
        self._level = 0.0
        self._logs: deque[float] = deque(maxlen=WINDOW)

    def forget(self) -> None:
        """Begin anew, because the next step does not follow upon the last one."""
        self.__init__()  # type: ignore[misc]

    def update(self, amounts: Amounts) -> Oscillation | None:
        """Take in the sums of one more step; return the oscillation if there is one that grows."""
        if not all(map(math.isfinite, amounts[:4])) or amounts.component <= 0:
            self.forget()
            return None
        self._steps += 1
        self._level = DECAY * self._level + (1.0 - DECAY) * amounts.whole
        known = 1.0 - DECAY**self._steps
        self._logs.append(0.5 * math.log(amounts.component) - math.log(known))
        if self._steps < SETTLED:
            return None
        share = math.sqrt(amounts.component / known**2 / (self._level / known))
        growth, fit = slope(list(self._logs))
        brief, brief_fit = slope(list(self._logs)[-BRIEF:])
        if brief > FAST and brief_fit > STRAIGHT:
            growth, fit = max(growth, brief), max(fit, brief_fit)
        share = min(1.0, share / pure_share(growth))
        decoupling = amounts.gradient / amounts.second_moment if amounts.second_moment > 0 else math.nan
        if growth < GROWING or fit < STRAIGHT or share < ALTERNATING or decoupling > 1.0:
            return None
        ratio = amounts.response.stability_ratio(growth)
        rho = math.exp(growth)
        amplitude = math.sqrt(amounts.component) * (1.0 - DECAY / rho) / (1.0 - DECAY)
        held = amplitude**2 * amounts.gain / (4.0 * ratio)
        peak = (ratio**2 - 1.0) * (1.0 - rho**-2) / max(1.0 - amounts.beta2, 1e-9)
        height = held * max(1.0, peak / (decoupling * share**2)) if decoupling > 0 else math.inf
        return Oscillation(
            growth=growth, stability_ratio=ratio, share=share, decoupling=decoupling, held=held, height=height
        )


def pure_share(growth: float) -> float:
    """Return ‖e‖ over the root of the level of ‖y‖² of a gradient that only oscillates and grows so fast.

    >>> round(pure_share(0.0), 6)
    1.0
    """
    rho = math.exp(max(growth, 0.0))
    return (1.0 - DECAY) / (1.0 - DECAY / rho) / math.sqrt((1.0 - DECAY) / (1.0 - DECAY / rho**2))


def slope(values: list[float]) -> tuple[float, float]:
    """Return the least-squares slope of successive values, and the share of their variance that the line explains."""
    y = np.asarray(values)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    centred = y - y.mean()
    found = float(x @ centred / (x @ x))
    variance = float(centred @ centred)
    return found, found**2 * float(x @ x) / variance if variance > 0 else 0.0
