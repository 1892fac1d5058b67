"""Marks of spikes, predictions and attempts on the step axis, equal on all panels. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from client_sdk.answers import Alert, Event, PredictedStep
from client_sdk.vocabulary import AlertKind, EventKind
from dashboard.figures.theme import Frame

MAX_SPIKES: Final = 40
MAX_SETTLED: Final = 12
MAX_ATTEMPTS: Final = 12
MAX_ACTS: Final = 60
PIXELS, NARROW_PIXELS = 700, 290
"""Usual widths of the plot area, by which labels are kept apart."""
CHAR_PIXELS: Final = 6.2
"""Usual width of a character of a label."""
EVENTFUL: Final = (EventKind.SPIKE, EventKind.BAD_BATCH, EventKind.LOSS_OUTLIER)
"""Kinds of events at which the line of a bucket goes through its extreme."""


@dataclass(frozen=True, kw_only=True)
class Spike:
    """A spike of the loss."""

    number: int
    """Position among the spikes of the run, counted from 1, by which the history names it too."""
    step: int
    """First step of the rise."""
    peak_step: int
    """Step of the highest loss so far."""
    rise: float = math.nan
    """Highest loss over the usual loss before; NaN where not known."""

    @property
    def rank(self) -> float:
        """Height by which spikes are compared; 0 where the rise is not known."""
        return self.rise if math.isfinite(self.rise) else 0.0


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Steps to mark on the step axis."""

    spikes: tuple[Spike, ...] = ()
    """Spikes by their first step."""
    expected: PredictedStep | None = None
    """Range of the open prediction; None if there is none."""
    settled: tuple[tuple[PredictedStep, str], ...] = ()
    """Settled predictions, each with its outcome: "hit", "early", "late" or "false"; only those without a path, which
    the panel of the forecasts shows."""
    attempts: tuple[tuple[int, int], ...] = ()
    """First step and number of each attempt after the first."""
    acts: tuple[tuple[int, str], ...] = ()
    """Steps at which the guard of the training did something, or advised it, each with its label."""
    eventful: tuple[int, ...] = ()
    """Steps at which the loss left its level, where a bucket's extreme matters more than its last value."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Numbers of the spikes, keyed by the ids of their alerts."""


def marks_of(alerts: Iterable[Alert], events: Iterable[Event], attempt: int | None = None) -> Marks:
    """Return the marks of a run, or of one ``attempt``. The newest prediction is shown if several are open."""
    events, alerts = list(events), list(alerts)
    if attempt is not None:
        events = [event for event in events if event.attempt == attempt]
        alerts = [alert for alert in alerts if alert.attempt in (None, attempt)]
    predictions = [
        alert for alert in alerts if alert.kind == AlertKind.SPIKE_PREDICTED and alert.predicted_step is not None
    ]
    still_open = [alert for alert in predictions if alert.is_open]
    newest = max(still_open, key=lambda alert: alert.step, default=None)
    settled = sorted(
        ((band, alert.outcome.result) for alert in predictions
         if alert.outcome is not None and not alert.is_open and not alert.forecasts
         and (band := alert.judged_forecast or alert.predicted_step) is not None),
        key=lambda pair: pair[0].best,
    )  # fmt: skip
    begun = {event.attempt: event.step for event in events if event.kind == EventKind.ROLLBACK}
    spikes, numbers = _spikes(alerts, events)
    eventful = {_peak(event) for event in events if event.kind in EVENTFUL} | {spike.peak_step for spike in spikes}
    return Marks(
        attempts=tuple((step, number) for number, step in sorted(begun.items())),
        spikes=spikes,
        expected=newest.predicted_step if newest is not None else None,
        settled=tuple(settled[-MAX_SETTLED:]),
        acts=tuple((event.step, _act(event)) for event in events if event.kind == EventKind.GUARD),
        eventful=tuple(sorted(eventful)),
        numbers=numbers,
    )


def _act(event: Event) -> str:
    """Return the label of what the guard did."""
    texts = {
        "raise-second-moment": "v",
        "reduce-rate": "learning rate",
        "clip-update": "updates clipped",
        "lower-beta2": "β2 lowered",
        "scale-eps": "ε",
        "skip-batch": "batch skipped",
    }
    action = event.action if isinstance(event.action, str) else ""
    factor = f" × {event.factor:.2g}" if isinstance(event.factor, float) and event.factor > 0 else ""
    return f"guard{'' if event.is_done else ' would'}: {texts.get(action, action)}{factor}"


def draw(marks: Marks, frame: Frame, *, labelled: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return shapes and annotations for `layout`.

    ``labelled``: whether the marks have labels, which only one of several panels should repeat. The highest spike in
    view has the first claim to a label; where two would overlap, the lower spike keeps its number alone, or nothing.
    """
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    width = max(frame.step_to - frame.step_from, 1e-9)
    pixels = NARROW_PIXELS if frame.narrow else PIXELS
    colour = frame.palette.danger
    taken: list[tuple[float, float]] = []

    def label(step: float, *texts: str, tone: str = colour) -> None:
        """Write the first of the texts that overlaps no other label."""
        at = (step - frame.step_from) / width * pixels
        for text in texts if labelled else ():
            length = CHAR_PIXELS * len(text) + 6
            left = at - length if at + length > pixels + 30 else at
            if any(left < end and start < left + length for start, end in taken):
                continue
            taken.append((left, left + length))
            notes.append(
                {
                    "x": step, "y": 1, "xref": "x", "yref": "paper", "text": text, "showarrow": False,
                    "xanchor": "left" if left == at else "right", "yanchor": "top", "xshift": 4 if left == at else -4,
                    "font": {"size": 11, "color": tone},
                }
            )  # fmt: skip
            return

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
    visible = [spike for spike in marks.spikes if frame.step_from <= spike.step <= frame.step_to]
    shown = visible[-MAX_SPIKES:]
    shown += [main for main in visible[:-MAX_SPIKES] if main.rank > max(spike.rank for spike in shown)]
    shapes += [_line(spike.step, colour, dash="solid", width=1, opacity=0.55) for spike in shown]
    begun = [(step, number) for step, number in marks.attempts if frame.step_from <= step <= frame.step_to]
    for step, number in begun[-MAX_ATTEMPTS:]:
        shapes.append(_line(step, frame.palette.muted, dash="solid", width=1, opacity=0.7))
        label(step, f"attempt {number}", tone=frame.palette.muted)
    for spike in sorted(shown, key=lambda spike: (spike.rank, spike.step), reverse=True):
        label(spike.step, f"{spike.number} · spike {spike.step:,}", str(spike.number))
    acts = [(step, text) for step, text in marks.acts if frame.step_from <= step <= frame.step_to]
    for step, text in acts[-MAX_ACTS:]:
        shapes.append(_line(step, frame.palette.accent, dash="1px,3px", width=1.5, opacity=0.8))
        label(step, text, "guard", tone=frame.palette.accent)
    for predicted, result in marks.settled:
        if frame.step_from <= predicted.best <= frame.step_to:
            shapes.append(_line(predicted.best, frame.palette.muted, dash="2px,3px", width=1, opacity=0.8))
            if result == "false":
                label(predicted.best, f"predicted {predicted.best:,}, none came")
    return shapes, notes


def _spikes(alerts: Iterable[Alert], events: Iterable[Event]) -> tuple[tuple[Spike, ...], dict[str, int]]:
    """Return the spikes with their numbers, and the numbers keyed by the ids of the alerts about them.

    A spike is one event, stored when it is over, and one alert, opened some steps after it began. Until it is over
    there is only the alert. A spike that went on rising has several events of the same first step.
    """
    found: dict[int, tuple[int, float]] = {}  # first step -> (peak, rise)
    for event in events:
        if event.kind == EventKind.SPIKE:
            peak, rise = _peak(event), _ratio(event.loss, event.baseline)
            known = found.get(event.step)
            if known is None or not rise <= known[1]:
                found[event.step] = peak, rise
    first_steps: dict[str, int] = {}
    for alert in alerts:
        if alert.kind != AlertKind.SPIKE:
            continue
        peak = _whole(alert.evidence.get("peak_step")) or alert.step
        begun = [step for step, (last, _) in found.items() if step <= max(alert.step, peak) and alert.step <= last]
        begun += [step for step, (last, _) in found.items() if last == peak]
        first = max(begun, default=alert.step)
        if not begun:
            found[first] = peak, _ratio(alert.evidence.get("loss_peak"), alert.evidence.get("loss_baseline"))
        first_steps[alert.id] = first
    spikes = tuple(
        Spike(number=number, step=step, peak_step=peak, rise=rise)
        for number, (step, (peak, rise)) in enumerate(sorted(found.items()), start=1)
    )
    number_of = {spike.step: spike.number for spike in spikes}
    return spikes, {alert_id: number_of[step] for alert_id, step in first_steps.items()}


def _peak(event: Event) -> int:
    """Return the step at which the loss was highest in an event."""
    return event.peak_step if isinstance(event.peak_step, int) else event.step


def _ratio(high: Any, usual: Any) -> float:
    known = isinstance(high, int | float) and isinstance(usual, int | float) and usual > 0
    return float(high) / float(usual) if known else math.nan


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _line(step: float, colour: str, *, dash: str, width: float, opacity: float = 1.0) -> dict[str, Any]:
    return {
        "type": "line", "xref": "x", "yref": "y domain", "x0": step, "x1": step, "y0": 0, "y1": 1, "opacity": opacity,
        "line": {"color": colour, "width": width, "dash": dash},
    }  # fmt: skip
