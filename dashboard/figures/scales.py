"""Colour scales of the heatmap, chosen by the kind of the statistic. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from plotly.colors import sample_colorscale

from client_sdk.vocabulary import STATISTICS, Statistic, StatisticKind


def statistic(name: str) -> Statistic:
    """Return the statistic of this name; a statistic of the user's own is read as a magnitude."""
    return STATISTICS.get(name) or Statistic(
        name=name,
        label=name,
        unit="",
        kind="magnitude",
        precision="rounded",
        meaning="a statistic of your own",
        formula="",
    )


# Ramps like magma, from the surface of each theme to its opposite: large values are light on dark, dark on light.
_DARK_RAMP = ("#1a1430", "#3b1461", "#6b1d7a", "#9b2d78", "#cb4069", "#ee6a55", "#fb9d61", "#fdd08c", "#fcf6c4")
_LIGHT_RAMP = ("#fdf6e6", "#fdd9a0", "#fba66b", "#ee7458", "#cf4668", "#a02f78", "#6d1f7c", "#3c1363", "#150b35")
_DARK_DIVERGING = ("#5b9fd0", "#3f7fb0", "#2c5d85", "#22405a", "#26282d", "#5a3226", "#a34c30", "#e8794e", "#ffc9a6")
_LIGHT_DIVERGING = ("#0b4f8a", "#3c86c4", "#93bfe0", "#dfe8ee", "#f6f4f1", "#f6dfd3", "#ea9f7d", "#cc5a38", "#7f2411")
_STOPS: Final = 33


@dataclass(frozen=True, kw_only=True)
class ColourScale:
    """Colours of the values from `low` to `high`."""

    low: float
    """Value of the first colour."""
    high: float
    """Value of the last colour."""
    logarithmic: bool
    """Whether the colours are spread over decades."""
    bar: tuple[tuple[float, str], ...]
    """Colour scale of the colour bar for Plotly; its axis is in decades if `logarithmic`."""
    stops: tuple[tuple[float, str], ...]
    """Colour scale of the cells for Plotly, over raw values, so that hover shows raw values."""

    def position(self, value: float) -> float:
        """Return the position of a value on the axis of the colour bar."""
        return math.log10(value) if self.logarithmic else value


def colour_scale(
    values: NDArray[np.float32], kind: StatisticKind, *, logarithmic: bool, theme: str
) -> ColourScale | None:
    """Return the colour scale of values of a statistic, or None if no value is finite.

    The ends snap to half decades, so that colours do not flicker while values arrive. The scale always contains the
    maximum, so that no spike is clipped. The neutral colour of a ratio stays at 1.
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return None
    ramp = _ramp(theme, kind in ("ratio", "cosine"))
    if kind == "cosine":
        return _scale(-1.0, 1.0, ramp, centre=0.0)
    positive = finite[finite > 0]
    if logarithmic and kind in ("magnitude", "ratio") and positive.size:
        # The lowest thousandth (dead layers, underflow) shares the lowest colour, so as not to stretch the scale.
        low = math.floor(2 * math.log10(float(np.quantile(positive, 0.001)))) / 2
        high = math.ceil(2 * math.log10(float(positive.max()))) / 2
        if kind == "ratio":
            return _scale(min(low, -0.5), max(high, 0.5), ramp, centre=0.0, logarithmic=True)
        return _scale(low, max(high, low + 0.5), ramp, logarithmic=True)
    low, high = float(finite.min()), float(finite.max())
    if kind == "ratio":
        return _scale(min(low, 0.5), max(high, 1.5), ramp, centre=1.0)
    low = min(low, 0.0)
    return _scale(low, high if high > low else low + 1.0, ramp)


def colour_bar_ticks(scale: ColourScale) -> tuple[list[float], list[str]]:
    """Return the ticks of the colour bar: positions on its axis and their texts.

    Plotly drops a tick at the very end of the bar, so the outermost ticks lie slightly inside.
    """
    low, high = scale.position(scale.low), scale.position(scale.high)
    inset = 0.004 * (high - low)
    if scale.logarithmic:
        every = max(1, math.ceil((high - low) / 6))
        exponents = [e for e in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1) if e % every == 0]
        marks = [(float(e), _decade(e)) for e in exponents]
    else:
        marks = [(float(x), f"{x:.3g}") for x in np.linspace(low, high, 5)]
    return [min(max(position, low + inset), high - inset) for position, _ in marks], [words for _, words in marks]


def _decade(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -3 <= exponent <= 4 else f"1e{exponent}"


def _ramp(theme: str, diverging: bool) -> tuple[str, ...]:
    if diverging:
        return _LIGHT_DIVERGING if theme == "light" else _DARK_DIVERGING
    return _LIGHT_RAMP if theme == "light" else _DARK_RAMP


def _scale(
    low: float, high: float, ramp: tuple[str, ...], *, centre: float | None = None, logarithmic: bool = False
) -> ColourScale:
    """Return the scale between two positions on the axis of the colour bar, which are exponents if ``logarithmic``.

    ``centre``: position of the middle of the ramp; None puts it half way. The scale has many stops, because Plotly
    interpolates the colours of cells over raw values.
    """
    middle = (low + high) / 2 if centre is None else centre
    positions = np.unique(np.append(np.linspace(low, high, _STOPS), middle))
    below, above = (positions - middle) / (middle - low), (positions - middle) / (high - middle)
    shares = 0.5 + 0.5 * np.where(positions < middle, below, above)
    colours = sample_colorscale(list(ramp), shares.tolist())
    raw = 10.0**positions if logarithmic else positions

    def stops(axis: NDArray[np.float64]) -> tuple[tuple[float, str], ...]:
        along = (axis - axis[0]) / (axis[-1] - axis[0])
        along[0], along[-1] = 0.0, 1.0
        return tuple((float(position), colour) for position, colour in zip(along, colours, strict=True))

    return ColourScale(
        low=float(raw[0]), high=float(raw[-1]), logarithmic=logarithmic, bar=stops(positions), stops=stops(raw)
    )
