"""The heatmap of one statistic, layers × steps, with exact values on hover. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from dashboard.figures.marks import Marks, draw
from dashboard.figures.scales import ColourScale, colour_bar_ticks, colour_scale, statistic
from dashboard.figures.theme import Frame, figure, layout, safe, step_axis, value_axis
from dashboard.figures.usual_level import against_usual
from dashboard.models import Heatmap
from dashboard.numbers import ellipsis

ROW_PIXELS = 15
MIN_PIXELS, MAX_PIXELS = 168, 430
AXIS_PIXELS = 34  # margins above and below the cells
LABEL_PIXELS = 13  # height of a layer name
LABEL_CHARS, NARROW_LABEL_CHARS = 24, 9
HOVER_CHARS = 64
LONG_PAUSE = 4  # usual pauses between measured columns
MAX_USUAL_PAUSE = 64  # steps between measured ones that are no loss, above the longest interval that the SDK chooses


def heatmap_height(layers: int) -> int:
    """Return the height of the panel in pixels for a number of layers."""
    return max(MIN_PIXELS, min(ROW_PIXELS * layers, MAX_PIXELS)) + AXIS_PIXELS


def heatmap_figure(data: Heatmap | None, marks: Marks, frame: Frame, *, stat: str, scale: str) -> go.Figure:
    """Return the heatmap of a statistic. Cells without a measurement stay blank.

    ``scale``: "usual" for each layer against its own recent level, "log" for values with colours spread over decades,
    "linear" for values with colours in proportion. Cosines, shares and counts have no level to be compared with.
    """
    kind = statistic(stat)
    data = None if data is None else without_pauses(data)
    is_relative = has_usual_level(stat, scale)
    colours = None
    if data is not None and data.z.size:
        if is_relative:
            data = msgspec.structs.replace(data, z=against_usual(data.z))
        colours = colour_scale(
            data.z, "ratio" if is_relative else kind.kind, logarithmic=scale != "linear", theme=frame.palette.name
        )
    traces: list[Any] = []
    layers: tuple[str, ...] = data.layers if data is not None else ()
    if data is not None and colours is not None:
        value = "%{z:.3~g} × its recent level" if is_relative else "%{z:.5~g}"
        traces = [_cells(data, colours, value), _colour_bar(colours, frame), *_nonfinite(data, frame)]
    notes = _names(layers, frame) if colours is not None else [_missing(frame, kind.label)]
    return figure(
        traces,
        layout(
            frame,
            hovermode="closest",
            meta=list(layers),
            xaxis=step_axis(frame, showgrid=False, showspikes=False),
            yaxis=value_axis(
                frame,
                type="category",
                range=[len(layers) - 0.5, -0.5],
                showgrid=False,
                showticklabels=False,
            ),
            shapes=draw(Marks(expected=marks.expected), frame, labelled=False)[0],
            annotations=notes,
        ),
    )


def without_pauses(data: Heatmap) -> Heatmap:
    """Return the heatmap without the empty columns between measured ones, whose cells then reach half-way to the next.

    A run that measures every 8th step would look striped otherwise. Hover still names the step that was measured. A
    pause of more than `LONG_PAUSE` times the usual one stays blank, because something was lost there.
    """
    if not data.z.size:
        return data
    measured = np.flatnonzero(~np.isnan(data.z).all(axis=0))
    at = np.union1d(measured, np.array([column for _, column, _ in data.nonfinite], np.intp))
    if len(at) < 2 or len(at) == len(data.step):
        return data
    pauses = np.diff(at)
    is_long = pauses > max(LONG_PAUSE * float(np.median(pauses)), MAX_USUAL_PAUSE / data.bucket_steps + 1)
    edges = np.concatenate([at[:-1][is_long] + 1, at[1:][is_long] - 1])
    kept = np.union1d(at, np.concatenate([edges, np.arange(at[0]), np.arange(at[-1] + 1, len(data.step))]))
    place = {column: position for position, column in enumerate(kept.tolist())}
    return msgspec.structs.replace(
        data,
        step=tuple(data.step[column] for column in kept.tolist()),
        z=data.z[:, kept],
        nonfinite=tuple((row, place[column], count) for row, column, count in data.nonfinite),
    )


def has_usual_level(stat: str, scale: str) -> bool:
    """Return whether the cells of a statistic are shown against the recent level of their layer."""
    return scale == "usual" and statistic(stat).kind in ("magnitude", "ratio")


def _cells(data: Heatmap, scale: ColourScale, value: str) -> dict[str, Any]:
    """Return the cells, with ``value`` as the template of their hover text.

    The rows are categories with full names, which hover shows without a copy per cell.
    """
    steps = "step %{x:,d}" if data.bucket_steps == 1 else f"{data.bucket_steps:,} steps at %{{x:,d}}"
    return {
        "type": "heatmap",
        "z": data.z,
        "x": _middles(data),
        "y": _categories(data.layers),
        "zmin": scale.low,
        "zmax": scale.high,
        "zauto": False,
        "colorscale": [list(stop) for stop in scale.stops],
        "showscale": False,
        "hoverongaps": False,
        "xgap": 0,
        "ygap": 1 if len(data.layers) <= 60 else 0,
        "hovertemplate": f"%{{y}}<br>{steps}<br><b>{value}</b><extra></extra>",
    }


def _middles(data: Heatmap) -> NDArray[np.int64]:
    """Return the middle step of each column, shape (columns,), as Plotly expects the position of a cell."""
    return np.asarray(data.step, dtype=np.int64) + (data.bucket_steps - 1) // 2


def _nonfinite(data: Heatmap, frame: Frame) -> list[dict[str, Any]]:
    """Return a cross for each cell with values that are not finite, which would otherwise look unmeasured."""
    if not data.nonfinite:
        return []
    labels = _categories(data.layers)
    middles = _middles(data)
    return [
        {
            "type": "scatter", "mode": "markers",
            "x": [middles[column] for _, column, _ in data.nonfinite],
            "y": [labels[row] for row, _, _ in data.nonfinite],
            "customdata": [count for _, _, count in data.nonfinite],
            "marker": {"symbol": "x", "size": 6, "color": frame.palette.danger},
            "hovertemplate": "%{y}<br>step %{x:,d}<br><b>%{customdata} not finite</b><extra></extra>",
        }
    ]  # fmt: skip


def _colour_bar(scale: ColourScale, frame: Frame) -> dict[str, Any]:
    """Return an invisible point with the colour bar, whose axis may be in decades while the cells hold raw values."""
    positions, words = colour_bar_ticks(scale)
    return {
        "type": "scatter",
        "x": [None],
        "y": [None],
        "mode": "markers",
        "hoverinfo": "skip",
        "marker": {
            "color": [scale.position(scale.low)],
            "cmin": scale.position(scale.low),
            "cmax": scale.position(scale.high),
            "colorscale": [list(stop) for stop in scale.bar],
            "showscale": not frame.narrow,
            "colorbar": {
                "thickness": 9, "len": 1, "lenmode": "fraction", "y": 0.5, "yanchor": "middle", "x": 1, "xpad": 10,
                "ypad": 0, "outlinewidth": 0, "tickmode": "array", "tickvals": positions, "ticktext": words,
                "tickfont": {"size": 10, "color": frame.palette.muted}, "ticks": "", "ticklabelposition": "outside",
            },
        },
    }  # fmt: skip


def _names(layers: tuple[str, ...], frame: Frame) -> list[dict[str, Any]]:
    """Return the names of the rows, shortened from the left and thinned if they do not fit.

    They are annotations, because hover would show a shortened tick label in place of the full name.
    """
    pixels = max(MIN_PIXELS, min(ROW_PIXELS * len(layers), MAX_PIXELS))
    every = max(1, math.ceil(len(layers) * LABEL_PIXELS / pixels))
    width = NARROW_LABEL_CHARS if frame.narrow else LABEL_CHARS
    shown = short_names(layers, width)
    return [
        {
            "x": 0, "xref": "paper", "xanchor": "right", "xshift": -6, "y": row, "yref": "y", "yanchor": "middle",
            "text": safe(shown[row]), "showarrow": False,
            "font": {"size": 10, "color": frame.palette.muted},
        }
        for row in range(0, len(layers), every)
    ]  # fmt: skip


def short_names(layers: Sequence[str], width: int) -> list[str]:
    """Return names of at most ``width`` characters.

    A long name loses the leading parts that all names share, then `blocks.0.` becomes `b0.`, and the rest is cut from
    the left.
    """
    parts = [name.split(".") for name in layers]
    shared = 0
    if len(parts) > 1:
        fronts = zip(*(part[:-1] for part in parts), strict=False)
        shared = next((i for i, front in enumerate(fronts) if len(set(front)) > 1), min(map(len, parts)) - 1)
    names: list[str] = []
    for name, part in zip(layers, parts, strict=True):
        short = name
        if len(short) > width:
            short = ".".join(part[shared:])
        if len(short) > width:
            short = re.sub(r"(?<![^.])([A-Za-z])[A-Za-z_]*\.(\d+)(?=\.)", r"\1\2", short)
        names.append(ellipsis(short, width))
    return names


def _categories(layers: tuple[str, ...]) -> list[str]:
    """Return a distinct label for each row, because several writers may have layers of the same name."""
    seen: dict[str, int] = {}
    labels: list[str] = []
    for name in layers:
        seen[name] = seen.get(name, 0) + 1
        labels.append(wrapped(name) if seen[name] == 1 else f"{wrapped(name)} ({seen[name]})")
    return labels


def wrapped(name: str) -> str:
    """Return an escaped name for hover, broken into lines if it is long."""
    lines = [safe(name[at : at + HOVER_CHARS]) for at in range(0, max(len(name), 1), HOVER_CHARS)]
    return "<br>".join(lines)


def _missing(frame: Frame, label: str) -> dict[str, Any]:
    return {
        "x": 0.5, "xref": "x domain", "y": 0.5, "yref": "y domain", "showarrow": False,
        "text": f"{safe(label)}: not measured in these steps", "font": {"size": 13, "color": frame.palette.muted},
    }  # fmt: skip
