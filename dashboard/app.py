"""The wiring of the dashboard: embedded in the server's own application, or alone beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dash import Dash
from dash.backends._fastapi import reset_current_request, set_current_request
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from starlette.types import ASGIApp, Lifespan

from dashboard.client import ApiClient
from dashboard.config import DashboardConfig
from dashboard.login.cookies import Cookies
from dashboard.login.guard import CSRF_HEADER, LoginGuard
from dashboard.login.headers import SecurityHeaders, content_policy
from dashboard.pages.callbacks import register
from dashboard.pages.shell import index, layout
from dashboard.viewers import Viewers

ASSETS = Path(__file__).parent / "assets"
FONT = "fonts/inter-latin-wght-normal.woff2"


def mount_dashboard(app: FastAPI, config: DashboardConfig, *, cookies: Cookies | None) -> None:
    """Serve the dashboard at `/` of the server's own application, below every route it already has.

    Call it last. The dashboard speaks to the API like any other client, with the credential of whoever looks.
    ``cookies``: of its login; None puts no login in front, for development and tests.
    """
    client = ApiClient(config)
    pages = _pages(config, client, cookies)
    app.router.lifespan_context = _closing(app.router.lifespan_context, client)
    app.mount("/", _guarded(pages, config, client, cookies))


def create_app(config: DashboardConfig, *, cookies: Cookies | None) -> FastAPI:
    """The dashboard alone, for `spikewatch dashboard`."""
    app = FastAPI(title="Spikewatch dashboard", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    mount_dashboard(app, config, cookies=cookies)
    return app


def _guarded(pages: ASGIApp, config: DashboardConfig, client: ApiClient, cookies: Cookies | None) -> ASGIApp:
    if cookies is None:
        return pages
    anonymous = client.acting_for("")
    return LoginGuard(pages, client=anonymous, cookies=cookies, public_url=config.public_url)


def _pages(config: DashboardConfig, client: ApiClient, cookies: Cookies | None) -> ASGIApp:
    """The Dash application on a FastAPI of its own, so that its middleware never sees the server's other routes."""
    server = FastAPI(title="Spikewatch dashboard", docs_url=None, redoc_url=None, openapi_url=None)
    origin = _origin(config.public_url)
    dash = Dash(
        "dashboard",
        server=server,  # type: ignore[arg-type]  # Dash types its parameter for Flask alone
        backend="fastapi",
        title="Spikewatch",
        update_title="",
        assets_folder=str(ASSETS),
        assets_ignore=r"early\.js$",
        suppress_callback_exceptions=True,
        websocket_inactivity_timeout=0,  # an open page is a reason to stay connected
        add_log_handler=False,
        csrf_token_name=cookies.csrf if cookies is not None else "_csrf_token",
        csrf_header_name=CSRF_HEADER,
        websocket_allowed_origins=[origin] if origin else None,
        meta_tags=[
            {"name": "viewport", "content": "width=device-width, initial-scale=1"},
            {"name": "color-scheme", "content": "dark light"},
        ],
    )
    urls = {name: dash.get_asset_url(path) for name, path in
            {"favicon": "mark.svg", "font": FONT, "early": "early.js"}.items()}  # fmt: skip
    dash.index_string = index(urls)
    dash.layout = layout
    register(dash, config=config, viewers=Viewers(config, client))
    dash._setup_server()  # type: ignore[no-untyped-call]  # Dash does it on the first request for "/" alone, and the first may be for a run

    async def page(request: Request) -> HTMLResponse:
        """Every page is the same document; the router in it reads the address."""
        token = set_current_request(request)  # type: ignore[no-untyped-call]
        try:
            document = dash.index()  # type: ignore[no-untyped-call]
            return HTMLResponse(document, headers={"Cache-Control": "no-cache"})
        finally:
            reset_current_request(token)  # type: ignore[no-untyped-call]

    for path in ("/runs/{run_id}", "/alerts", "/alerts/{alert_id}", "/rules", "/settings"):
        server.add_api_route(path, page, methods=["GET"])
    return SecurityHeaders(server, content_policy(dash.csp_hashes()))


def _origin(url: str | None) -> str:
    parts = urlsplit(url or "")
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""


def _closing(inner: Lifespan[Any], client: ApiClient) -> Lifespan[Any]:
    """The given lifespan, then close the client."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        async with inner(app) as state:
            try:
                yield state
            finally:
                await client.aclose()

    return lifespan
