"""Scripts and styles travel compressed, are kept while their address holds, and have the same content."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import dash
import httpx
import pytest
from plotly.offline import get_plotlyjs_version

from dashboard.app import ASSETS, DASH_PLOTLY, PLOTLY, create_app
from dashboard.config import DashboardConfig
from dashboard.figures.theme import figure
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
        files = set(re.findall(r'(?:src|href|data-plotly)="(/[^"]+)"', page))
        answers = [await get(client, path, "zstd, gzip") for path in files]
        assert {answer.status_code for answer in answers} == {200}
        sent = sum(int(answer.headers["content-length"]) for answer in answers)
        assert 600_000 < sent < 900_000
        whole = sum(len(answer.content) for answer in answers)
        assert whole > 3 * sent


async def test_an_address_with_a_version_is_kept_for_ever_and_another_is_revalidated() -> None:
    async with client_of(create_app(DashboardConfig(), cookies=None)) as client:
        page = (await client.get("/")).text
        versioned = re.findall(r'"(/_dash-component-suites/[^"]+|/assets/[^"]+\.css\?m=[^"]+)"', page)
        versioned += re.findall(r'"(/assets/[^"]+\?v=[^"]+)"', page)
        assert len(versioned) > 9
        for path in versioned:
            assert "immutable" in (await get(client, path)).headers["cache-control"], path
        answer = await get(client, DASH_PLOTLY)
        assert answer.headers["cache-control"] == "no-cache"
        again = await get(client, DASH_PLOTLY, **{"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (await get(client, DASH_PLOTLY, **{"If-None-Match": '"other"'})).status_code == 200


async def test_fonts_are_sent_as_they_are_and_missing_files_stay_missing() -> None:
    async with client_of(create_app(DashboardConfig(), cookies=None)) as client:
        font = await get(client, "/assets/fonts/inter-latin-wght-normal.woff2", "zstd")
        assert "content-encoding" not in font.headers
        assert font.content.startswith(b"wOF2")
        for _ in range(2):
            assert (await get(client, "/assets/none.js", "zstd")).status_code == 404
        assert (await client.post(STYLE)).status_code == 405


async def test_both_addresses_of_plotly_have_the_partial_bundle() -> None:
    async with client_of(create_app(DashboardConfig(), cookies=None)) as client:
        page = (await client.get("/runs/some-run")).text
        (address,) = re.findall(r'data-plotly="([^"]+)"', page)
        bundle = (ASSETS / PLOTLY).read_bytes()
        for path in (address, DASH_PLOTLY):
            answer = await get(client, path)
            assert answer.content == bundle
            assert answer.headers["content-type"].split(";")[0] in ("text/javascript", "application/javascript")
        scripts = "".join(re.findall(r'<script[^>]* src="[^"]+"', page))
        assert "plotly-partial" not in scripts.replace(f'data-plotly="{address}"', ""), "no page loads it twice"


def test_dash_loads_plotly_from_the_address_that_is_replaced() -> None:
    folder = Path(dash.__file__).parent
    scripts = (folder / "dash-renderer" / "build").glob("*.js")
    assert any(DASH_PLOTLY.lstrip("/") in script.read_text("utf-8") for script in scripts)


def test_the_bundle_is_the_one_that_was_built_and_fits_the_library_for_python() -> None:
    content = (ASSETS / PLOTLY).read_bytes()
    assert hashlib.sha256(content).hexdigest() == (ASSETS / PLOTLY).with_suffix(".js.sha256").read_text().split()[0]
    assert f"Plotly.js v{get_plotlyjs_version()}, partial bundle" in content[:100].decode()
    assert "plotly.js 4" in (ASSETS / PLOTLY).with_name("LICENSES.txt").read_text("utf-8")


def test_a_figure_with_a_trace_that_the_bundle_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no 'violin'.*deploy/plotly"):
        figure([{"type": "violin"}], {})
