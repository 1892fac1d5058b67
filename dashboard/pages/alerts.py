"""The page of all alerts, newest first. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from dash import html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.models import Alert
from dashboard.numbers import steps, unix_time
from dashboard.pages.alert_cards import OUTCOMES, alert_row

SHOWN = 200


def layout() -> Component:
    """The page before its first data."""
    bones = [html.Div(html.Span(className="bone"), className="alert-row bones") for _ in range(5)]
    return html.Div(
        [
            html.H1("Alerts"),
            html.P("Open ones first, then the newest. Each leads to its run.", className="muted lead"),
            html.P(id=ids.ALERT_PRECISION, className="precision"),
            html.Div(bones, id=ids.ALERT_LIST, className="card alert-list"),
        ],
        className="page",
    )


def rows(alerts: Sequence[Alert], names: Mapping[str, str], now: float) -> list[Component]:
    """The list; `names` are the titles of the runs by id."""
    ordered = sorted(alerts, key=lambda alert: (alert.is_open, unix_time(alert.opened_at) or 0.0), reverse=True)
    if not ordered:
        return [html.P("No alert so far.", className="muted none")]
    return [alert_row(alert, names.get(alert.run_id, alert.run_id[:8]), now) for alert in ordered[:SHOWN]]


def precision(alerts: Sequence[Alert]) -> list[Component | str]:
    """How often predictions came true, of those that claimed something and are settled."""
    settled = [alert.outcome for alert in alerts if alert.kind == "spike-predicted" and alert.outcome is not None]
    if not settled:
        return ["No prediction has been settled yet."]
    counted = {name: sum(outcome.result == name for outcome in settled) for name in OUTCOMES}
    came = len(settled) - counted["false"]
    words = [f"{number} {OUTCOMES[name]}" for name, number in counted.items() if number]
    leads = [outcome.lead for outcome in settled if outcome.lead is not None and outcome.result != "false"]
    lead = f"; median lead {steps(int(statistics.median(leads)))}" if leads else ""
    return [html.B(f"{came} of {len(settled)} predictions came true"), f" ({', '.join(words)}){lead}"]
