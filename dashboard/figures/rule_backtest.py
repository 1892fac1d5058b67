"""The figure of a backtest: the values that a rule watches in one run and the steps at which it fires. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from client_sdk.answers import Firing, RunBacktest
from dashboard.figures.loss import decade_ticks, spans_decades
from dashboard.figures.theme import Frame, figure, layout, palette, step_axis, value_axis
from dashboard.numbers import exact


def rule_backtest_figure(run: RunBacktest, rule: Mapping[str, Any], theme: str, *, narrow: bool) -> go.Figure:
    """Return the watched values as a band, the firing steps as marks and the threshold as a line."""
    colours = palette(theme)
    steps = np.asarray(run.series.step, dtype=np.float64)
    low, high = np.asarray(run.series.min), np.asarray(run.series.max)
    last = max(float(steps[-1]) + run.series.bucket_steps, float(run.last_step or 0))
    frame = Frame(palette=colours, step_from=float(steps[0]), step_to=last, narrow=True, revision="backtest")
    logarithmic = spans_decades(low, high)
    hover = "step %{x:,d}<br><b>%{y:.4g}</b><extra></extra>"
    data: list[Any] = [
        {"type": "scatter", "mode": "lines", "x": steps, "y": low, "line": {"width": 0}, "hoverinfo": "skip"},
        {
            "type": "scatter", "mode": "lines", "x": steps, "y": high, "fill": "tonexty",
            "fillcolor": colours.accent_band, "line": {"color": colours.accent, "width": 1.4}, "hovertemplate": hover,
        },
    ]  # fmt: skip
    shapes: list[dict[str, Any]] = [
        {
            "type": "line", "xref": "x", "yref": "y domain", "x0": firing.step, "x1": firing.step, "y0": 0, "y1": 1,
            "line": {"color": colours.danger, "width": 1}, "opacity": 0.6,
        }
        for firing in run.firings
    ]  # fmt: skip
    if rule.get("condition") != "no-data":
        full = {"color": colours.danger, "size": 7, "line": {"width": 1.5, "color": colours.surface}}
        hollow = {"color": colours.surface, "size": 7, "line": {"width": 1.5, "color": colours.danger}}
        data += _marks(run.swallowed, hollow, "swallowed by the cooldown")
        data += _marks(run.firings, full, "fires")
    axis: dict[str, Any] = {}
    notes: list[dict[str, Any]] = []
    if logarithmic:
        bottom, top = np.log10(low.min()) - 0.2, np.log10(high.max()) + 0.2
        axis = {"type": "log", "range": [bottom, top], **decade_ticks(bottom, top, at_most=4)}
    limit = rule.get("value")
    if rule.get("condition") in ("above", "below") and isinstance(limit, int | float):
        if not logarithmic or limit > 0:
            position = float(np.log10(limit)) if logarithmic else float(limit)
            shapes.append(
                {
                    "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": limit, "y1": limit,
                    "line": {"color": colours.danger, "width": 1.5},
                }
            )  # fmt: skip
            notes.append(
                {
                    "xref": "paper", "x": 1, "y": position, "xanchor": "right", "yanchor": "bottom", "showarrow": False,
                    "text": f"{rule['condition']} {exact(float(limit))}",
                    "font": {"size": 11, "color": colours.danger},
                }
            )  # fmt: skip
        if not logarithmic:
            pad = 0.08 * max(float(max(high.max(), limit) - min(low.min(), limit)), 1e-12)
            axis = {"range": [min(float(low.min()), limit) - pad, max(float(high.max()), limit) + pad]}
    return figure(
        data,
        layout(
            frame,
            top=8,
            xaxis=step_axis(frame, nticks=4 if narrow else 6),
            yaxis=value_axis(frame, tickformat=None if logarithmic else "~g", **axis),
            shapes=shapes,
            annotations=notes,
            height=190,
        ),
    )


def _marks(firings: Sequence[Firing], marker: Mapping[str, Any], word: str) -> list[dict[str, Any]]:
    """Return a mark for each firing with a value."""
    found = [(firing.step, firing.value) for firing in firings if firing.value is not None]
    if not found:
        return []
    return [
        {
            "type": "scatter", "mode": "markers", "x": [step for step, _ in found], "y": [y for _, y in found],
            "marker": marker, "hovertemplate": f"{word} at step %{{x:,d}}<br><b>%{{y:.4g}}</b><extra></extra>",
        }
    ]  # fmt: skip
