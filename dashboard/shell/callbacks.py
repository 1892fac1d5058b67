"""Callbacks that all pages share: routing, the live connection and form actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import Dash, Input, Output, State, ctx, set_props
from dash.exceptions import PreventUpdate

from dashboard import ids
from dashboard.client import ApiClient
from dashboard.config import DashboardConfig
from dashboard.forms.actions import FormActions, parse_form_action
from dashboard.shell.clientside import clientside
from dashboard.shell.frame import layout, missing_page
from dashboard.shell.navigation import Navigation
from dashboard.shell.page import Page, PageRequest, action_handlers
from dashboard.shell.routing import Router
from dashboard.stream.live_part import LivePart
from dashboard.stream.session import Session
from dashboard.stream.view import View, parse_view
from dashboard.viewer import Viewer, current_viewer
from dashboard.viewers import Viewers


def register(app: Dash, pages: Sequence[Page], *, config: DashboardConfig, viewers: Viewers) -> None:
    """Give the application its frame and attach every callback. Raises `ValueError` if pages share a form action."""
    router, navigation = Router(pages), Navigation(pages)
    app.layout = lambda: layout(navigation, current_viewer.get())
    _register_routing(app, router, navigation)
    _register_live(app, router, config, viewers)
    _register_forms(app, FormActions(action_handlers(pages)), viewers)
    clientside(app, "route", Output(ids.VIEW, "data"), Input(ids.ROUTE, "data"))
    clientside(app, "address", Input(ids.LOCATION, "search"))
    clientside(app, "sync", Input(ids.LOCATION, "search"), Input(ids.BEAT, "data"))
    clientside(app, "beat", Input(ids.BEAT, "data"))
    for page in pages:
        if page.callbacks is not None:
            page.callbacks(app)


def live_part(router: Router, client: ApiClient, viewer: Viewer, view: View) -> LivePart | None:
    """Return a new live part of the page that a view names, or None if the page has none."""
    page = router.page(view.page)
    return page.live(client, PageRequest(viewer=viewer, subject=view.subject or "")) if page is not None else None


def _register_routing(app: Dash, router: Router, navigation: Navigation) -> None:
    @app.callback(
        Output(ids.PAGE, "children"),
        Output(ids.ROUTE, "data"),
        *navigation.outputs(),
        Input(ids.LOCATION, "pathname"),
    )
    def go(path: str | None) -> tuple[Any, ...]:
        route = router.route(path)
        page = router.page(route.page)
        request = PageRequest(viewer=current_viewer.get(), subject=route.subject or "")
        return (
            page.layout(request) if page is not None else missing_page(),
            {"page": route.page, "subject": route.subject},
            *navigation.values(route.page),
        )


def _register_live(app: Dash, router: Router, config: DashboardConfig, viewers: Viewers) -> None:
    sessions: dict[tuple[str, str], Session] = {}
    """Open sessions, keyed by credential and page load, so that no viewer can steer the page of another."""

    @app.callback(
        Input(ids.RESUME, "data"), State(ids.TAB, "data"), State(ids.VIEW, "data"), websocket=True, persistent=True
    )
    async def serve(_resume: int, tab: str, view: Any) -> None:
        """Serve a page load until it is closed. view.js asks for another session if the beats stop."""
        if ctx.websocket is None:
            raise PreventUpdate
        viewer = current_viewer.get()
        client = viewers.client(viewer)
        session = Session(
            ctx.websocket,
            viewers.feed(viewer),
            lambda shown: live_part(router, client, viewer, shown),
            tab=tab,
            max_refresh_rate=config.max_refresh_rate,
        )
        session.show(parse_view(view))
        key = (viewer.credential, tab)
        replaced = sessions.get(key)
        if replaced is not None:
            replaced.close()
        sessions[key] = session
        try:
            await session.serve()
        finally:
            if sessions.get(key) is session:
                del sessions[key]

    @app.callback(Input(ids.VIEW, "data"), State(ids.TAB, "data"), websocket=True, prevent_initial_call=True)
    async def show(view: Any, tab: str) -> None:
        session = sessions.get((current_viewer.get().credential, tab))
        if session is not None:
            session.show(parse_view(view))


def _register_forms(app: Dash, actions: FormActions, viewers: Viewers) -> None:
    @app.callback(Input(ids.FORM_ACTION, "data"), prevent_initial_call=True)
    async def perform(data: Any) -> None:
        action = parse_form_action(data)
        if action is None:
            raise PreventUpdate
        shown = await actions.perform(action, viewers.client(current_viewer.get()))
        for component, props in shown.items():
            set_props(component, props)

    clientside(app, "formResult", Input(ids.FORM_RESULT, "data"))
