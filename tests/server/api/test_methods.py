"""HEAD and OPTIONS answer like GET, a wrong method is 405, and an unknown address is a page for a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.assembly.dashboard import make_dashboard
from tests.support.asgi import serving
from tests.support.server import RunningServer, running_server
from tests.support.writer import Writer, record

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
OPEN = ["/healthz", "/readyz", "/metrics", "/api/v1/openapi.json"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("methods"), dashboard=True) as server:
        with server.connect("/ingest") as socket:
            writer = Writer(socket)
            writer.hello("run")
            writer.commit(*(record(step, float(step)) for step in range(2_000)))
        yield server


@pytest.fixture
def anyone(running: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


@pytest.mark.parametrize("path", OPEN)
def test_head_answers_like_get_without_a_body(anyone: httpx.Client, path: str) -> None:
    got, head = anyone.get(path), anyone.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize("path", ["/api/v1/runs", "/api/v1/runs/run", "/api/v1/runs/run/series?keys=loss"])
def test_head_needs_the_token_that_get_needs(anyone: httpx.Client, running: RunningServer, path: str) -> None:
    assert anyone.head(path).status_code == anyone.get(path).status_code == 401
    got, head = anyone.get(path, headers=running.headers), anyone.head(path, headers=running.headers)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers.get("etag") == got.headers.get("etag")
    assert anyone.head("/api/v1/runs/none", headers=running.headers).status_code == 404


def test_head_of_an_export_has_its_headers_and_streams_nothing(anyone: httpx.Client, running: RunningServer) -> None:
    for form in ("csv", "parquet", "zip"):
        head = anyone.head("/api/v1/runs/run/export", params={"format": form}, headers=running.headers)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-disposition"] == f'attachment; filename="run.{form}"'
    assert anyone.get("/api/v1/runs/run", headers=running.headers).status_code == 200


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/api/v1/openapi.json", "GET, HEAD, OPTIONS"),
        ("/api/v1/runs", "GET, HEAD, OPTIONS"),
        ("/api/v1/runs/anything", "GET, HEAD, PATCH, DELETE, OPTIONS"),
        ("/api/v1/rules", "GET, HEAD, PUT, OPTIONS"),
        ("/api/v1/sessions", "POST, OPTIONS"),
        ("/api/v1/alerts/anything/acknowledge", "POST, OPTIONS"),
    ],
)
def test_options_lists_the_methods_and_every_other_is_refused_with_them(
    anyone: httpx.Client, path: str, allow: str
) -> None:
    options = anyone.options(path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, allow, b"")
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"):
        answer = anyone.request(method, path)
        assert (answer.status_code == 405) == (method not in allow.split(", ")), method
        if answer.status_code == 405:
            assert answer.headers["allow"] == allow
            if method != "HEAD":
                assert answer.json()["error"] == "method_not_allowed"
                assert allow in answer.json()["message"]


def test_an_unknown_path_of_the_api_is_not_found_with_any_method(anyone: httpx.Client) -> None:
    for method in ("GET", "POST", "OPTIONS", "PROPFIND"):
        answer = anyone.request(method, "/api/v1/nowhere", headers=BROWSER)
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
        assert "/api/v1/nowhere" in answer.json()["message"]


def test_an_unknown_address_is_a_page_in_a_browser_and_json_for_a_program(running: RunningServer) -> None:
    with httpx.Client(base_url=running.url, timeout=30) as browser:
        assert browser.get(f"/?token={running.token}").status_code == 303
        page = browser.get("/no/such/page", headers=BROWSER)
        assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
        assert page.text.splitlines()[0].lower() == browser.get("/", headers=BROWSER).text.splitlines()[0].lower()
        for path in ("/no/such/page", "/assets/none.css"):
            program = browser.get(path)
            assert (program.status_code, program.json()["error"]) == (404, "not_found")
            assert path in program.json()["message"]
        assert browser.head("/").status_code == 200
        assert browser.head("/runs/run").status_code == 200
        assert browser.head("/no/such/page", headers=BROWSER).status_code == 404


def test_a_server_without_a_dashboard_has_a_page_for_that(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, httpx.Client(base_url=server.url) as anyone:
        page = anyone.get("/", headers=BROWSER)
        assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
        assert "no dashboard" in page.text
        assert anyone.get("/").json()["error"] == "not_found"
        assert anyone.get("/api/v1/nowhere", headers=BROWSER).json()["error"] == "not_found"


def test_a_dashboard_of_its_own_answers_the_same(running: RunningServer) -> None:
    app = make_dashboard({"SPIKEWATCH_URL": running.url}, 9999)
    with serving(app, lifespan="on") as address, httpx.Client(base_url=address) as anyone:
        head = anyone.head("/healthz")
        assert (head.status_code, head.content) == (200, b"")
        assert anyone.options("/healthz").headers["allow"] == "GET, HEAD, OPTIONS"
        assert anyone.post("/healthz").status_code == 405
