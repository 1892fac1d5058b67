"""The figure of λ_max and λ_grad against the limit 2/η, with the forecast and the strip of stages. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from client_sdk.answers import Buckets
from client_sdk.vocabulary import CURVE_MEANINGS
from dashboard.figures.loss import decade_ticks, numbers
from dashboard.figures.marks import Marks, draw
from dashboard.figures.stage_strip import Span, strip_trace, strip_track
from dashboard.figures.theme import Frame, figure, layout, safe, step_axis, value_axis
from dashboard.numbers import exact

CURVES = ("lambda_max", "lambda_grad", "stability_limit", "critical_sharpness")
"""Names of the scalars in the figure; the critical sharpness is drawn where a run has no λ_max."""
LIMIT = "stability_limit"
MAX_DECADES = 4.0
"""Maximum height of the vertical range in decades."""
CEILING = 3.0
"""Multiple of the limit above which a transient may leave the vertical range."""
RECENT = 20
"""Number of newest values that the vertical range always contains."""
LABEL_POSITIONS = (0.0, 0.2, 0.4, 0.6, 0.1, 0.3, 0.5)
"""Candidate positions of the limit's label as shares of the width; the first free one is used."""
HEIGHT, STRIP_HEIGHT = 236, 30  # pixels of the panel with curves, and of the strip of stages alone
STRIP_SHARE = 0.075  # height of the strip as a share of the figure
GAP_SHARE = 0.135  # share of the height for the step labels between curves and strip


def curvature_figure(
    series: Mapping[str, Buckets],
    spans: Sequence[Span],
    marks: Marks,
    frame: Frame,
    *,
    growth_per_step: float | None = None,
) -> go.Figure:
    """Return the curvature on a logarithmic axis above the strip of stages, or the strip alone without any curvature.

    ``growth_per_step``: slope of log λ_max in the forecast; None draws no extrapolation.
    """
    if not has_curvature(series):
        return _strip_alone(spans, marks, frame)
    data: list[Any] = []
    notes: list[dict[str, Any]] = []
    shown: list[NDArray[np.float64]] = []
    limit = _points(series.get(LIMIT))
    top_key = "lambda_max" if _points(series.get("lambda_max")) is not None else "critical_sharpness"
    top_name = "λ<sub>max</sub>" if top_key == "lambda_max" else "λ<sub>crit</sub>"
    top_curve = _points(series.get(top_key))
    directional = _points(series.get("lambda_grad"))
    if limit is not None:
        steps, values = limit
        data.append(_line(_stretched(steps, frame), _held(values), frame.palette.danger, "2/η", width=1.6))
    for points, colour, name, key in (
        (directional, frame.palette.lambda_grad, "λ<sub>grad</sub>", "lambda_grad"),
        (top_curve, frame.palette.lambda_max, top_name, top_key),
    ):
        if points is None:
            continue
        steps, values = points
        data += _extremes(series[key], colour)
        data.append(_line(steps, values, colour, name, width=2.0 if key == top_key else 1.2))
        shown.append(values)
    if top_curve is not None and growth_per_step is not None and marks.expected is not None:
        data.append(_extrapolation(top_curve, growth_per_step, marks.expected.high, frame))
    extent = _extent(shown, limit)
    if limit is not None:
        notes.append(_limit_label(limit, [points for points in (top_curve, directional) if points], extent, frame))
    notes += _curve_labels(top_curve, (top_key, top_name), directional, extent, frame)
    ticks = _ticks(extent)
    data += [strip_track(frame), strip_trace(spans, frame)]
    shapes, _ = draw(marks, frame, labelled=False)
    return figure(
        data,
        layout(
            frame,
            top=6,
            bottom=6,
            bargap=0,
            barmode="overlay",
            xaxis=step_axis(frame, anchor="y"),
            yaxis=value_axis(
                frame,
                type="log",
                domain=[STRIP_SHARE + GAP_SHARE, 1],
                range=list(extent),
                **ticks,
            ),
            yaxis2=value_axis(
                frame, domain=[0, STRIP_SHARE], range=[-0.5, 0.5], showgrid=False, showticklabels=False, anchor="x"
            ),
            shapes=shapes,
            annotations=notes,
        ),
    )


def has_curvature(series: Mapping[str, Buckets]) -> bool:
    """Return whether there is a curve to draw; the limit 2/η alone is none."""
    return any(_points(series.get(name)) is not None for name in CURVES if name != LIMIT)


def _strip_alone(spans: Sequence[Span], marks: Marks, frame: Frame) -> go.Figure:
    """Return the strip of stages, which needs no curvature."""
    shapes, _ = draw(Marks(spikes=marks.spikes, attempts=marks.attempts), frame, labelled=False)
    # Plotly does not lay out axes without a trace on them.
    nothing = {"type": "scatter", "mode": "lines", "x": [frame.step_from], "y": [None], "hoverinfo": "skip"}
    return figure(
        [nothing, strip_track(frame), strip_trace(spans, frame)],
        layout(
            frame,
            top=4,
            bottom=8,
            bargap=0,
            barmode="overlay",
            xaxis=step_axis(frame, anchor="y", showticklabels=False, showgrid=False),
            yaxis=value_axis(frame, showgrid=False, showticklabels=False, range=[0, 1]),
            yaxis2=value_axis(
                frame, domain=[0, 1], range=[-0.5, 0.5], showgrid=False, showticklabels=False, anchor="x"
            ),
            shapes=shapes,
        ),
    )


def _points(buckets: Buckets | None) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return steps and values of a curve, shape (n,) each, or None if no value is positive, as a log axis requires."""
    if buckets is None:
        return None
    steps, values = np.asarray(buckets.step, dtype=np.float64), numbers(buckets.last)
    keep = np.isfinite(values) & (values > 0)
    return (steps[keep], values[keep]) if bool(keep.any()) else None


def _line(
    steps: NDArray[np.float64], values: NDArray[np.float64], colour: str, name: str, *, width: float
) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines" if steps.size > 1 else "markers", "x": steps, "y": values, "name": name,
        "line": {"color": colour, "width": width}, "marker": {"color": colour, "size": 6},
        "hovertemplate": name + " <b>%{y:.5~g}</b><extra></extra>",
    }  # fmt: skip


def _extremes(buckets: Buckets, colour: str) -> list[dict[str, Any]]:
    """Return the upper edge of a curve whose buckets contain higher values than their last."""
    high, last = numbers(buckets.max), numbers(buckets.last)
    if not bool(np.any(high > last * 1.001)):
        return []
    keep = np.isfinite(high) & (high > 0)
    return [
        {
            "type": "scatter", "mode": "lines", "x": np.asarray(buckets.step, dtype=np.float64)[keep], "y": high[keep],
            "line": {"color": colour, "width": 0.7}, "opacity": 0.45, "hoverinfo": "skip",
        }
    ]  # fmt: skip


def _stretched(steps: NDArray[np.float64], frame: Frame) -> NDArray[np.float64]:
    """Return the steps of the limit up to the right edge, because it holds until the learning rate changes."""
    return np.append(steps, max(frame.step_to, float(steps[-1])))


def _held(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.append(values, values[-1])


def _extrapolation(
    points: tuple[NDArray[np.float64], NDArray[np.float64]], growth: float, until: int, frame: Frame
) -> dict[str, Any]:
    """Return λ_max as the forecast extrapolates it, exponentially up to the end of the predicted range."""
    start, value = float(points[0][-1]), float(points[1][-1])
    ahead = np.linspace(start, max(float(until), start), 16)
    exponent = np.clip(growth * (ahead - start), -20, 20)
    return {
        "type": "scatter", "mode": "lines", "x": ahead, "y": value * np.exp(exponent), "hoverinfo": "skip",
        "line": {"color": frame.palette.lambda_max, "width": 2, "dash": "3px,3px"},
    }  # fmt: skip


def _extent(
    curves: Sequence[NDArray[np.float64]], limit: tuple[NDArray[np.float64], NDArray[np.float64]] | None
) -> tuple[float, float]:
    """Return the exponents of the vertical range, in which the surroundings of the limit fill the figure.

    A transient far above the limit, as in the first steps while v is not yet settled, may leave the range at the top,
    and single dips of a noisy curve may leave it at the bottom. The newest values are always inside.
    """
    if not curves and limit is None:
        return 0.0, 1.0
    bottoms = [float(np.quantile(values, 0.05)) for values in curves] + [float(v[-RECENT:].min()) for v in curves]
    tops = [float(values.max()) for values in curves]
    if limit is not None:
        ceiling = float(limit[1].max()) * CEILING
        tops = [min(top, ceiling) for top in tops] + [float(np.quantile(values, 0.9)) for values in curves]
        tops.append(float(np.quantile(limit[1], 0.95)))
        bottoms.append(float(limit[1].min()))
    tops += [float(values[-RECENT:].max()) for values in curves]
    high = math.log10(max(tops))
    low = max(math.log10(min(bottoms)), high - MAX_DECADES)
    room = max(high - low, 0.3)
    return low - 0.1 * room, high + 0.16 * room


def _ticks(extent: tuple[float, float]) -> dict[str, Any]:
    low, high = extent
    if high - low > 2.5:
        return decade_ticks(low, high, at_most=5)
    # A range of few decades has ticks at 1, 2 and 5, written as plain numbers.
    values = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    values = [value for value in values if low <= math.log10(value) <= high]
    return {"tickmode": "array", "tickvals": values, "ticktext": [f"{value:,.4g}" for value in values]}


def _limit_label(
    limit: tuple[NDArray[np.float64], NDArray[np.float64]],
    curves: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    extent: tuple[float, float],
    frame: Frame,
) -> dict[str, Any]:
    """Return the label of the limit, placed on its line where it covers the curves least."""
    steps, values = limit
    width = frame.step_to - frame.step_from
    best, fewest = LABEL_POSITIONS[0], math.inf
    for position in LABEL_POSITIONS:
        start = frame.step_from + position * width
        level = math.log10(_at(steps, values, start))
        # During warm-up the limit may lie above the range; the label then belongs where the line is visible.
        hits = 0 if extent[0] <= level <= extent[1] - 0.1 * (extent[1] - extent[0]) else 1000
        for along, heights in curves:
            under = np.linspace(start - 0.01 * width, start + 0.16 * width, 12)
            high = np.interp(under, along, np.log10(heights))
            hits += int(np.count_nonzero((high > level) & (high < level + 0.14 * (extent[1] - extent[0]))))
        if hits < fewest:
            best, fewest = position, hits
    at = frame.step_from + best * width
    words = f"2/η = {exact(_at(steps, values, at))}"
    if float(values.max()) > 1.02 * float(values.min()):
        words = f"2/η, now {exact(float(values[-1]))}"
    return {
        "x": best, "xref": "x domain", "y": math.log10(_at(steps, values, at)), "yref": "y", "text": words,
        "showarrow": False, "xanchor": "left", "yanchor": "bottom", "xshift": 6, "yshift": 2, "borderpad": 0,
        "bgcolor": frame.palette.label_ground, "hovertext": safe(CURVE_MEANINGS[LIMIT]),
        "font": {"size": 11, "color": frame.palette.danger},
    }  # fmt: skip


def _at(steps: NDArray[np.float64], values: NDArray[np.float64], step: float) -> float:
    """Return the value that holds at a step."""
    return float(values[max(min(int(np.searchsorted(steps, step, side="right")) - 1, values.size - 1), 0)])


def _curve_labels(
    top: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    top_key: tuple[str, str],
    directional: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    extent: tuple[float, float],
    frame: Frame,
) -> list[dict[str, Any]]:
    """Return the names of the curves in the margin at the height of their ends, moved apart if they overlap.

    ``top_key``: the scalar of the upper curve and its name. A name says what it means when the pointer rests on it.
    """
    wanted = [
        (math.log10(float(np.median(points[1][-5:]))), name, colour, CURVE_MEANINGS.get(key, ""))
        for points, key, name, colour in (
            (top, *top_key, frame.palette.lambda_max),
            (directional, "lambda_grad", "λ<sub>grad</sub>", frame.palette.lambda_grad),
        )
        if points is not None
    ]
    apart = 0.1 * (extent[1] - extent[0])
    wanted.sort(reverse=True)
    placed: list[float] = []
    notes: list[dict[str, Any]] = []
    for height, name, colour, meaning in wanted:
        at = min(max(height, extent[0] + apart), extent[1] - apart / 2)
        if placed and placed[-1] - at < apart:
            at = placed[-1] - apart
        placed.append(at)
        notes.append(
            {
                "x": 1, "xref": "x domain", "y": at, "yref": "y", "text": name, "showarrow": False, "yanchor": "middle",
                "xanchor": "left", "xshift": 3 if frame.narrow else 8, "font": {"size": 12, "color": colour},
                "hovertext": safe(meaning),
            }
        )  # fmt: skip
    return notes
