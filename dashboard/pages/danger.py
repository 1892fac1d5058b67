"""The sentence on top of an endangered run: what comes, in how long, from which layer, and what to do. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from dash import html
from dash.development.base_component import Component

from client_sdk.answers import Alert, RunSummary
from client_sdk.vocabulary import LEVEL_RANK, AlertKind, AlertLevel, RunState
from dashboard.forms.attributes import data
from dashboard.numbers import count, duration, steps
from dashboard.pages.alert_cards import buttons, tone, urgency
from dashboard.pages.fix import fix_code
from dashboard.pages.symbols import symbols

FIX: Final = "fix-code"
"""Id of the code that the button copies."""
FAR: Final = 1800.0
"""Seconds until the earliest step of a forecast from which on it is a warning and no alarm."""
LAYER_CHARS: Final = 48
"""Number of characters up to which a layer is named in the sentence."""


def endangering(alerts: Sequence[Alert], run_state: str) -> Alert | None:
    """Return the most urgent open alert of level warning or above of a run that has not ended, or None."""
    if run_state in (RunState.FINISHED, RunState.CRASHED):
        return None
    grave = [alert for alert in alerts if alert.is_open and LEVEL_RANK[alert.level] >= LEVEL_RANK[AlertLevel.WARNING]]
    return max(grave, key=urgency, default=None)


def banner(alert: Alert, run: RunSummary, now: float) -> Component:
    """Return the sentence about an alert, with its buttons and the code of the fix to copy."""
    code = fix_code(alert, run)
    actions: list[Component] = [buttons(alert, now)]
    if code:
        actions.append(
            html.Button(
                "Copy fix", className="button", type="button", title="Copy the code for this cause", **data(copy=FIX)
            )
        )
    return html.Div(
        [
            html.P(symbols(sentence(alert, run)), className="danger-words"),
            html.Div(actions, className="danger-actions"),
            html.Pre(code, id=FIX, className="hidden") if code else None,
        ],
        className=f"danger-band {danger_tone(alert, run)}",
        role="status",
    )


def danger_tone(alert: Alert, run: RunSummary) -> str:
    """Return the stylesheet's class for the danger in which a run is: a spike that is far off is no alarm yet."""
    date = alert.predicted_step
    rate = run.step_rate if run.state == RunState.RUNNING else None
    if alert.kind != AlertKind.SPIKE_PREDICTED or date is None or run.last_step is None or not rate:
        return tone(alert)
    return "warn" if (date.low - run.last_step) / rate > FAR else tone(alert)


def sentence(alert: Alert, run: RunSummary) -> str:
    """Return what an alert means for the run, in one or two sentences."""
    parts = []
    if alert.kind == AlertKind.SPIKE_PREDICTED:
        parts.append(f"{_when(alert, run)}{_where(alert)}.")
    else:
        parts.append(f"{alert.title or alert.kind.replace('-', ' ').capitalize()}{_where(alert)}.")
    if alert.advice:
        parts.append(f"{alert.advice[0].rstrip('.')}.")
    return " ".join(parts)


def time_left(left: int, step_rate: float | None) -> str:
    """Return a number of steps as time at the run's rate, or as steps where the rate is not known.

    >>> time_left(24, 0.07), time_left(24, None)
    ('6 min', '24 steps')
    """
    if step_rate is None or not math.isfinite(step_rate) or step_rate <= 0:
        return steps(left)
    return duration(left / step_rate)


def _when(alert: Alert, run: RunSummary) -> str:
    date = alert.predicted_step
    if date is None or run.last_step is None:
        return "A spike is building up"
    dated = f"step {count(date.best)}, between {count(date.low)} and {count(date.high)}"
    left = date.best - run.last_step
    if left <= 0:
        return f"Spike due now ({dated})"
    rate = run.step_rate if run.state == RunState.RUNNING else None
    return f"Spike in about {time_left(left, rate)} ({dated})"


def _where(alert: Alert) -> str:
    if not alert.layers or len(alert.layers[0]) > LAYER_CHARS:
        return ""
    return f", starting in {alert.layers[0]}"
