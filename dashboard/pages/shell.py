"""What surrounds every page: the header with the live state, the stores, and the page that an address names. Pure."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from dash import dcc, html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.forms.attributes import aria
from dashboard.pages import alert, alerts, fleet, rules, run, settings
from dashboard.viewer import NOBODY, Viewer, current_viewer


@dataclass(frozen=True, kw_only=True)
class Route:
    """What an address asks for."""

    page: str
    """"fleet", "run", "alerts", "alert", "rules", "settings" or "missing"."""
    run_id: str | None = None
    alert_id: str | None = None


def parse_path(path: str | None) -> Route:
    """The page of an address: `/`, `/runs/ID`, `/alerts`, `/alerts/ID`, `/rules` or `/settings`."""
    parts = [unquote(part) for part in (path or "/").split("/") if part]
    match parts:
        case []:
            return Route(page="fleet")
        case ["runs", run_id]:
            return Route(page="run", run_id=run_id)
        case ["alerts", alert_id]:
            return Route(page="alert", alert_id=alert_id)
        case ["alerts" | "rules" | "settings" as page]:
            return Route(page=page)
        case _:
            return Route(page="missing")


def page_content(route: Route) -> Component:
    """The skeleton of a page, shown before its first data."""
    match route:
        case Route(page="fleet"):
            return fleet.layout()
        case Route(page="run", run_id=str(run_id)):
            return run.layout(run_id)
        case Route(page="alerts"):
            return alerts.layout()
        case Route(page="alert"):
            return alert.layout()
        case Route(page="rules"):
            return rules.layout(may_change=current_viewer.get().is_administrator)
        case Route(page="settings"):
            return settings.layout() if current_viewer.get().is_administrator else settings.closed()
        case _:
            return _missing_page()


def layout() -> Component:
    """One page load. Called for each, because each has its own name."""
    return html.Div(
        [
            dcc.Location(id=ids.LOCATION, refresh="callback-nav"),
            dcc.Store(id=ids.ROUTE),
            dcc.Store(id=ids.VIEW),
            dcc.Store(id=ids.TAB, data=uuid.uuid4().hex),
            dcc.Store(id=ids.RESUME, data=0),
            dcc.Store(id=ids.BEAT),
            dcc.Store(id=ids.FORM_ACTION),
            dcc.Store(id=ids.TROUBLE),
            html.A("Skip to content", href=f"#{ids.PAGE}", className="skip"),
            html.Header(
                [
                    dcc.Link([_logo(), html.Span("Spikewatch")], href="/", className="brand"),
                    html.Nav(
                        [
                            dcc.Link("Fleet", href="/", id=ids.NAV_FLEET),
                            html.Span("Run", id=ids.NAV_RUN, className="here"),
                            dcc.Link("Alerts", href="/alerts", id=ids.NAV_ALERTS),
                            dcc.Link("Rules", href="/rules", id=ids.NAV_RULES),
                            dcc.Link(
                                "Settings",
                                href="/settings",
                                id=ids.NAV_SETTINGS,
                                style=None if current_viewer.get().is_administrator else {"display": "none"},
                            ),
                        ],
                        **aria(label="Pages"),
                    ),
                    html.Div(status("connecting", "connecting"), id=ids.STATUS, className="status"),
                    html.Div(className="offline", role="alert"),
                    html.Button(className="theme", type="button", title="Dark or light", **aria(label="Switch theme")),
                    *account(current_viewer.get()),
                ],
                className="top",
            ),
            html.Div(id=ids.NOTICE, className="notice", role="alert"),
            html.Main(id=ids.PAGE, tabIndex=-1),
        ],
        className="app",
    )


def account(viewer: Viewer) -> list[Component]:
    """Who is logged in, and the way out; nothing where no login is in front."""
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


def status(tone: str, word: str, detail: str = "") -> list[Component]:
    """The live state: a dot, a word, and a few numbers. The tone is a class of the stylesheet."""
    return [
        html.Span([html.I(className="dot"), word], className=f"state {tone}"),
        html.Span(detail, className="detail"),
    ]


def _logo() -> Component:
    return html.Span(className="mark", **aria(hidden="true"))


def _missing_page() -> Component:
    return html.Div(
        [
            html.H1("There is no such page"),
            html.P(["The address may have been mistyped. ", dcc.Link("All runs", href="/")], className="muted"),
        ],
        className="lonely",
    )


def index(assets: dict[str, Any]) -> str:
    """The HTML document. The theme is set before anything is drawn, so that the page never flashes."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
{{%metas%}}
<title>{{%title%}}</title>
<link rel="icon" type="image/svg+xml" href="{assets["favicon"]}">
<link rel="preload" href="{assets["font"]}" as="font" type="font/woff2" crossorigin>
<script src="{assets["early"]}"></script>
{{%css%}}
</head>
<body>
{{%app_entry%}}
<footer>{{%config%}}{{%scripts%}}{{%renderer%}}</footer>
</body>
</html>"""
