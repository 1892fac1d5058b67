"""The page of all alerts, newest first. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dash import html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.models import Alert
from dashboard.numbers import unix_time
from dashboard.pages.alert_cards import alert_row

SHOWN = 200


def layout() -> Component:
    """The page before its first data."""
    bones = [html.Div(html.Span(className="bone"), className="alert-row bones") for _ in range(5)]
    return html.Div(
        [
            html.H1("Alerts"),
            html.P("Open ones first, then the newest. Each leads to its run.", className="muted lead"),
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
