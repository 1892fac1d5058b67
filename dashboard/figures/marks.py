"""Marks of spikes, predictions and attempts on the step axis, equal on all panels. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from client_sdk.answers import Alert, Event, PredictedStep
from client_sdk.vocabulary import AlertKind, EventKind
from dashboard.figures.theme import Frame

MAX_SPIKES: Final = 40
MAX_SETTLED: Final = 12
MAX_ATTEMPTS: Final = 12
LABEL_GAP: Final = 0.06
"""Minimum distance of two labels as a share of the visible width; the later label is left out."""
NARROW_LABEL_GAP: Final = 0.18
"""The same on a phone, where a label takes a larger share of the width."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Steps to mark on the step axis."""

    spikes: tuple[int, ...] = ()
    """Steps of spikes in ascending order."""
    expected: PredictedStep | None = None
    """Range of the open prediction; None if there is none."""
    settled: tuple[tuple[PredictedStep, str], ...] = ()
    """Settled predictions, each with its outcome: "hit", "early", "late" or "false"."""
    attempts: tuple[tuple[int, int], ...] = ()
    """First step and number of each attempt after the first."""


def marks_of(alerts: Iterable[Alert], events: Iterable[Event], attempt: int | None = None) -> Marks:
    """Return the marks of a run, or of one ``attempt``. The newest prediction is shown if several are open."""
    events = list(events)
    if attempt is not None:
        events = [event for event in events if event.attempt == attempt]
        alerts = [alert for alert in alerts if alert.attempt in (None, attempt)]
    predictions = [
        alert for alert in alerts if alert.kind == AlertKind.SPIKE_PREDICTED and alert.predicted_step is not None
    ]
    still_open = [alert for alert in predictions if alert.is_open]
    newest = max(still_open, key=lambda alert: alert.step, default=None)
    spikes = {event.step for event in events if event.kind == EventKind.SPIKE}
    spikes |= {alert.step for alert in alerts if alert.kind == AlertKind.SPIKE}
    settled = sorted(
        ((band, alert.outcome.result) for alert in predictions
         if alert.outcome is not None and not alert.is_open
         and (band := alert.judged_forecast or alert.predicted_step) is not None),
        key=lambda pair: pair[0].best,
    )  # fmt: skip
    begun = {event.attempt: event.step for event in events if event.kind == EventKind.ROLLBACK}
    return Marks(
        attempts=tuple((step, number) for number, step in sorted(begun.items())),
        spikes=tuple(sorted(spikes)),
        expected=newest.predicted_step if newest is not None else None,
        settled=tuple(settled[-MAX_SETTLED:]),
    )


def draw(marks: Marks, frame: Frame, *, labelled: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return shapes and annotations for `layout`.

    ``labelled``: whether the marks have labels, which only one of several panels should repeat.
    """
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    width = max(frame.step_to - frame.step_from, 1e-9)
    colour = frame.palette.danger
    taken: list[float] = []

    def label(step: float, text: str, tone: str = colour) -> None:
        position = (step - frame.step_from) / width
        gap = (NARROW_LABEL_GAP if frame.narrow else LABEL_GAP) * max(1, len(text) / 8)
        if not labelled or any(abs(position - other) < gap for other in taken):
            return
        taken.append(position)
        right_half = position > (0.7 if frame.narrow else 0.86)
        notes.append(
            {
                "x": step, "y": 1, "xref": "x", "yref": "paper", "text": text, "showarrow": False,
                "xanchor": "right" if right_half else "left", "yanchor": "top", "xshift": -5 if right_half else 5,
                "font": {"size": 11, "color": tone},
            }
        )  # fmt: skip

    if marks.expected is not None:
        expected = marks.expected
        shapes.append(
            {
                "type": "rect", "xref": "x", "yref": "y domain", "y0": 0, "y1": 1,
                "x0": expected.low, "x1": expected.high,
                "fillcolor": frame.palette.danger_band, "line": {"width": 0}, "layer": "below",
            }
        )  # fmt: skip
        shapes.append(_line(expected.best, colour, dash="4px,3px", width=1.5))
        label(expected.best, f"predicted {expected.best:,}")
    visible = [step for step in marks.spikes if frame.step_from <= step <= frame.step_to]
    for step in visible[-MAX_SPIKES:]:
        shapes.append(_line(step, colour, dash="solid", width=1, opacity=0.55))
    for step in reversed(visible[-MAX_SPIKES:]):
        label(step, f"spike {step:,}")
    begun = [(step, number) for step, number in marks.attempts if frame.step_from <= step <= frame.step_to]
    for step, number in begun[-MAX_ATTEMPTS:]:
        shapes.append(_line(step, frame.palette.muted, dash="solid", width=1, opacity=0.7))
        label(step, f"attempt {number}", frame.palette.muted)
    for predicted, result in marks.settled:
        if frame.step_from <= predicted.best <= frame.step_to:
            shapes.append(_line(predicted.best, frame.palette.muted, dash="2px,3px", width=1, opacity=0.8))
            if result == "false":
                label(predicted.best, f"predicted {predicted.best:,}, none came")
    return shapes, notes


def _line(step: float, colour: str, *, dash: str, width: float, opacity: float = 1.0) -> dict[str, Any]:
    return {
        "type": "line", "xref": "x", "yref": "y domain", "x0": step, "x1": step, "y0": 0, "y1": 1, "opacity": opacity,
        "line": {"color": colour, "width": width, "dash": dash},
    }  # fmt: skip
