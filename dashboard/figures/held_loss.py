"""The part of the loss that the unstable directions hold, as a second line of the loss panel with its trend. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client_sdk.answers import Buckets
from dashboard.figures.theme import Frame
from dashboard.numbers import exact

HELD_LOSS: Final = "mode_loss"
"""Name of the scalar."""
WORTH_SHOWING: Final = 0.01
"""Share of the loss that the directions must hold somewhere in view for the line to be drawn without a forecast."""
DECADES_BELOW: Final = 4.0
"""Decades below the lowest loss at which the line leaves the panel, so that the loss keeps its height."""
LABEL: Final = "held by the unstable direction"


@dataclass(frozen=True, kw_only=True)
class HeldLoss:
    """The loss that the unstable directions hold, in the unit of the loss."""

    steps: NDArray[np.float64]
    """Steps in ascending order, shape (n,) with n ≥ 1."""
    values: NDArray[np.float64]
    """Highest value of the bucket at each step, positive, shape (n,)."""
    shares: NDArray[np.float64]
    """The same as a share of the loss at the step, shape (n,); NaN where the loss is not known."""
    trend: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Steps and values of its extrapolation up to where it reaches the loss; None without a forecast."""


def held_loss(series: Buckets | None, loss: Buckets | None, *, growth: float | None = None) -> HeldLoss | None:
    """Return the line to draw beside the loss, or None if there is none or nothing to see in it.

    ``growth``: growth of the gradient's amplitude per step in an open forecast, so that the loss which the directions
    hold grows by twice as much; None without a forecast. A loss that is not positive everywhere cannot share a
    logarithmic axis, so there is no line either.
    """
    if series is None or loss is None:
        return None
    level = dict(zip(loss.step, loss.last, strict=True))
    if any(value is not None and value <= 0 for value in loss.min):
        return None
    points = [
        (step, value, level.get(step))
        for step, value in zip(series.step, series.max, strict=True)
        if value is not None and value > 0
    ]
    if not points:
        return None
    steps, values = np.array([point[0] for point in points], float), np.array([point[1] for point in points], float)
    beside = np.array([math.nan if point[2] is None else point[2] for point in points], float)
    if not bool(np.isfinite(beside).any()):
        return None
    shares = values / beside
    is_growing = growth is not None and growth > 0
    if not is_growing and not bool(np.any(shares >= WORTH_SHOWING)):
        return None
    trend = None
    if growth is not None and is_growing and math.isfinite(beside[-1]) and beside[-1] > values[-1]:
        ahead = math.log(beside[-1] / values[-1]) / (2 * growth)
        trend = np.array([steps[-1], steps[-1] + ahead]), np.array([values[-1], beside[-1]])
    return HeldLoss(steps=steps, values=values, shares=shares, trend=trend)


def held_traces(held: HeldLoss, frame: Frame) -> list[dict[str, Any]]:
    """Return the line and, dotted, its trend."""
    colour = frame.palette.danger
    line = {
        "type": "scatter", "mode": "lines" if held.steps.size > 1 else "markers", "x": held.steps, "y": held.values,
        "name": LABEL, "line": {"color": colour, "width": 1.2}, "marker": {"color": colour, "size": 5},
        "customdata": [_words(value, share) for value, share in zip(held.values, held.shares, strict=True)],
        "hovertemplate": LABEL + " <b>%{customdata}</b><extra></extra>",
    }  # fmt: skip
    if held.trend is None:
        return [line]
    trend = {
        "type": "scatter", "mode": "lines", "x": held.trend[0], "y": held.trend[1], "hoverinfo": "skip",
        "line": {"color": colour, "width": 1.6, "dash": "3px,3px"},
    }  # fmt: skip
    return [line, trend]


def held_label(
    held: HeldLoss, loss: NDArray[np.float64], steps: NDArray[np.float64], extent: Sequence[float], frame: Frame
) -> dict[str, Any]:
    """Return the label of the line, at the place of the panel where it covers least of both lines.

    ``loss`` and ``steps``: the line of the loss, shape (n,) each. ``extent``: exponents of ten of the vertical range.
    """
    low, high = extent
    width, height = frame.step_to - frame.step_from, high - low
    length, thick = (0.42 if frame.narrow else 0.24) * width, 0.15 * height
    with np.errstate(divide="ignore", invalid="ignore"):
        lines = [(held.steps, np.log10(held.values)), (steps, np.log10(loss))]

    def covered(left: float, top: float) -> int:
        """Return the number of points of both lines below a label, and a fine for distance from its own line."""
        under = 0
        for along, heights in lines:
            inside = (along >= left) & (along <= left + length)
            under += int(np.count_nonzero(inside & (heights > top - thick) & (heights < top + 0.02 * height)))
        return under

    places = [
        (frame.step_from + share * width, low + level * height)
        for level in (0.2, 0.35, 0.5, 0.65, 0.8)
        for share in (0.0, 0.1, 0.25, 0.4, 0.55)
    ]
    left, top = min(places, key=lambda place: covered(*place))
    return {
        "x": left, "y": top, "xref": "x", "yref": "y", "text": LABEL, "showarrow": False,
        "xanchor": "left", "yanchor": "top", "xshift": 4, "yshift": -2,
        "bgcolor": frame.palette.label_ground, "borderpad": 1, "font": {"size": 11, "color": frame.palette.danger},
    }  # fmt: skip


def held_words(held: HeldLoss) -> str:
    """Return how much of the loss the directions hold at their last step, or "" where the loss is not known there."""
    share = float(held.shares[-1])
    return f"{_percent(share)} held by the unstable direction" if math.isfinite(share) else ""


def _words(value: float, share: float) -> str:
    return exact(value) + (f", {_percent(share)}" if math.isfinite(share) else "")


def _percent(share: float) -> str:
    return f"{100 * share:.2g} % of the loss" if share < 0.995 else "all of the loss"
