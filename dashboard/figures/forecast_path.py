"""The path of the forecasts: what was said when, as rows above the step axis, and what came. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import plotly.graph_objects as go

from client_sdk.answers import Alert, Forecast, Outcome
from client_sdk.vocabulary import AlertKind, AlertLevel
from dashboard.figures.marks import CHAR_PIXELS, NARROW_PIXELS, PIXELS, Marks, draw
from dashboard.figures.theme import Frame, figure, layout, step_axis, value_axis

ROW_PIXELS: Final = 11
MAX_ROWS: Final = 10
ROWS_EACH: Final = 5
"""Number of rows of one prediction: the first forecast, the turning points, and the latest."""
AXIS_PIXELS: Final = 30
RESULTS: Final = {"hit": "hit", "early": "came early", "late": "came late", "false": "did not come"}


@dataclass(frozen=True, kw_only=True)
class PathRow:
    """One forecast in its row."""

    row: int
    """Row from the top, counted from 0."""
    forecast: Forecast
    outcome: Outcome | None = None
    """Outcome of the prediction, in its last row only."""


def path_rows(alerts: Iterable[Alert], attempt: int | None = None) -> list[PathRow]:
    """Return the forecasts of all predictions, or of one ``attempt``, in rows in which none overlaps another.

    A prediction starts in the highest row that is free, so that predictions after one another share the rows. Those
    that would need more than `MAX_ROWS` rows are left out, the oldest first.
    """
    predictions = sorted(
        (
            alert
            for alert in alerts
            if alert.kind == AlertKind.SPIKE_PREDICTED and alert.forecasts and attempt in (None, alert.attempt)
        ),
        key=lambda alert: alert.forecasts[0].step,
        reverse=True,
    )
    begins = [float("inf")] * MAX_ROWS  # first step of what already lies in each row; the newest is placed first
    found: list[PathRow] = []
    for alert in predictions:
        shown = _told(alert)
        first, end = shown[0].step, max(forecast.high for forecast in shown)
        top = next(
            (
                row
                for row in range(MAX_ROWS - len(shown) + 1)
                if all(begin > end for begin in begins[row : row + len(shown)])
            ),
            None,
        )
        if top is None:
            continue
        begins[top : top + len(shown)] = [float(first)] * len(shown)
        found += [
            PathRow(row=top + place, forecast=forecast, outcome=alert.outcome if forecast is shown[-1] else None)
            for place, forecast in enumerate(shown)
        ]
    return found


def forecast_height(rows: Sequence[PathRow]) -> int:
    """Return the height of the panel in pixels."""
    return AXIS_PIXELS + ROW_PIXELS * (1 + max((row.row for row in rows), default=0))


def forecast_figure(rows: Sequence[PathRow], marks: Marks, frame: Frame) -> go.Figure:
    """Return a dot for the step at which each forecast was made, and a bar with a tick for the steps that it named.

    Spikes are the same lines as in the other panels, so that a bar shows whether its spike came within it.
    """
    count = 1 + max((row.row for row in rows), default=0)
    shapes, _ = draw(Marks(spikes=marks.spikes, attempts=marks.attempts), frame, labelled=False)
    data: list[Any] = []
    for is_warning, colour in ((False, frame.palette.warn), (True, frame.palette.danger)):
        told = [row for row in rows if (row.forecast.level != AlertLevel.WATCH) is is_warning]
        if told:
            data += _traces(told, colour)
    return figure(
        data or [{"type": "scatter", "x": [frame.step_from], "y": [None], "hoverinfo": "skip"}],
        layout(
            frame,
            top=4,
            hovermode="closest",
            xaxis=step_axis(frame),
            yaxis=value_axis(frame, range=[count - 0.4, -0.6], showgrid=False, showticklabels=False),
            shapes=shapes,
            annotations=_results(rows, frame),
        ),
    )


def _told(alert: Alert) -> list[Forecast]:
    """Return the forecasts of a prediction that have a row: the turning points, then others evenly between them."""
    path = list(alert.forecasts)
    if len(path) <= ROWS_EACH:
        return path
    kept = {forecast.step: forecast for forecast in alert.turns[: ROWS_EACH - 1]} | {path[-1].step: path[-1]}
    for place in range(1, ROWS_EACH):
        if len(kept) < ROWS_EACH:
            forecast = path[round(place * (len(path) - 1) / ROWS_EACH)]
            kept.setdefault(forecast.step, forecast)
    return [kept[step] for step in sorted(kept)]


def _traces(rows: Sequence[PathRow], colour: str) -> list[dict[str, Any]]:
    """Return the ways from the dots to the bars, the bars, their likeliest steps, and the dots."""
    words = [
        f"said at step {row.forecast.step:,}: {row.forecast.best:,}, "
        f"between {row.forecast.low:,} and {row.forecast.high:,} ({row.forecast.level})"
        for row in rows
    ]

    def lines(ends: Sequence[tuple[int, int]], **more: Any) -> dict[str, Any]:
        return {
            "type": "scatter", "mode": "lines", "hoverinfo": "skip",
            "x": [step for pair in ends for step in (*pair, None)],
            "y": [row.row if step is not None else None for row in rows for step in (0, 0, None)], **more,
        }  # fmt: skip

    def points(steps: Sequence[int], **marker: Any) -> dict[str, Any]:
        return {
            "type": "scatter", "mode": "markers", "x": list(steps), "y": [row.row for row in rows],
            "customdata": words, "hovertemplate": "%{customdata}<extra></extra>",
            "marker": {"color": colour, **marker},
        }  # fmt: skip

    return [
        lines(
            [(row.forecast.step, row.forecast.low) for row in rows],
            line={"color": colour, "width": 1, "dash": "1px,3px"},
        ),
        lines(
            [(row.forecast.low, row.forecast.high) for row in rows], line={"color": colour, "width": 6}, opacity=0.35
        ),
        points([row.forecast.best for row in rows], symbol="line-ns", size=7, line={"color": colour, "width": 2}),
        points([row.forecast.step for row in rows], size=4),
    ]


def _results(rows: Sequence[PathRow], frame: Frame) -> list[dict[str, Any]]:
    """Return what became of each prediction, right of its last bar if there is room before the next forecast."""
    pixel = (frame.step_to - frame.step_from) / (NARROW_PIXELS if frame.narrow else PIXELS)
    notes = []
    for row in rows:
        if row.outcome is None:
            continue
        text = RESULTS.get(row.outcome.result, row.outcome.result)
        start = max(row.forecast.high, row.outcome.step or 0)
        end = start + pixel * (10 + CHAR_PIXELS * len(text))
        is_free = all(
            other.forecast.step > end or other.forecast.high < start
            for other in rows
            if other.row == row.row and other is not row
        )
        if is_free and frame.step_from <= start and end <= frame.step_to:
            notes.append(
                {
                    "x": start, "y": row.row, "xref": "x", "yref": "y", "text": text, "showarrow": False,
                    "xanchor": "left", "yanchor": "middle", "xshift": 4,
                    "font": {"size": 10, "color": frame.palette.muted},
                }
            )  # fmt: skip
    return notes
