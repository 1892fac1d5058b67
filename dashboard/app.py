"""The wiring of the dashboard: embedded in the server's own application, or alone beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dash import Dash
from dash.backends._fastapi import reset_current_request, set_current_request
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from starlette.types import Lifespan

from dashboard.client import ApiClient
from dashboard.config import DashboardConfig
from dashboard.live import LiveFeed
from dashboard.pages.callbacks import register
from dashboard.pages.shell import index, layout

ASSETS = Path(__file__).parent / "assets"
FONT = "fonts/inter-latin-wght-normal.woff2"


def mount_dashboard(app: FastAPI, *, api_url: str, token: str) -> None:
    """Serve the dashboard at `/` of the server's own application, below every route it already has.

    Call it last. The dashboard speaks to `api_url` with `token` like any other client; who may see it is decided by the
    server's middleware, which sees every request and websocket first. Raises `ValueError` on a malformed `api_url`.
    """
    config = DashboardConfig(api_url=api_url, token=token)
    client = ApiClient(config)
    pages = _pages(config, client, LiveFeed(config))
    app.router.lifespan_context = _closing(app.router.lifespan_context, client)
    app.mount("/", pages)


def create_app(config: DashboardConfig) -> FastAPI:
    """The dashboard alone, for `spikewatch dashboard`. It guards nothing: put it behind a login."""
    client = ApiClient(config)
    pages = _pages(config, client, LiveFeed(config))
    pages.router.lifespan_context = _closing(pages.router.lifespan_context, client)
    return pages


def _pages(config: DashboardConfig, client: ApiClient, feed: LiveFeed) -> FastAPI:
    """The Dash application on a FastAPI of its own, so that its middleware never sees the server's other routes."""
    server = FastAPI(title="Spikewatch dashboard", docs_url=None, redoc_url=None, openapi_url=None)
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
        meta_tags=[
            {"name": "viewport", "content": "width=device-width, initial-scale=1"},
            {"name": "color-scheme", "content": "dark light"},
        ],
    )
    urls = {name: dash.get_asset_url(path) for name, path in
            {"favicon": "mark.svg", "font": FONT, "early": "early.js"}.items()}  # fmt: skip
    dash.index_string = index(urls)
    dash.layout = layout
    register(dash, config=config, client=client, feed=feed)
    dash._setup_server()  # type: ignore[no-untyped-call]  # Dash does it on the first request for "/" alone, and the first may be for a run

    async def page(request: Request) -> HTMLResponse:
        """Every page is the same document; the router in it reads the address."""
        token = set_current_request(request)  # type: ignore[no-untyped-call]
        try:
            document = dash.index()  # type: ignore[no-untyped-call]
            return HTMLResponse(document, headers={"Cache-Control": "no-cache"})
        finally:
            reset_current_request(token)  # type: ignore[no-untyped-call]

    for path in ("/runs/{run_id}", "/alerts"):
        server.add_api_route(path, page, methods=["GET"])
    return server


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
