"""Figures as SVG text: panels of lines, dots and bars with linear or logarithmic axes.

Written by hand, because plotly can store a picture only with a browser, and because text can be compared in a review.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 880, 250
"""Pixels of a row of panels."""
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 30, 40
BLUE, RED, AMBER, PURPLE, GREEN, GREY = "#2f6fde", "#c8371b", "#c77700", "#8a4bbd", "#0a7d5a", "#6d7178"
COLOURS = (BLUE, AMBER, PURPLE, GREEN, RED, GREY)
POINTS = 700
"""Points of a line; of more, the lowest and the highest of each group are drawn."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Some points of a panel."""

    x: ArrayLike
    y: ArrayLike
    colour: str = BLUE
    name: str = ""
    kind: Literal["line", "dots", "bars", "dashes"] = "line"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    marks: Sequence[Mark]
    logarithmic: bool = False
    limits: Sequence[float] = ()
    """Values at which a red line is drawn across the panel."""
    categories: Sequence[str] = ()
    """Names of the whole numbers of the x axis, if it has names."""


def svg(rows: Sequence[Sequence[Panel]], title: str) -> str:
    """Return a figure of rows of panels."""
    height = HEIGHT * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="11" role="img" aria-label="{escape(title)}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for row, panels in enumerate(rows):
        width = WIDTH / len(panels)
        for column, panel in enumerate(panels):
            parts.append(f'<g transform="translate({column * width:.1f} {row * HEIGHT})">{_panel(panel, width)}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, width: float) -> str:
    right, bottom = width - RIGHT, HEIGHT - BOTTOM
    marks = [(mark, *_finite(mark, panel.logarithmic)) for mark in panel.marks]
    xs = np.concatenate([x for _, x, _ in marks])
    ys = np.concatenate([*(y for _, _, y in marks), _scaled(np.array(panel.limits, float), panel.logarithmic)])
    if any(mark.kind == "bars" for mark, _, _ in marks):
        ys = np.append(ys, 0.0)
    x_low, x_high = (-0.5, len(panel.categories) - 0.5) if panel.categories else _range(xs, 0.0)
    y_low, y_high = _range(ys, 0.06)

    def across(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (right - LEFT)

    def up(y: float) -> float:
        return bottom - (y - y_low) / (y_high - y_low) * (bottom - TOP)

    out = [f'<text x="{LEFT}" y="16" font-weight="600" fill="#1b1d21">{escape(panel.title)}</text>']
    for tick in _ticks(y_low, y_high, whole=panel.logarithmic):
        label = _power(tick) if panel.logarithmic else f"{tick:g}"
        out.append(
            f'<path d="M{LEFT} {up(tick):.1f}H{right:.1f}" stroke="#e4e4e0"/>'
            f'<text x="{LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end" fill="{GREY}">{label}</text>'
        )
    names = [(float(at), name) for at, name in enumerate(panel.categories)]
    names = names or [(tick, f"{tick:g}") for tick in _ticks(x_low, x_high)]
    out += [
        f'<text x="{across(at):.1f}" y="{bottom + 16}" text-anchor="middle" fill="{GREY}">{escape(name)}</text>'
        for at, name in names
    ]
    out.append(
        f'<text x="{(LEFT + right) / 2:.1f}" y="{HEIGHT - 8}" text-anchor="middle" fill="{GREY}">'
        f"{escape(panel.x_label)}</text>"
    )
    for limit in _scaled(np.array(panel.limits, float), panel.logarithmic):
        out.append(f'<path d="M{LEFT} {up(limit):.1f}H{right:.1f}" stroke="{RED}" stroke-dasharray="5 4"/>')
    for mark, x, y in marks:
        places = [(across(a), up(b)) for a, b in zip(x, y, strict=True)]
        out.append(_drawn(mark, places, up(max(y_low, 0.0)), (right - LEFT) / max(len(places), 1)))
    named = [mark for mark in panel.marks if mark.name]
    for at, mark in enumerate(named):
        x_at, y_at = right - 90, bottom - 8 - 14 * (len(named) - 1 - at)
        out.append(
            f'<rect x="{x_at:.1f}" y="{y_at - 8}" width="10" height="8" fill="{mark.colour}"/>'
            f'<text x="{x_at + 15:.1f}" y="{y_at}" fill="#1b1d21">{escape(mark.name)}</text>'
        )
    return "".join(out)


def _drawn(mark: Mark, places: list[tuple[float, float]], floor: float, step: float) -> str:
    if mark.kind == "bars":
        return "".join(
            f'<rect x="{x - step / 2:.1f}" y="{min(y, floor):.1f}" width="{max(step - 0.5, 0.5):.1f}" '
            f'height="{abs(floor - y):.1f}" fill="{mark.colour}"/>'
            for x, y in places
        )
    if mark.kind == "dots":
        return "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{mark.colour}"/>' for x, y in places)
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in _thinned(places))
    dashes = ' stroke-dasharray="6 3"' if mark.kind == "dashes" else ""
    return f'<path d="{path}" fill="none" stroke="{mark.colour}" stroke-width="1.4"{dashes}/>'


def _thinned(places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(places) <= POINTS:
        return places
    size = math.ceil(2 * len(places) / POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(places), size):
        group = places[start : start + size]
        kept += sorted({min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])})
    return kept


def _finite(mark: Mark, logarithmic: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(mark.x, float), _scaled(np.asarray(mark.y, float), logarithmic)
    return x[np.isfinite(y)], y[np.isfinite(y)]


def _scaled(values: NDArray[np.float64], logarithmic: bool) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):
        return np.log10(values) if logarithmic else values


def _range(values: NDArray[np.float64], margin: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    return low - margin * (high - low), high + margin * (high - low)


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    raw = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    step = max(1.0, round(step)) if whole else step
    first = math.ceil(low / step)
    return [round(step * at, 12) for at in range(first, math.floor(high / step) + 1)]


def _power(exponent: float) -> str:
    return f'10<tspan dy="-4" font-size="8">{exponent:.0f}</tspan>'
