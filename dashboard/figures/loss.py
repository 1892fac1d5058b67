"""The figure of one scalar, such as the loss, with the extremes of each bucket as a band. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from client_sdk.answers import Buckets
from dashboard.figures.held_loss import DECADES_BELOW, HeldLoss, held_label, held_traces
from dashboard.figures.marks import Marks, draw
from dashboard.figures.theme import Frame, figure, layout, safe, step_axis, value_axis

DECADES_FOR_LOG = 2.0
"""Number of decades beyond which an axis is logarithmic."""


def loss_figure(
    buckets: Buckets | None,
    marks: Marks,
    frame: Frame,
    *,
    name: str = "loss",
    held: HeldLoss | None = None,
    scale: str = "",
    smoothing: int = 0,
    labelled: bool = True,
) -> go.Figure:
    """Return the scalar with spikes and predictions marked, which are ``labelled`` in one panel only.

    ``scale``: "log" or "linear"; "" chooses a logarithmic axis if the values span decades, or if ``held``, the part of
    the loss that the unstable directions hold, is drawn as a second line. ``smoothing``: number of buckets that the
    line averages, 0 for none; the values themselves stay visible behind it. In buckets in which the loss left its level
    the line goes through the extreme, so that a spike is as high as it was at every zoom.
    """
    empty = np.array([], dtype=np.float64)
    if buckets is None:
        steps = low = high = last = empty
    else:
        steps = np.asarray(buckets.step, dtype=np.float64)
        low, high, last = (numbers(column) for column in (buckets.min, buckets.max, buckets.last))
    logarithmic = is_logarithmic(low, high, scale, has_held=held is not None)
    drawn = through_extremes(buckets, marks.eventful) if buckets is not None else last
    is_smooth = smoothing > 1 and steps.size > smoothing
    data: list[Any] = []
    if steps.size and bool(np.any(high > low)):
        data += _band(steps, low, high, frame)
    if is_smooth:
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": steps, "y": drawn, "hoverinfo": "skip", "opacity": 0.35,
                "line": {"color": frame.palette.accent, "width": 1},
            }
        )  # fmt: skip
        drawn = smoothed(drawn, smoothing, logarithmic=logarithmic)
    data.append(
        {
            "type": "scatter", "mode": "lines" if steps.size > 1 else "markers", "x": steps, "y": drawn,
            "line": {"color": frame.palette.accent, "width": 1.6}, "marker": {"color": frame.palette.accent, "size": 6},
            "name": safe(name), "customdata": _exact(low, high, last),
            "hovertemplate": "step %{x:,d}<br><b>%{customdata}</b><extra></extra>",
        }
    )  # fmt: skip
    shapes, notes = draw(marks, frame, labelled=labelled)
    y_axis: dict[str, Any] = {"type": "log", "exponentformat": "power", "dtick": None} if logarithmic else {}
    lowest = low if held is None else np.append(low, _visible(held, low))
    y_axis["range"] = _range(lowest, high, logarithmic=logarithmic)
    # In the coordinates of the values: Plotly fails if a second axis appears while the pointer is on the figure.
    bottom, top = y_axis["range"]
    height = bottom + 0.95 * (top - bottom)
    data += _nonfinite(buckets, steps, 10**height if logarithmic else height, frame)
    if logarithmic:
        y_axis |= decade_ticks(*y_axis["range"], at_most=4)
    if held is not None:
        data += held_traces(held, frame)
        notes.append(held_label(held, drawn, steps, y_axis["range"], frame))
    return figure(
        data,
        layout(
            frame,
            top=10,
            xaxis=step_axis(frame),
            yaxis=value_axis(frame, **y_axis),
            shapes=shapes,
            annotations=notes,
        ),
    )


def numbers(column: tuple[float | None, ...]) -> NDArray[np.float64]:
    """Return a column of the API as an array, shape (n,), with NaN in place of null."""
    return np.array([math.nan if value is None else value for value in column], dtype=np.float64)


def is_logarithmic(
    low: NDArray[np.float64], high: NDArray[np.float64], scale: str = "", *, has_held: bool = False
) -> bool:
    """Return whether the axis is logarithmic; never where a value is not positive."""
    if scale == "linear":
        return False
    finite = low[np.isfinite(low)]
    if scale == "log" and finite.size:
        return float(finite.min()) > 0
    return has_held or spans_decades(low, high)


def through_extremes(buckets: Buckets, eventful: Iterable[int]) -> NDArray[np.float64]:
    """Return the values of the line, shape (n,): the last of each bucket, or its extreme where the loss left its level.

    The extreme is the lowest or the highest value, whichever is further from the last one.
    """
    low, high, last = (numbers(column) for column in (buckets.min, buckets.max, buckets.last))
    if not last.size:
        return last
    steps = np.asarray(buckets.step)
    at = np.searchsorted(steps, np.asarray(list(eventful), dtype=np.int64), side="right") - 1
    line = last.copy()
    for place in np.unique(at[at >= 0]):
        above, below = high[place] - last[place], last[place] - low[place]
        if above > 0 or below > 0:
            line[place] = high[place] if above >= below else low[place]
    return line


def smoothed(values: NDArray[np.float64], size: int, *, logarithmic: bool) -> NDArray[np.float64]:
    """Return the centred moving average over ``size`` values, shape (n,); of logarithms on a logarithmic axis.

    The window is cut off at both ends, and leaves out values that are NaN.
    """
    known = np.isfinite(values) & ((values > 0) | (not logarithmic))
    base = np.where(known, np.log(np.where(known, values, 1.0)) if logarithmic else np.where(known, values, 0.0), 0.0)
    window = np.ones(size)
    total, count = (np.convolve(part, window)[size // 2 :][: values.size] for part in (base, known.astype(float)))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
    return np.where(count > 0, np.exp(mean) if logarithmic else mean, math.nan)


def spans_decades(low: NDArray[np.float64], high: NDArray[np.float64]) -> bool:
    """Return whether all values are positive and span more than `DECADES_FOR_LOG` decades."""
    finite = low[np.isfinite(low)]
    tops = high[np.isfinite(high)]
    if finite.size == 0 or tops.size == 0 or float(finite.min()) <= 0:
        return False
    return math.log10(float(tops.max()) / float(finite.min())) > DECADES_FOR_LOG


def decade_ticks(low: float, high: float, *, at_most: int) -> dict[str, Any]:
    """Return at most ``at_most`` ticks at powers of ten between two exponents, as properties of an axis."""
    every = max(1, math.ceil((high - low) / at_most))
    exponents = [e for e in range(math.ceil(low), math.floor(high) + 1) if e % every == 0]
    if len(exponents) < 2:
        return {"tickformat": ".2~g"}
    text = [
        f"{10.0**e:,.4g}" if -3 <= e <= 3 else "10,000" if e == 4 else f"10<sup>{e}</sup>".replace("-", "−")
        for e in exponents
    ]
    return {"tickmode": "array", "tickvals": [10.0**e for e in exponents], "ticktext": text}


def _range(low: NDArray[np.float64], high: NDArray[np.float64], *, logarithmic: bool) -> list[float]:
    """Return the vertical range with room for labels above; exponents if ``logarithmic``."""
    bottoms, tops = low[np.isfinite(low)], high[np.isfinite(high)]
    if bottoms.size == 0 or tops.size == 0:
        return [0.0, 1.0]
    bottom, top = float(bottoms.min()), float(tops.max())
    if logarithmic:
        bottom, top = math.log10(bottom), math.log10(top)
    room = (top - bottom) or abs(top) or 1.0
    return [bottom - 0.06 * room, top + 0.22 * room]


def _visible(held: HeldLoss, low: NDArray[np.float64]) -> float:
    """Return the lowest value of the second line that the panel shows: its dips are less important than the loss."""
    floor = float(low[np.isfinite(low)].min()) * 10**-DECADES_BELOW
    return max(float(np.quantile(held.values, 0.05)), floor)


def _band(
    steps: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], frame: Frame
) -> list[dict[str, Any]]:
    """Return the band from the lowest to the highest value of each bucket."""
    edge = {
        "type": "scatter", "mode": "lines", "x": steps, "hoverinfo": "skip",
        "line": {"color": frame.palette.accent_band, "width": 0.8},
    }  # fmt: skip
    return [edge | {"y": low}, edge | {"y": high, "fill": "tonexty", "fillcolor": frame.palette.accent_band}]


def _exact(low: NDArray[np.float64], high: NDArray[np.float64], last: NDArray[np.float64]) -> list[str]:
    """Return the hover text of each bucket."""
    return [
        f"{c:.6g}" if not b > a else f"{c:.6g}</b><br>from {a:.6g} to {b:.6g}<b>"
        for a, b, c in zip(low, high, last, strict=True)
    ]


def _nonfinite(
    buckets: Buckets | None, steps: NDArray[np.float64], height: float, frame: Frame
) -> list[dict[str, Any]]:
    """Return a cross at a height near the top for each bucket with values that are NaN or infinite."""
    if buckets is None or not any(buckets.nonfinite):
        return []
    counts = np.asarray(buckets.nonfinite)
    where = np.flatnonzero(counts)
    return [
        {
            "type": "scatter", "mode": "markers", "x": steps[where], "y": np.full(where.size, height),
            "marker": {"symbol": "x", "size": 7, "color": frame.palette.danger}, "customdata": counts[where],
            "hovertemplate": "step %{x:,d}<br><b>%{customdata} not finite</b><extra></extra>",
        }
    ]  # fmt: skip
