"""Tests of the assembly: mounted on another application, and alone."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from dashboard.app import ASSETS, create_app, mount_dashboard
from dashboard.config import DashboardConfig

FOREIGN = re.compile(r"""(?:src|href)\s*=\s*["'](?:https?:)?//""")


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an application while its lifespan runs."""
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        yield client


async def test_the_host_s_own_routes_come_first() -> None:
    app = FastAPI()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    mount_dashboard(app, DashboardConfig(api_url="http://127.0.0.1:1"), cookies=None)
    async with client_of(app) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert "Spikewatch" in (await client.get("/")).text


async def test_the_host_s_lifespan_still_runs_around_the_dashboard_s() -> None:
    order: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        order.append("start")
        yield
        order.append("stop")

    app = FastAPI(lifespan=lifespan)
    mount_dashboard(app, DashboardConfig(api_url="http://127.0.0.1:1"), cookies=None)
    async with client_of(app):
        assert order == ["start"]
    assert order == ["start", "stop"]


@pytest.mark.parametrize("path", ["/", "/runs/some-run", "/alerts", "/alerts/some-alert"])
async def test_every_page_is_a_document_of_its_own_host_alone(path: str) -> None:
    async with client_of(create_app(DashboardConfig(), cookies=None)) as client:
        answer = await client.get(path)
        assert answer.status_code == 200
        assert not FOREIGN.search(answer.text)
        head = answer.text.split("</head>")[0]
        assert head.index("early.js") < head.index(".css"), "the theme is known before anything is drawn"
        scripts = re.findall(r'src="(/[^"]+)"', answer.text)
        assert len(scripts) > 3
        assert {(await client.get(script)).status_code for script in scripts} == {200}


async def test_the_font_is_served_with_its_licence() -> None:
    async with client_of(create_app(DashboardConfig(), cookies=None)) as client:
        font = await client.get("/assets/fonts/inter-latin-wght-normal.woff2")
        assert font.content.startswith(b"wOF2")
        assert "SIL Open Font License" in (await client.get("/assets/fonts/OFL.txt")).text
    for sheet in ASSETS.glob("*.css"):
        assert "http" not in sheet.read_text().replace("http://www.w3.org/2000/svg", "")
