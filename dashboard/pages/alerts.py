"""The page of all alerts, newest first. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dash import html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.models import Alert, Precision
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


def precision(found: Precision) -> list[Component | str]:
    """How often predictions came true, of those that claimed something and are settled."""
    if not found.settled:
        return ["No prediction has been settled yet."]
    counted = {"hit": found.hit, "early": found.early, "late": found.late, "false": found.false}
    words = [f"{number} {OUTCOMES[name]}" for name, number in counted.items() if number]
    median = found.lead_steps.median
    lead = "" if median is None else f"; median lead {steps(int(median))}"
    came = found.settled - found.false
    return [html.B(f"{came} of {found.settled} predictions came true"), f" ({', '.join(words)}){lead}"]
