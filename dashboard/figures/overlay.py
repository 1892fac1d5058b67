"""The figure of one scalar of several runs, each in a colour of its own and named at its end. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from dashboard.figures.loss import decade_ticks, spans_decades
from dashboard.figures.run_curves import Envelope, Floats, RunCurve
from dashboard.figures.theme import Frame, figure, layout, safe, step_axis, value_axis
from dashboard.numbers import ellipsis

RUN_COLOURS: Final[Mapping[str, tuple[str, ...]]] = {
    "light": ("#2f6fde", "#a96500", "#0a7d5a", "#8a4bbd", "#b03a78", "#5f7a00", "#7a5a3c", "#007f9f"),
    "dark": ("#6ea2ff", "#f0b04a", "#3ecf9b", "#c58bf0", "#f283b6", "#b5cf4a", "#c9a27e", "#4cc9e6"),
}
"""Colours of the compared runs by their position, equal to `--run-0` and following of the stylesheet."""
DASHES: Final = ("solid", "solid", "solid", "solid", "dash", "dash", "dash", "dash")
"""Styles of the lines, so that no two runs differ by colour alone among eight."""
MARGIN_LEFT, NARROW_MARGIN_LEFT = 64, 52
MARGIN_RIGHT, NARROW_MARGIN_RIGHT = 150, 14
NAME_CHARS: Final = 22
NAME_GAP: Final = 0.075
"""Minimum distance of two names as a share of the height."""
GREY: Final = {"light": "rgba(109,113,120,0.20)", "dark": "rgba(141,148,158,0.24)"}


def overlay_figure(
    curves: Sequence[RunCurve],
    frame: Frame,
    *,
    unit: str,
    band: Envelope | None = None,
    scale: str = "auto",
    limit: float | None = None,
) -> go.Figure:
    """Return the curves over each other, with the extremes of each bucket as a faint band.

    ``unit``: words for the horizontal axis, such as "step". ``band``: envelope of healthy runs. ``scale``: "log",
    "linear", or "auto" for a logarithmic axis where the values span decades. ``limit``: value of a horizontal line.
    """
    shown = [_within(curve, frame) for curve in curves]
    values = _joined(shown)
    positive = values[values > 0]
    is_log = positive.size > 0 and (scale == "log" or (scale == "auto" and spans_decades(values, values)))
    y_range = _range(values, limit, is_log=is_log)
    data: list[Any] = [] if band is None else _envelope(band, frame)
    for curve in curves:
        data += _curve(curve, frame, unit)
    axis: dict[str, Any] = {"type": "log", **decade_ticks(*y_range, at_most=5)} if is_log else {}
    left, right = (NARROW_MARGIN_LEFT, NARROW_MARGIN_RIGHT) if frame.narrow else (MARGIN_LEFT, MARGIN_RIGHT)
    notes = [] if frame.narrow else _names(shown, y_range, frame, is_log=is_log)
    shapes = []
    if limit is not None:
        colour = frame.palette.danger
        shapes.append({"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "y0": limit, "y1": limit,
                       "line": {"color": colour, "width": 1.6}})  # fmt: skip
        notes.append({"xref": "x domain", "x": 1, "xanchor": "right", "yref": "y", "yanchor": "bottom",
                      "y": math.log10(limit) if is_log else limit, "text": "limit", "showarrow": False,
                      "font": {"size": 11, "color": colour}})  # fmt: skip
    number_format = ",d" if unit.endswith("step") or unit.startswith("steps") else ",.4~g"
    result = figure(
        data,
        layout(
            frame,
            top=10,
            bottom=38,
            xaxis=step_axis(
                frame,
                tickformat=number_format,
                hoverformat=number_format,
                title={"text": safe(unit), "standoff": 6, "font": {"size": 11, "color": frame.palette.muted}},
            ),
            yaxis=value_axis(frame, range=y_range, **axis),
            shapes=shapes,
            annotations=notes,
        ),
    )
    result.layout.margin.update(l=left, r=right)
    return result


def extent(curves: Sequence[RunCurve]) -> tuple[float, float]:
    """Return the first and last place of all curves, with a little room at the end."""
    ends = [(float(curve.x[0]), float(curve.x[-1])) for curve in curves if curve.x.size]
    if not ends:
        return 0.0, 1.0
    low, high = min(first for first, _ in ends), max(last for _, last in ends)
    return low, high + 0.02 * (high - low or 1.0)


def _curve(curve: RunCurve, frame: Frame, unit: str) -> list[dict[str, Any]]:
    colour = RUN_COLOURS[frame.palette.name][curve.place]
    parts: list[dict[str, Any]] = []
    if curve.x.size and bool(np.any(curve.high > curve.low)):
        edge = {
            "type": "scatter", "mode": "lines", "x": curve.x, "hoverinfo": "skip",
            "line": {"color": _faint(colour), "width": 0.6},
        }  # fmt: skip
        parts += [edge | {"y": curve.low}, edge | {"y": curve.high, "fill": "tonexty", "fillcolor": _faint(colour)}]
    parts.append(
        {
            "type": "scatter", "mode": "lines" if curve.x.size > 1 else "markers", "x": curve.x, "y": curve.last,
            "line": {"color": colour, "width": 1.8, "dash": DASHES[curve.place]},
            "marker": {"color": colour, "size": 6},
            "name": safe(ellipsis(curve.name, 2 * NAME_CHARS)), "customdata": _hover(curve, unit),
            "hovertemplate": "%{fullData.name} <b>%{customdata}</b><extra></extra>",
        }
    )  # fmt: skip
    return parts


def _hover(curve: RunCurve, unit: str) -> list[str]:
    """Return the hover text of each bucket: its value, and its own step where the axis is not that of the steps."""
    own = unit != "step"
    return [
        f"{value:.5g}" + (f"</b> step {step:,.0f}<b>" if own else "")
        for value, step in zip(curve.last, curve.step, strict=True)
    ]


def _envelope(band: Envelope, frame: Frame) -> list[dict[str, Any]]:
    known = np.isfinite(band.middle)
    x = band.x[known]
    grey = GREY[frame.palette.name]
    edge = {"type": "scatter", "mode": "lines", "x": x, "hoverinfo": "skip", "line": {"color": grey, "width": 0.8}}
    middle = {
        "type": "scatter", "mode": "lines", "x": x, "y": band.middle[known], "hoverinfo": "skip",
        "line": {"color": frame.palette.muted, "width": 1.2, "dash": "dot"},
    }  # fmt: skip
    return [edge | {"y": band.low[known]}, edge | {"y": band.high[known], "fill": "tonexty", "fillcolor": grey}, middle]


def _names(shown: Sequence[RunCurve], y_range: list[float], frame: Frame, *, is_log: bool) -> list[dict[str, Any]]:
    """Return the name of each run beside the end of its curve, moved apart where the ends are close."""
    ends: list[tuple[float, RunCurve]] = []
    for curve in shown:
        known = curve.last[np.isfinite(curve.last) & ((curve.last > 0) | (not is_log))]
        if known.size:
            at = math.log10(float(known[-1])) if is_log else float(known[-1])
            ends.append(((at - y_range[0]) / (y_range[1] - y_range[0]), curve))
    ends.sort(key=lambda pair: pair[0])
    heights: list[float] = []
    for height, _ in ends:
        heights.append(max(min(height, 1.0), heights[-1] + NAME_GAP if heights else 0.0))
    above = 1.0
    for index in reversed(range(len(heights))):
        above = heights[index] = min(heights[index], above)
        above -= NAME_GAP
    return [
        {
            "xref": "paper", "x": 1, "xanchor": "left", "xshift": 8, "yref": "paper", "y": height, "yanchor": "middle",
            "text": safe(_short(curve.name)), "showarrow": False, "align": "left",
            "font": {"size": 11, "color": RUN_COLOURS[frame.palette.name][curve.place]},
        }
        for height, (_, curve) in zip(heights, ends, strict=True)
    ]  # fmt: skip


def _short(name: str) -> str:
    """Return a name that fits beside the panel; the end of a name distinguishes runs best."""
    return ellipsis(name, NAME_CHARS)


def _within(curve: RunCurve, frame: Frame) -> RunCurve:
    """Return the part of a curve that the axis shows."""
    inside = (curve.x >= frame.step_from) & (curve.x <= frame.step_to)
    return RunCurve(
        name=curve.name, place=curve.place, x=curve.x[inside], low=curve.low[inside], high=curve.high[inside],
        last=curve.last[inside], step=curve.step[inside],
    )  # fmt: skip


def _joined(curves: Sequence[RunCurve]) -> Floats:
    """Return all finite values of the curves, extremes included."""
    values = np.concatenate([part for curve in curves for part in (curve.low, curve.high)] or [np.array([])])
    finite: Floats = values[np.isfinite(values)]
    return finite


def _range(values: Floats, limit: float | None, *, is_log: bool) -> list[float]:
    """Return the vertical range; exponents if ``is_log``."""
    known = values[values > 0] if is_log else values
    if limit is not None:
        known = np.append(known, limit)
    if not known.size:
        return [0.0, 1.0]
    low, high = float(known.min()), float(known.max())
    if is_log:
        low, high = math.log10(low), math.log10(high)
    room = (high - low) or abs(high) or 1.0
    return [low - 0.06 * room, high + 0.08 * room]


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"
