"""Heatmaps of several runs beside each other, with the same rows and the same colours. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from dashboard.figures.heatmap import LABEL_CHARS, NARROW_LABEL_CHARS, has_usual_level, without_pauses, wrapped
from dashboard.figures.layer_names import short_names
from dashboard.figures.run_curves import RunAxis
from dashboard.figures.scales import ColourScale, colour_bar_ticks, colour_scale, statistic
from dashboard.figures.theme import Frame, figure, layout, safe, step_axis, value_axis
from dashboard.figures.usual_level import against_usual
from dashboard.models import Heatmap
from dashboard.numbers import ellipsis

TITLE_PIXELS: Final = 22
AXIS_PIXELS: Final = 22
ROW_PIXELS: Final = 11
MIN_PIXELS, MAX_PIXELS = 96, 230
LABEL_PIXELS: Final = 12
LEFT, NARROW_LEFT, RIGHT, NARROW_RIGHT = 148, 68, 66, 14
GAP: Final = 0.035
"""Distance of two columns as a share of the width."""
TITLE_CHARS, NARROW_TITLE_CHARS = 60, 40


@dataclass(frozen=True, kw_only=True)
class RunHeatmap:
    """A statistic of one run along the common horizontal axis."""

    name: str
    data: Heatmap
    axis: RunAxis


def multiples_height(maps: Sequence[RunHeatmap], *, narrow: bool) -> int:
    """Return the height of the figure in pixels."""
    rows = -(-len(maps) // _columns(maps, narrow=narrow)) if maps else 1
    return rows * (_cell_pixels(maps) + TITLE_PIXELS + AXIS_PIXELS) + 8


def multiples_figure(maps: Sequence[RunHeatmap], frame: Frame, *, stat: str, colours: str, unit: str) -> go.Figure:
    """Return one heatmap for each run. A layer has the same row in all of them, blank in a run that lacks it.

    ``colours``: "usual" for each layer against its own recent level, "log" or "linear" for values.
    """
    kind = statistic(stat)
    is_relative = has_usual_level(stat, colours)
    layers = tuple(dict.fromkeys(layer for each in maps for layer in each.data.layers))
    tables = [_table(each, layers, is_relative) for each in maps]
    values = np.concatenate([table.ravel() for _, table in tables] or [np.array([], np.float32)])
    scale = colour_scale(
        values, "ratio" if is_relative else kind.kind, logarithmic=colours != "linear", theme=frame.palette.name
    )
    if scale is None:
        return figure([], layout(frame, annotations=[_missing(frame, kind.label)], xaxis={"visible": False},
                                 yaxis={"visible": False}))  # fmt: skip
    value = "%{z:.3~g} × its recent level" if is_relative else "%{z:.5~g}"
    columns, total = _columns(maps, narrow=frame.narrow), multiples_height(maps, narrow=frame.narrow)
    traces: list[Any] = []
    axes: dict[str, Any] = {}
    notes: list[dict[str, Any]] = []
    pixels = _cell_pixels(maps)
    for index, (each, (places, table)) in enumerate(zip(maps, tables, strict=True)):
        row, column = divmod(index, columns)
        top = 1 - (row * (pixels + TITLE_PIXELS + AXIS_PIXELS) + TITLE_PIXELS) / total
        bottom = top - pixels / total
        width = (1 - GAP * (columns - 1)) / columns
        left = column * (width + GAP)
        number = "" if index == 0 else str(index + 1)
        axes[f"xaxis{number}"] = step_axis(
            frame, domain=[left, left + width], anchor=f"y{number}", showgrid=False, showspikes=False,
            tickformat=",.5~g", nticks=4 if columns > 1 or frame.narrow else 9,
        )  # fmt: skip
        axes[f"yaxis{number}"] = value_axis(
            frame, type="category", domain=[bottom, top], anchor=f"x{number}", range=[len(layers) - 0.5, -0.5],
            showgrid=False, showticklabels=False,
        )  # fmt: skip
        traces.append(
            {
                "type": "heatmap", "z": table, "x": places, "y": [wrapped(layer) for layer in layers],
                "xaxis": f"x{number}", "yaxis": f"y{number}", "zmin": scale.low, "zmax": scale.high, "zauto": False,
                "colorscale": [list(stop) for stop in scale.stops], "showscale": False, "hoverongaps": False,
                "ygap": 1 if len(layers) <= 16 else 0,
                "hovertemplate": f"%{{y}}<br>{safe(unit)} %{{x:,.5~g}}<br><b>{value}</b><extra></extra>",
            }
        )  # fmt: skip
        notes.append(
            {
                "xref": "paper", "x": left, "xanchor": "left", "yref": "paper", "y": top, "yanchor": "bottom",
                "text": safe(ellipsis(each.name, NARROW_TITLE_CHARS if frame.narrow else TITLE_CHARS)),
                "showarrow": False, "font": {"size": 12, "color": frame.palette.ink},
            }
        )  # fmt: skip
        if column == 0:
            notes += _row_names(layers, pixels, f"y{number}", frame)
    traces.append(_colour_bar(scale, frame, total, pixels))
    result = figure(traces, layout(frame, top=0, bottom=8, hovermode="closest", annotations=notes, **axes))
    result.layout.margin.update(l=NARROW_LEFT if frame.narrow else LEFT, r=NARROW_RIGHT if frame.narrow else RIGHT)
    return result


def _columns(maps: Sequence[RunHeatmap], *, narrow: bool) -> int:
    return 1 if narrow or len(maps) < 2 else 2


def _cell_pixels(maps: Sequence[RunHeatmap]) -> int:
    layers = len({layer for each in maps for layer in each.data.layers})
    return max(MIN_PIXELS, min(ROW_PIXELS * layers, MAX_PIXELS))


def _table(
    each: RunHeatmap, layers: tuple[str, ...], is_relative: bool
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the places of the columns, and the values with one row for each of all layers."""
    data = without_pauses(each.data)
    z = against_usual(data.z) if is_relative else data.z
    table = np.full((len(layers), len(data.step)), math.nan, dtype=np.float32)
    rows = {layer: row for row, layer in enumerate(layers)}
    for row, layer in enumerate(data.layers):
        table[rows[layer]] = z[row]
    steps = np.asarray(data.step, dtype=np.float64) + (data.bucket_steps - 1) / 2
    return each.axis.at(steps), table


def _row_names(layers: tuple[str, ...], pixels: int, axis: str, frame: Frame) -> list[dict[str, Any]]:
    every = max(1, math.ceil(len(layers) * LABEL_PIXELS / pixels))
    shown = short_names(layers, NARROW_LABEL_CHARS if frame.narrow else LABEL_CHARS)
    return [
        {
            "x": 0, "xref": "paper", "xanchor": "right", "xshift": -6, "y": row, "yref": axis, "yanchor": "middle",
            "text": safe(shown[row]), "showarrow": False, "font": {"size": 10, "color": frame.palette.muted},
        }
        for row in range(0, len(layers), every)
    ]  # fmt: skip


def _colour_bar(scale: ColourScale, frame: Frame, total: int, pixels: int) -> dict[str, Any]:
    """Return an invisible point with the one colour bar of all heatmaps, beside the first of them."""
    positions, words = colour_bar_ticks(scale)
    return {
        "type": "scatter", "x": [None], "y": [None], "mode": "markers", "hoverinfo": "skip",
        "marker": {
            "color": [scale.position(scale.low)], "cmin": scale.position(scale.low), "cmax": scale.position(scale.high),
            "colorscale": [list(stop) for stop in scale.bar], "showscale": not frame.narrow,
            "colorbar": {
                "thickness": 9, "len": pixels / total, "lenmode": "fraction", "y": 1 - TITLE_PIXELS / total,
                "yanchor": "top", "x": 1, "xpad": 10, "ypad": 0, "outlinewidth": 0, "tickmode": "array",
                "tickvals": positions, "ticktext": words, "tickfont": {"size": 10, "color": frame.palette.muted},
                "ticks": "", "ticklabelposition": "outside",
            },
        },
    }  # fmt: skip


def _missing(frame: Frame, label: str) -> dict[str, Any]:
    return {
        "x": 0.5, "xref": "paper", "y": 0.5, "yref": "paper", "showarrow": False,
        "text": f"{safe(label)}: no run has measured it in these steps",
        "font": {"size": 13, "color": frame.palette.muted},
    }  # fmt: skip
