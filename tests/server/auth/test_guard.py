"""The login in front of the dashboard, with a page of our own behind it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from server.auth.guard import DashboardGuard
from server.auth.sessions import Sessions
from server.auth.tokens import Authenticator
from tests.support.asgi import serving

TOKEN = "sw_admin_token_0000"


async def page(request: Request) -> Response:
    return PlainTextResponse(f"page {request.url.path} {request.url.query}")


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("hello")
    await socket.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pages = Starlette(
        routes=[WebSocketRoute("/socket", echo), Route("/{path:path}", page, methods=["GET", "POST"])],
    )
    guard = DashboardGuard(
        pages,
        authenticator=Authenticator(None, admin_token=TOKEN),
        sessions=Sessions("secret", days=1),
        cookie="session",
        open_paths=["/api", "/healthz"],
    )
    with serving(guard) as address:
        yield address


@pytest.fixture
def browser(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


@pytest.fixture
def logged_in(browser: httpx.Client) -> httpx.Client:
    assert browser.get(f"/?token={TOKEN}").status_code == 303
    return browser


def socket_says(browser: httpx.Client, origin: str | None) -> str | None:
    """What the page's websocket says, None where the handshake is refused."""
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    address = str(browser.base_url).rstrip("/").replace("http", "ws", 1) + "/socket"
    headers = {"Cookie": cookie} if cookie else {}
    try:
        with connect(address, origin=origin, additional_headers=headers) as socket:  # type: ignore[arg-type]
            return str(socket.recv(timeout=20))
    except InvalidStatus:
        return None


def test_nothing_is_shown_before_the_login(browser: httpx.Client, url: str) -> None:
    for path in ("/", "/runs/1", "/_dash-layout", "/apiary", "/healthzz"):
        answer = browser.get(path)
        assert answer.status_code == 401
        assert "page" not in answer.text.split("<style>")[0]
    assert browser.post("/_dash-update-component").status_code == 401
    assert socket_says(browser, url) is None


def test_open_paths_pass(browser: httpx.Client) -> None:
    assert browser.get("/api/v1/runs").text.startswith("page")
    assert browser.get("/healthz").text.startswith("page")


def test_the_printed_link_logs_in_and_takes_the_token_out_of_the_address(browser: httpx.Client) -> None:
    answer = browser.get(f"/runs/1?token={TOKEN}&tab=alerts")
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/1?tab=alerts")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert TOKEN not in answer.headers["set-cookie"]
    assert browser.get("/runs/1").text == "page /runs/1 "


def test_a_wrong_token_logs_nobody_in(browser: httpx.Client) -> None:
    answer = browser.get("/?token=wrong")
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "does not open" in answer.text


def test_the_form_logs_in(browser: httpx.Client, url: str) -> None:
    assert '<form method="post"' in browser.get("/login").text
    answer = browser.post("/login", data={"token": f" {TOKEN} "}, headers={"Origin": url})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert browser.get("/").status_code == 200


def test_the_form_of_another_site_logs_nobody_in(browser: httpx.Client) -> None:
    for headers in ({"Origin": "http://evil.example"}, {}):
        answer = browser.post("/login", data={"token": TOKEN}, headers=headers)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


def test_a_redirect_never_leaves_the_site(browser: httpx.Client) -> None:
    answer = browser.get(f"//evil.example/x?token={TOKEN}")
    assert answer.headers["location"].startswith("/")
    assert not answer.headers["location"].startswith("//")


def test_changes_and_sockets_must_come_from_the_page(logged_in: httpx.Client, url: str) -> None:
    assert logged_in.post("/change", headers={"Origin": url}).status_code == 200
    assert socket_says(logged_in, url) == "hello"
    for origin in ("http://evil.example", "null", f"{url}.evil.example"):
        assert logged_in.post("/change", headers={"Origin": origin}).status_code == 403
        assert socket_says(logged_in, origin) is None
    assert logged_in.post("/change").status_code == 403
    assert socket_says(logged_in, None) is None


@pytest.mark.parametrize("value", ["", "1", "99999999999.abc", "a" * 5_000])
def test_a_forged_cookie_is_no_session(browser: httpx.Client, value: str) -> None:
    browser.cookies.set("session", value)
    assert browser.get("/").status_code == 401
