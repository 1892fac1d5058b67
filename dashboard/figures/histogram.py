"""The histogram of the update u or of the ratio r in one layer at one step. Pure."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from client_sdk.answers import Histogram
from dashboard.figures.theme import Frame, figure, layout, value_axis


def histogram_figure(data: Histogram | None, frame: Frame) -> go.Figure:
    """Return bars over the recorded bins."""
    traces = []
    if data is not None and len(data.edges) > 1 and None not in data.edges:
        edges = np.asarray(data.edges, dtype=np.float64)
        traces.append(
            {
                "type": "bar",
                "x": (edges[:-1] + edges[1:]) / 2,
                "y": np.asarray(data.counts, dtype=np.float64),
                "width": np.diff(edges),
                "marker": {"color": frame.palette.accent, "line": {"width": 0}},
                "customdata": np.stack([edges[:-1], edges[1:]], axis=1),
                "hovertemplate": "%{customdata[0]:.3g} to %{customdata[1]:.3g}<br><b>%{y:,d}</b> parameters"
                "<extra></extra>",
            }
        )
    base = layout(
        frame,
        top=6,
        bottom=22,
        bargap=0.04,
        hovermode="closest",
        dragmode=False,
        xaxis={
            "fixedrange": True, "showgrid": False, "zeroline": True, "zerolinecolor": frame.palette.line, "ticks": "",
            "tickfont": {"size": 11, "color": frame.palette.muted}, "nticks": 5,
        },
        yaxis=value_axis(frame, rangemode="tozero", nticks=3, tickformat="~s"),
    )  # fmt: skip
    base["margin"] = {"l": 40, "r": 8, "t": 6, "b": 22}
    return figure(traces, base)
