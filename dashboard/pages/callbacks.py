"""The callbacks: routing, the live callback of each page, what people do. Everything else happens in `Session`."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, set_props
from dash.exceptions import PreventUpdate

from dashboard import ids
from dashboard.client import ApiClient
from dashboard.config import DashboardConfig
from dashboard.models import Tried
from dashboard.pages.alert_live import AlertLive
from dashboard.pages.alerts_live import AlertsLive
from dashboard.pages.fleet_live import FleetLive
from dashboard.pages.form_actions import FormActions, parse_deed
from dashboard.pages.rules import result
from dashboard.pages.rules_live import RulesLive
from dashboard.pages.run_live import RunLive
from dashboard.pages.session import LivePage, PageFactory, Session
from dashboard.pages.settings_live import SettingsLive
from dashboard.pages.shell import page_content, parse_path
from dashboard.pages.view import View, parse_view
from dashboard.viewer import current_viewer
from dashboard.viewers import Viewers

logger = logging.getLogger(__name__)


def page_factory(client: ApiClient) -> PageFactory:
    """Makes the moving part of whatever page a browser is on."""

    def make(view: View) -> LivePage | None:
        match view.page, view.run_id:
            case "fleet", _:
                return FleetLive(client)
            case "run", str(run_id):
                return RunLive(client, run_id)
            case "alerts", _:
                return AlertsLive(client)
            case "alert", _ if view.alert_id is not None:
                return AlertLive(client, view.alert_id)
            case "rules", _:
                return RulesLive(client, may_change=current_viewer.get().is_administrator)
            case "settings", _ if current_viewer.get().is_administrator:
                return SettingsLive(client)
            case _:
                return None

    return make


def register(app: Dash, *, config: DashboardConfig, viewers: Viewers) -> None:
    """Attach every callback to the application."""
    _register_routing(app)
    _register_live(app, config, viewers)
    _register_forms(app, viewers)
    _register_clientside(app)


def _register_routing(app: Dash) -> None:
    @app.callback(
        Output(ids.PAGE, "children"),
        Output(ids.ROUTE, "data"),
        Output(ids.NAV_FLEET, "className"),
        Output(ids.NAV_RUN, "hidden"),
        Output(ids.NAV_ALERTS, "className"),
        Output(ids.NAV_RULES, "className"),
        Output(ids.NAV_SETTINGS, "className"),
        Input(ids.LOCATION, "pathname"),
    )
    def go(path: str | None) -> tuple[Any, ...]:
        route = parse_path(path)
        return (
            page_content(route),
            {"page": route.page, "run": route.run_id, "alert": route.alert_id},
            "here" if route.page == "fleet" else "",
            route.page != "run",
            "here" if route.page in ("alerts", "alert") else "",
            *("here" if route.page == name else "" for name in ("rules", "settings")),
        )


def _register_live(app: Dash, config: DashboardConfig, viewers: Viewers) -> None:
    sessions: dict[tuple[str, str], Session] = {}
    """By login and tab: nobody steers the page of another."""

    @app.callback(
        Input(ids.RESUME, "data"), State(ids.TAB, "data"), State(ids.VIEW, "data"), websocket=True, persistent=True
    )
    async def attend(_resume: int, tab: str, view: Any) -> None:
        """Lives as long as the page; view.js asks for another one when the beats stop."""
        if ctx.websocket is None:
            raise PreventUpdate
        viewer = current_viewer.get()
        make_page = page_factory(viewers.client(viewer))
        session = Session(
            ctx.websocket, viewers.feed(viewer), make_page, tab=tab, max_refresh_rate=config.max_refresh_rate
        )
        session.look(parse_view(view))
        key = (viewer.credential, tab)
        replaced = sessions.get(key)
        if replaced is not None:
            replaced.leave()
        sessions[key] = session
        try:
            await session.attend()
        finally:
            if sessions.get(key) is session:
                del sessions[key]

    @app.callback(Input(ids.VIEW, "data"), State(ids.TAB, "data"), websocket=True, prevent_initial_call=True)
    async def look(view: Any, tab: str) -> None:
        session = sessions.get((current_viewer.get().credential, tab))
        if session is not None:
            session.look(parse_view(view))


def _register_forms(app: Dash, viewers: Viewers) -> None:
    @app.callback(Input(ids.FORM_ACTION, "data"), prevent_initial_call=True)
    async def do(data: Any) -> None:
        deed = parse_deed(data)
        if deed is None:
            raise PreventUpdate
        deeds = FormActions(viewers.client(current_viewer.get()))
        for component, props in (await deeds.do(deed)).items():
            set_props(component, props)

    @app.callback(
        Output(ids.RULE_RESULT, "children"), Input(ids.RULE_TRIED, "data"), Input(ids.VIEW, "data"),
        prevent_initial_call=True,
    )  # fmt: skip
    def show_tried(data: Any, view: Any) -> Any:
        """Drawn anew when the theme changes."""
        known = parse_view(view)
        if not data or known is None:
            return None
        return result(msgspec.convert(data["tried"], Tried), data["rule"], known)


def _register_clientside(app: Dash) -> None:
    def function(name: str) -> ClientsideFunction:
        return ClientsideFunction(namespace="spikewatch", function_name=name)

    wiring: tuple[tuple[Any, ...], ...] = (
        (function("route"), Output(ids.VIEW, "data"), Input(ids.ROUTE, "data")),
        (function("beat"), Input(ids.BEAT, "data")),
        (function("fleet"), Input(ids.FLEET, "data")),
        (function("trouble"), Input(ids.TROUBLE, "data")),
        (function("zoom"), Input({"panel": ALL}, "relayoutData")),
        (function("cell"), Input({"panel": ALL}, "clickData")),
    )
    for arguments in wiring:
        app.clientside_callback(*arguments)  # type: ignore[no-untyped-call]
