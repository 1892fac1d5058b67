"""The frame around every page: the document, the header, the account and the stores. Pure."""

from __future__ import annotations

import uuid
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.forms.attributes import aria
from dashboard.shell.navigation import Navigation
from dashboard.stream.status import status
from dashboard.viewer import NOBODY, Viewer


def layout(navigation: Navigation, viewer: Viewer) -> Component:
    """Return the frame of one page load. Dash calls it for each, because each has a name of its own."""
    return html.Div(
        [
            dcc.Location(id=ids.LOCATION, refresh="callback-nav"),
            dcc.Store(id=ids.ROUTE),
            dcc.Store(id=ids.VIEW),
            dcc.Store(id=ids.TAB, data=uuid.uuid4().hex),
            dcc.Store(id=ids.RESUME, data=0),
            dcc.Store(id=ids.BEAT),
            dcc.Store(id=ids.FORM_ACTION),
            dcc.Store(id=ids.FORM_RESULT),
            html.A("Skip to content", href=f"#{ids.PAGE}", className="skip"),
            html.Header(
                [
                    dcc.Link([_logo(), html.Span("Spikewatch")], href="/", className="brand"),
                    navigation.layout(viewer),
                    html.Div(status("connecting", "connecting"), id=ids.STATUS, className="status"),
                    html.Div(className="offline", role="alert"),
                    html.Button(className="theme", type="button", title="Dark or light", **aria(label="Switch theme")),
                    *account(viewer),
                ],
                className="top",
            ),
            html.Div(id=ids.NOTICE, className="notice", role="alert"),
            html.Main(id=ids.PAGE, tabIndex=-1),
        ],
        className="app",
    )


def account(viewer: Viewer) -> list[Component]:
    """Return the name of the login and the button that ends it; nothing if the dashboard requires no login."""
    if viewer == NOBODY:
        return []
    shown = viewer.project or viewer.label
    opens = f"the project {viewer.project}" if viewer.project is not None else "all projects"
    words = f"Log out: {viewer.label or 'a token'} ({viewer.scope}, {opens})"
    return [
        html.Form(
            [
                html.Span(shown, className="who", title=words),
                dcc.Input(type="hidden", name="csrf", value=viewer.csrf),
                html.Button(className="leave", type="submit", title=words, **aria(label="Log out")),
            ],
            action="/logout",
            method="POST",
            className="account",
        )
    ]


def missing_page() -> Component:
    """Return the page of an address that no page has."""
    return html.Div(
        [
            html.H1("Page not found"),
            html.P(["The address may have been mistyped. ", dcc.Link("All runs", href="/")], className="muted"),
        ],
        className="lonely",
    )


def document(assets: dict[str, Any]) -> str:
    """Return the HTML document with Dash's placeholders. ``assets``: addresses of the files that it loads by itself.

    Its first script sets the theme before anything is drawn, its second one begins to load Plotly if the address is
    that of a page with graphs.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
{{%metas%}}
<title>{{%title%}}</title>
<link rel="icon" type="image/svg+xml" href="{assets["favicon"]}">
<link rel="preload" href="{assets["font"]}" as="font" type="font/woff2" crossorigin>
<script src="{assets["early"]}"></script>
<script src="{assets["load_plotly"]}" data-plotly="{assets["plotly"]}"></script>
{{%css%}}
</head>
<body>
{{%app_entry%}}
<footer>{{%config%}}{{%scripts%}}{{%renderer%}}</footer>
</body>
</html>"""


def _logo() -> Component:
    return html.Span(className="mark", **aria(hidden="true"))
