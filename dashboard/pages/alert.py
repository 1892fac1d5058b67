"""The page of one alert: where the buttons of a message lead. Nothing changes before a button of the page is pressed,
because previews of links open addresses too. Pure."""

from __future__ import annotations

from dash import html
from dash.development.base_component import Component

from dashboard import ids


def layout() -> Component:
    """The page before its first data."""
    return html.Div(
        [
            html.H1("Alert"),
            html.Div(html.Span(className="bone"), id=ids.ALERT_ONE, className="alerts one"),
        ],
        className="page",
    )
