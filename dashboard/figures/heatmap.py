"""The heatmap of one statistic, rows of layers × steps, with exact values on hover. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from dashboard.figures.layer_names import block_of, short_names
from dashboard.figures.layer_rows import Row, RowChoice, arranged, extreme_layer, rows_of
from dashboard.figures.marks import Marks, draw
from dashboard.figures.scales import ColourScale, colour_bar_ticks, colour_scale, statistic
from dashboard.figures.theme import Frame, figure, layout, safe, step_axis, value_axis
from dashboard.figures.usual_level import against_usual
from dashboard.models import Heatmap

ROW_PIXELS = 15
MIN_PIXELS, MAX_PIXELS = 168, 430
AXIS_PIXELS = 34  # margins above and below the cells
LABEL_PIXELS = 13  # height of a layer name
LABEL_CHARS, NARROW_LABEL_CHARS = 24, 9
HOVER_CHARS = 64
MAX_BANDED = 80
"""Number of rows up to which lines separate the blocks."""
LONG_PAUSE = 4  # usual pauses between measured columns
MAX_USUAL_PAUSE = 64  # steps between measured ones that are no loss, above the longest interval that the SDK chooses


def heatmap_height(rows: int) -> int:
    """Return the height of the panel in pixels for a number of rows."""
    return max(MIN_PIXELS, min(ROW_PIXELS * rows, MAX_PIXELS)) + AXIS_PIXELS


def shown_heatmap(
    data: Heatmap | None, choice: RowChoice, *, stat: str, scale: str, reduce: str
) -> tuple[Heatmap | None, list[Row]]:
    """Return the heatmap as its figure shows it, and its rows; the arguments are those of `heatmap_figure`."""
    if data is None:
        return None, []
    data = without_pauses(data)
    if has_usual_level(stat, scale) and data.z.size:
        data = msgspec.structs.replace(data, z=against_usual(data.z))
    rows = rows_of(data.layers, data.z, choice)
    return arranged(data, rows, reduce), rows


def layer_at(data: Heatmap, name: str, step: int, *, stat: str, scale: str, reduce: str) -> str | None:
    """Return the layer of this name; of a folded block, the layer whose extreme the block shows at a step; else None.

    The other arguments are those of `heatmap_figure`.
    """
    if has_usual_level(stat, scale) and data.z.size:
        data = msgspec.structs.replace(data, z=against_usual(data.z))
    return extreme_layer(data, name, step, reduce)


def heatmap_figure(
    data: Heatmap | None,
    marks: Marks,
    frame: Frame,
    *,
    stat: str,
    scale: str,
    reduce: str = "max",
    choice: RowChoice | None = None,
) -> go.Figure:
    """Return the heatmap of a statistic. Cells without a measurement stay blank.

    ``scale``: "usual" for each layer against its own recent level, "log" for values with colours spread over decades,
    "linear" for values with colours in proportion. Cosines, shares and counts have no level to be compared with.
    ``reduce``: the value that stands for several steps or layers. ``choice``: what decides the rows; None for the
    default.
    """
    kind = statistic(stat)
    is_relative = has_usual_level(stat, scale)
    data, rows = shown_heatmap(data, choice or RowChoice(), stat=stat, scale=scale, reduce=reduce)
    colours = None
    if data is not None and data.z.size:
        colours = colour_scale(
            data.z, "ratio" if is_relative else kind.kind, logarithmic=scale != "linear", theme=frame.palette.name
        )
    traces: list[Any] = []
    labels = _categories(rows)
    if data is not None and colours is not None:
        value = "%{z:.3~g} × its recent level" if is_relative else "%{z:.5~g}"
        traces = [_cells(data, labels, colours, value), _colour_bar(colours, frame), *_nonfinite(data, labels, frame)]
    missing = (
        "no layer has this in its name"
        if data is not None and not rows
        else f"{kind.label}: not measured in these steps"
    )
    notes = _names(rows, frame) if colours is not None else [_missing(frame, missing)]
    return figure(
        traces,
        layout(
            frame,
            hovermode="closest",
            meta=[row.name for row in rows],
            xaxis=step_axis(frame, showgrid=False, showspikes=False),
            yaxis=value_axis(
                frame,
                type="category",
                range=[len(rows) - 0.5, -0.5],
                showgrid=False,
                showticklabels=False,
            ),
            shapes=[*draw(Marks(expected=marks.expected), frame, labelled=False)[0], *_bands(rows, frame)],
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


def _cells(data: Heatmap, labels: list[str], scale: ColourScale, value: str) -> dict[str, Any]:
    """Return the cells, with ``value`` as the template of their hover text.

    The rows are categories with full names, which hover shows without a copy per cell.
    """
    steps = "step %{x:,d}" if data.bucket_steps == 1 else f"{data.bucket_steps:,} steps at %{{x:,d}}"
    return {
        "type": "heatmap",
        "z": data.z,
        "x": _middles(data),
        "y": labels,
        "zmin": scale.low,
        "zmax": scale.high,
        "zauto": False,
        "colorscale": [list(stop) for stop in scale.stops],
        "showscale": False,
        "hoverongaps": False,
        "xgap": 0,
        "ygap": 1 if len(labels) <= 60 else 0,
        "hovertemplate": f"%{{y}}<br>{steps}<br><b>{value}</b><extra></extra>",
    }


def _middles(data: Heatmap) -> NDArray[np.int64]:
    """Return the middle step of each column, shape (columns,), as Plotly expects the position of a cell."""
    return np.asarray(data.step, dtype=np.int64) + (data.bucket_steps - 1) // 2


def _nonfinite(data: Heatmap, labels: list[str], frame: Frame) -> list[dict[str, Any]]:
    """Return a cross for each cell with values that are not finite, which would otherwise look unmeasured."""
    if not data.nonfinite:
        return []
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


def _names(rows: Sequence[Row], frame: Frame) -> list[dict[str, Any]]:
    """Return the names of the rows, shortened, and thinned if they do not fit.

    They are annotations, because hover would show a shortened tick label in place of the full name, and because a click
    on the name of a block folds or unfolds it. A leading layer has its full name, which may reach over the cells.
    """
    pixels = max(MIN_PIXELS, min(ROW_PIXELS * len(rows), MAX_PIXELS))
    every = max(1, math.ceil(len(rows) * LABEL_PIXELS / pixels))
    width = NARROW_LABEL_CHARS if frame.narrow else LABEL_CHARS
    shown = iter(short_names([row.name for row in rows if not row.is_pinned and not row.inside], width))
    inside = iter(short_names([row.name[len(row.block) + 1 :] for row in rows if row.inside], width - 2))
    notes: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        if row.is_pinned:
            notes.append(_label(number, safe(row.name), frame, is_over=len(row.name) > width))
            continue
        text = safe(next(inside) if row.inside else next(shown))
        if row.block and not row.inside:
            # Plotly passes the name of the annotation on when it is clicked.
            fold = {"name": row.block, "captureevents": True}
            notes.append(_label(number, f"{'▸' if row.is_folded else '▾'} {text}", frame) | fold)
        elif number % every == 0:
            notes.append(_label(number, text, frame))
    return notes


def _label(row: int, text: str, frame: Frame, *, is_over: bool = False) -> dict[str, Any]:
    place = {"xanchor": "left", "xshift": 2 - frame.left} if is_over else {"xanchor": "right", "xshift": -6}
    return {
        "x": 0, "xref": "paper", "y": row, "yref": "y", "yanchor": "middle", "text": text, "showarrow": False, **place,
        "bgcolor": frame.palette.label_ground if is_over else "rgba(0,0,0,0)", "borderpad": 0,
        "font": {"size": 10, "color": frame.palette.muted},
    }  # fmt: skip


def _bands(rows: Sequence[Row], frame: Frame) -> list[dict[str, Any]]:
    """Return the lines below the leading layers and between blocks."""

    def line(above: int, width: float) -> dict[str, Any]:
        return {
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": above + 0.5, "y1": above + 0.5,
            "line": {"color": frame.palette.surface, "width": width},
        }  # fmt: skip

    def group(row: Row) -> str:
        return row.block or block_of(row.name) or row.name

    found = []
    for number, (row, below) in enumerate(itertools.pairwise(rows)):
        if row.is_pinned and not below.is_pinned:
            found.append(line(number, 5))
        elif group(row) != group(below) and len(rows) <= MAX_BANDED and not row.is_pinned:
            found.append(line(number, 2))
    return found


def _categories(rows: Sequence[Row]) -> list[str]:
    """Return a distinct label for each row, because several writers may have layers of the same name."""
    seen: dict[str, int] = {}
    labels: list[str] = []
    for row in rows:
        name = wrapped(row.name)
        if row.is_pinned:
            name += " (leading)"
        elif row.block and not row.inside:
            name += f" ({len(row.layers)} layers)"
        seen[name] = seen.get(name, 0) + 1
        labels.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return labels


def wrapped(name: str) -> str:
    """Return an escaped name for hover, broken into lines if it is long."""
    lines = [safe(name[at : at + HOVER_CHARS]) for at in range(0, max(len(name), 1), HOVER_CHARS)]
    return "<br>".join(lines)


def _missing(frame: Frame, words: str) -> dict[str, Any]:
    return {
        "x": 0.5, "xref": "x domain", "y": 0.5, "yref": "y domain", "showarrow": False,
        "text": safe(words), "font": {"size": 13, "color": frame.palette.muted},
    }  # fmt: skip
