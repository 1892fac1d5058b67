"""The assembly of the dashboard: mounted on the server's application, or as an application of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dash import Dash
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from dashboard.client import ApiClient
from dashboard.config import DashboardConfig
from dashboard.dash_private import document, set_up_server
from dashboard.downloads import PATH as EXPORT_PATH
from dashboard.downloads import export_of
from dashboard.login.cookies import Cookies
from dashboard.login.guard import CSRF_HEADER, LoginGuard
from dashboard.login.headers import SecurityHeaders, content_policy
from dashboard.pages.registry import PAGES
from dashboard.scripts_and_styles import ScriptsAndStyles, with_hash
from dashboard.shell import frame
from dashboard.shell.callbacks import register
from dashboard.viewers import Viewers

ASSETS = Path(__file__).parent / "assets"
FONT = "fonts/inter-latin-wght-normal.woff2"
PLOTLY = "plotly/plotly-partial.min.js"
"""Plotly with the kinds of traces that the figures use, a third of the bytes of the whole of it."""
DASH_PLOTLY = "/_dash-component-suites/plotly/package_data/plotly.min.js"
"""Address from which Dash's graphs load Plotly if load_plotly.js has not."""


def mount_dashboard(app: FastAPI, config: DashboardConfig, *, cookies: Cookies | None) -> None:
    """Serve the dashboard at `/` of an application, for every path that none of its routes has.

    Call it after all routes are registered. The dashboard is a client of the API, with the credential of each viewer.
    ``cookies``: cookies of the login; None serves the pages without a login, for development and tests.
    """
    client = ApiClient(config)
    pages = _pages(config, client, cookies)
    app.router.lifespan_context = _closing(app.router.lifespan_context, client)
    app.mount("/", _guarded(pages, config, client, cookies))


def create_app(config: DashboardConfig, *, cookies: Cookies | None) -> FastAPI:
    """Return an application with the dashboard alone, for `spikewatch dashboard`."""
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
    """Return the Dash application, on a FastAPI application of its own so that its middleware sees no other route."""
    server = FastAPI(title="Spikewatch dashboard", docs_url=None, redoc_url=None, openapi_url=None)
    origin = _origin(config.public_url)
    server.add_api_route(DASH_PLOTLY, lambda: FileResponse(ASSETS / PLOTLY), methods=["GET"])  # before that of Dash
    dash = Dash(
        "dashboard",
        server=server,  # type: ignore[arg-type]  # Dash types its parameter for Flask alone
        backend="fastapi",
        title="Spikewatch",
        update_title="",
        assets_folder=str(ASSETS),
        assets_ignore=r"(early|load_plotly|plotly-partial\.min)\.js$",  # those that the document loads by itself
        suppress_callback_exceptions=True,
        websocket_inactivity_timeout=0,  # a page stays connected while it is open
        add_log_handler=False,
        csrf_token_name=cookies.csrf if cookies is not None else "_csrf_token",
        csrf_header_name=CSRF_HEADER,
        websocket_allowed_origins=[origin] if origin else None,
        meta_tags=[
            {"name": "viewport", "content": "width=device-width, initial-scale=1"},
            {"name": "color-scheme", "content": "dark light"},
        ],
    )
    dash.index_string = frame.document(
        {name: dash.get_asset_url(path) for name, path in {"favicon": "mark.svg", "font": FONT}.items()}
        | {
            name: with_hash(dash.get_asset_url(path), (ASSETS / path).read_bytes())
            for name, path in {"early": "early.js", "load_plotly": "load_plotly.js", "plotly": PLOTLY}.items()
        }
    )
    viewers = Viewers(config, client)
    register(dash, PAGES, config=config, viewers=viewers)
    set_up_server(dash)

    async def open_page(request: Request) -> HTMLResponse:
        """Answer every address with the same document, in which the router reads the address."""
        return HTMLResponse(document(dash, request), headers={"Cache-Control": "no-cache"})

    async def no_page(request: Request, error: Exception) -> Response:
        """Answer an address that names no page: with the document, whose router says so, or as JSON for programs."""
        assert isinstance(error, HTTPException)
        if error.status_code == 404 and request.method == "GET" and opens_pages(request.headers.get("accept", "")):
            answer = await open_page(request)
            answer.status_code = 404
            return answer
        path = request.url.path
        words = f"there is no {path}" if error.status_code == 404 else f"{path}: {error.detail}"
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
        return JSONResponse({"error": code, "message": words}, error.status_code, error.headers)

    server.add_exception_handler(HTTPException, no_page)
    server.add_api_route(EXPORT_PATH, export_of(viewers), methods=["GET"])
    for page in PAGES:
        if page.path != "/":  # Dash serves "/" itself
            server.add_api_route(page.path, open_page, methods=["GET"])
    return SecurityHeaders(_head_as_get(ScriptsAndStyles(server)), content_policy(dash.csp_hashes()))


def opens_pages(accept: str) -> bool:
    """Return whether the header Accept is that of a browser which opens an address, rather than of a program.

    >>> opens_pages("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"), opens_pages("*/*")
    (True, False)
    """
    return any(part.split(";")[0].strip().lower() == "text/html" for part in accept.split(","))


def _head_as_get(app: ASGIApp) -> ASGIApp:
    """Return the application with HEAD answered as GET. The server of HTTP leaves the body out."""

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await app(scope, receive, send)

    return answering


def _origin(url: str | None) -> str:
    parts = urlsplit(url or "")
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""


def _closing(inner: Lifespan[Any], client: ApiClient) -> Lifespan[Any]:
    """Return a lifespan that runs the given one and closes the client at its end."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        async with inner(app) as state:
            try:
                yield state
            finally:
                await client.aclose()

    return lifespan
