"""The curve of one layer: one row of the heatmap as values against steps. Pure."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from client_sdk.answers import Buckets
from dashboard.figures.loss import loss_figure
from dashboard.figures.marks import Marks
from dashboard.figures.theme import Frame
from dashboard.models import Heatmap


def layer_figure(data: Heatmap, layer: str, step: int, marks: Marks, frame: Frame, *, name: str) -> go.Figure:
    """Return the values of a layer of the heatmap, connected over what was not measured, with a line at a step.

    ``name``: label of the statistic, for the hover. The layer must be one of the heatmap.
    """
    row = data.layers.index(layer)
    values = data.z[row].astype(np.float64)
    lost = {column: count for at, column, count in data.nonfinite if at == row}
    kept = [column for column in range(values.size) if np.isfinite(values[column]) or column in lost]
    column = tuple(float(values[at]) if np.isfinite(values[at]) else None for at in kept)
    buckets = Buckets(
        step=tuple(data.step[at] + (data.bucket_steps - 1) // 2 for at in kept),
        min=column,
        max=column,
        last=column,
        nonfinite=tuple(lost.get(at, 0) for at in kept),
    )
    figure = loss_figure(buckets, Marks(spikes=marks.spikes, expected=marks.expected), frame, name=name, labelled=False)
    figure.add_shape(
        type="line", xref="x", yref="y domain", x0=step, x1=step, y0=0, y1=1,
        line={"color": frame.palette.ink, "width": 1, "dash": "2px,2px"},
    )  # fmt: skip
    return figure
