"""Scripts and styles travel compressed, are kept while their address holds, and have the same content."""

from __future__ import annotations

import re

import httpx
import pytest

from dashboard.app import ASSETS, PLOTLY, create_app
from dashboard.config import DashboardConfig
from tests.dashboard.test_app import client_of

STYLE = "/assets/31-run.css"


async def get(client: httpx.AsyncClient, path: str, encoding: str = "identity", **headers: str) -> httpx.Response:
    return await client.get(path, headers={"Accept-Encoding": encoding, **headers})


@pytest.mark.parametrize("encoding", ["zstd", "gzip", "identity"])
async def test_every_encoding_has_the_same_content(encoding: str) -> None:
    async with client_of(create_app(DashboardConfig(), cookies=None)) as client:
        answer = await get(client, STYLE, encoding)
        assert answer.headers.get("content-encoding", "identity") == encoding
        assert answer.headers["vary"] == "Accept-Encoding"
        assert answer.content == (ASSETS / "31-run.css").read_bytes()
        assert (await get(client, STYLE, encoding)).content == answer.content, "the second answer comes from memory"


async def test_what_a_page_of_a_run_loads_at_first_is_small() -> None:
    async with client_of(create_app(DashboardConfig(), cookies=None)) as client:
        page = (await client.get("/runs/some-run")).text
        files = {PLOTLY, *re.findall(r'(?:src|href)="(/[^"]+)"', page)}
        answers = [await get(client, path, "zstd, gzip") for path in files]
        assert {answer.status_code for answer in answers} == {200}
        sent = sum(int(answer.headers["content-length"]) for answer in answers)
        assert 1_000_000 < sent < 1_700_000
        whole = sum(len(answer.content) for answer in answers)
        assert whole > 3.5 * sent


async def test_an_address_with_a_version_is_kept_for_ever_and_another_is_revalidated() -> None:
    async with client_of(create_app(DashboardConfig(), cookies=None)) as client:
        page = (await client.get("/")).text
        versioned = re.findall(r'"(/_dash-component-suites/[^"]+|/assets/[^"]+\.css\?m=[^"]+)"', page)
        assert len(versioned) > 6
        for path in versioned:
            assert "immutable" in (await get(client, path)).headers["cache-control"], path
        answer = await get(client, PLOTLY)
        assert answer.headers["cache-control"] == "no-cache"
        again = await get(client, PLOTLY, **{"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (await get(client, PLOTLY, **{"If-None-Match": '"other"'})).status_code == 200


async def test_fonts_are_sent_as_they_are_and_missing_files_stay_missing() -> None:
    async with client_of(create_app(DashboardConfig(), cookies=None)) as client:
        font = await get(client, "/assets/fonts/inter-latin-wght-normal.woff2", "zstd")
        assert "content-encoding" not in font.headers
        assert font.content.startswith(b"wOF2")
        for _ in range(2):
            assert (await get(client, "/assets/none.js", "zstd")).status_code == 404
        assert (await client.post(STYLE)).status_code == 405


async def test_plotly_is_fetched_early_where_it_is_drawn_at_once() -> None:
    async with client_of(create_app(DashboardConfig(), cookies=None)) as client:
        assert f'<link rel="prefetch" href="{PLOTLY}"' in (await client.get("/runs/some-run")).text
        assert PLOTLY not in (await client.get("/")).text
