"""The histograms of one layer over the steps, as shares of its parameters. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from client_sdk.answers import Histogram
from dashboard.figures.scales import colour_scale
from dashboard.figures.theme import Frame, figure, layout, step_axis, value_axis

BINS: Final = 48
HEIGHT: Final = 168
"""Height of the panel in pixels."""


def histograms_figure(found: Sequence[Histogram], step: int, frame: Frame) -> go.Figure:
    """Return one column for each recorded histogram, on a common axis of values, with a line at a step."""
    shapes = [
        {
            "type": "line", "xref": "x", "yref": "y domain", "x0": step, "x1": step, "y0": 0, "y1": 1,
            "line": {"color": frame.palette.ink, "width": 1, "dash": "2px,2px"},
        }
    ]  # fmt: skip
    known = [item for item in found if item.step is not None and any(item.counts) and None not in item.edges]
    traces: list[Any] = [{"type": "scatter", "x": [frame.step_from], "y": [None], "hoverinfo": "skip"}]
    if known:
        edges = np.linspace(
            min(float(e.edges[0] or 0) for e in known), max(float(e.edges[-1] or 0) for e in known), BINS + 1
        )
        shares = np.stack([_rebinned(item, edges) for item in known], axis=1).astype(np.float32)
        shares[shares == 0] = np.nan
        scale = colour_scale(shares, "magnitude", logarithmic=False, theme=frame.palette.name)
        assert scale is not None
        traces = [
            {
                "type": "heatmap", "z": 100 * shares, "x": [item.step for item in known],
                "y": (edges[:-1] + edges[1:]) / 2, "zmin": 0, "zmax": 100 * scale.high, "showscale": False,
                "colorscale": [list(stop) for stop in scale.stops], "hoverongaps": False,
                "hovertemplate": "step %{x:,d}<br>near %{y:.3g}<br><b>%{z:.2~f} %</b> of the parameters<extra></extra>",
            }
        ]  # fmt: skip
    return figure(
        traces,
        layout(
            frame,
            hovermode="closest",
            xaxis=step_axis(frame, showgrid=False),
            yaxis=value_axis(frame, tickformat=".2~g"),
            shapes=shapes,
        ),
    )


def _rebinned(item: Histogram, edges: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the shares of the parameters between ``edges``, shape (n − 1,), as if they were even within a bin."""
    counts = np.asarray(item.counts, dtype=np.float64)
    below = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    return np.diff(np.interp(edges, np.asarray(item.edges, dtype=np.float64), below))
