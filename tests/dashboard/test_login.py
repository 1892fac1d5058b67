"""Tests of the login over HTTP, with the dashboard embedded in a real server and in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from dashboard.app import create_app
from dashboard.config import DashboardConfig
from dashboard.login.cookies import Cookies
from tests.support.asgi import serving
from tests.support.server import RunningServer, running_server

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("login")
    with running_server(directory, dashboard=True, dashboard_password=PASSWORD, login_attempts=100) as running:
        yield running


@pytest.fixture(scope="module", params=["embedded", "alone"])
def url(request: pytest.FixtureRequest, embedded: RunningServer) -> Iterator[str]:
    """Yield the address of a dashboard in the process of its server, and of one in a process of its own."""
    if request.param == "embedded":
        yield embedded.url
        return
    app = create_app(DashboardConfig(api_url=embedded.url), cookies=Cookies(suffix="_alone"))
    with serving(app, lifespan="on") as address:
        yield address


@pytest.fixture
def browser(url: str) -> Iterator[httpx.Client]:
    """Yield a client that is not logged in."""
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


@pytest.fixture
def logged_in(browser: httpx.Client, embedded: RunningServer) -> httpx.Client:
    """Return a client that is logged in with the admin token."""
    assert browser.get(f"/?token={embedded.token}").status_code == 303
    return browser


def token_of(embedded: RunningServer, **fields: object) -> tuple[int, str]:
    """Return the id and the secret of a new token."""
    with embedded.api() as api:
        made = api.post("/tokens", json=fields).json()
        return made["id"], made["token"]


def submit(browser: httpx.Client, secret: str, *, origin: str | None = None, **changes: str) -> httpx.Response:
    """Submit the login form as a browser does and return the answer."""
    page = browser.get("/login").text
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page)) | {"secret": secret} | changes
    return browser.post("/login", data=fields, headers={"Origin": str(browser.base_url).rstrip("/")} | (
        {} if origin is None else {"Origin": origin}))  # fmt: skip


def csrf_of(browser: httpx.Client) -> str:
    """Return the CSRF token in the cookies."""
    return next(cookie.value or "" for cookie in browser.cookies.jar if "csrf" in cookie.name)


def socket_opens(browser: httpx.Client, origin: str | None) -> bool:
    """Return whether the handshake of the page's websocket is accepted."""
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    address = str(browser.base_url).rstrip("/").replace("http", "ws", 1) + "/_dash-ws-callback"
    headers = {"Cookie": cookie} if cookie else {}
    try:
        with connect(address, origin=origin, additional_headers=headers, proxy=None):  # type: ignore[arg-type]
            return True
    except InvalidStatus:
        return False


def test_nothing_is_shown_before_the_login(browser: httpx.Client, url: str) -> None:
    for path in ("/", "/runs/1", "/_dash-layout", "/apiary", "/healthzz", "/assets/view.js"):
        answer = browser.get(path)
        assert answer.status_code == 401
        assert "Token or password" in answer.text
        assert "_dash-config" not in answer.text
    assert browser.post("/_dash-update-component", headers={"Origin": url}).status_code == 401
    assert not socket_opens(browser, url)
    assert browser.get("/healthz").json() == {"status": "ok"}


def test_the_printed_link_logs_in_and_takes_the_token_out_of_the_address(
    browser: httpx.Client, embedded: RunningServer
) -> None:
    answer = browser.get(f"/runs/1?token={embedded.token}&tab=alerts")
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/1?tab=alerts")
    session, csrf = (
        next(line.lower() for line in answer.headers.get_list("set-cookie") if name in line)
        for name in ("session", "csrf")
    )
    assert "httponly" in session
    assert "samesite=lax" in session
    assert "samesite=strict" in csrf
    assert embedded.token not in answer.headers["set-cookie"]
    assert "_dash-config" in browser.get("/runs/1").text


def test_cookies_are_secure_behind_https(browser: httpx.Client, embedded: RunningServer) -> None:
    answer = browser.get(f"/?token={embedded.token}", headers={"X-Forwarded-Proto": "https"})
    assert all("secure" in line.lower() for line in answer.headers.get_list("set-cookie") if "form" not in line)


@pytest.mark.parametrize("kind", ["token", "password"])
def test_the_form_logs_in_by_token_or_password_and_opens_its_target(
    browser: httpx.Client, embedded: RunningServer, kind: str
) -> None:
    secret = embedded.token if kind == "token" else PASSWORD
    form = browser.get("/runs/7?a=b").text
    assert 'name="target" value="/runs/7?a=b"' in form
    answer = submit(browser, f" {secret} ", target="/runs/7")
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/7")
    assert browser.get("/").status_code == 200


def test_a_wrong_secret_logs_nobody_in(browser: httpx.Client) -> None:
    answer = browser.get("/?token=wrong")
    assert answer.status_code == 401
    assert "session" not in answer.headers["set-cookie"]
    assert "is not valid here" in answer.text


def test_the_form_of_another_site_logs_nobody_in(browser: httpx.Client, embedded: RunningServer, url: str) -> None:
    for changes in ({"origin": "http://evil.example"}, {"csrf": "guessed"}, {"csrf": ""}):
        answer = submit(browser, embedded.token, **changes)
        assert answer.status_code == 403
        assert "session" not in answer.headers["set-cookie"]
    browser.cookies.clear()
    answer = browser.post("/login", data={"secret": embedded.token, "csrf": ""}, headers={"Origin": url})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "target", ["//evil.example/x", "/\\evil.example", "https://evil.example", "/login", "/_dash-x"]
)
def test_a_login_never_redirects_to_another_site(browser: httpx.Client, embedded: RunningServer, target: str) -> None:
    answer = submit(browser, embedded.token, target=target)
    assert answer.status_code == 303
    assert httpx.URL(str(browser.base_url)).join(answer.headers["location"]).host == browser.base_url.host
    answer = browser.get(f"{browser.base_url}/evil.example/x?token={embedded.token}")
    assert answer.headers["location"] == "/evil.example/x"


def test_changes_and_sockets_must_come_from_the_page(logged_in: httpx.Client, url: str) -> None:
    own = {"Origin": url, "X-Spikewatch-CSRF": csrf_of(logged_in)}
    assert logged_in.post("/_dash-update-component", headers=own, json={}).status_code not in {401, 403}
    assert socket_opens(logged_in, url)
    for origin in ("http://evil.example", "null", f"{url}.evil.example"):
        headers = own | {"Origin": origin}
        assert logged_in.post("/_dash-update-component", headers=headers, json={}).status_code == 403
        assert logged_in.post("/logout", headers=headers).status_code == 403
        assert not socket_opens(logged_in, origin)
    for token in ("", "x", csrf_of(logged_in)[:-1]):
        headers = own | {"X-Spikewatch-CSRF": token}
        assert logged_in.post("/_dash-update-component", headers=headers, json={}).status_code == 403
    del own["Origin"]
    assert logged_in.post("/_dash-update-component", headers=own, json={}).status_code == 403
    assert not socket_opens(logged_in, None)
    assert logged_in.post("/logout", headers={"Origin": url}, data={"csrf": "x"}).status_code == 403
    assert logged_in.get("/").status_code == 200


def test_a_logout_ends_the_login_for_every_copy_of_its_cookie(
    logged_in: httpx.Client, url: str, embedded: RunningServer
) -> None:
    copy = dict(logged_in.cookies)
    session = next(value for name, value in copy.items() if "session" in name)
    answer = logged_in.post("/logout", headers={"Origin": url}, data={"csrf": csrf_of(logged_in)})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert logged_in.get("/").status_code == 401
    with httpx.Client(base_url=url, cookies=copy) as thief:
        assert thief.get("/").status_code == 401
    with embedded.api(session) as api:
        assert api.get("/runs").status_code == 401


@pytest.mark.parametrize("value", ["", "1", "sws_unknown", "a" * 5_000, '"\\351"'])
def test_a_forged_cookie_is_no_login(browser: httpx.Client, url: str, value: str) -> None:
    port = httpx.URL(url).port if "alone" not in str(browser.base_url) else "alone"
    for name in (f"spikewatch_session_{port}", "spikewatch_session_alone"):
        browser.cookies.set(name, value)
    assert browser.get("/").status_code == 401


def test_many_wrong_passwords_are_slowed_down_by_address_and_never_keep_a_token_out(tmp_path: Path) -> None:
    with (
        running_server(tmp_path, dashboard=True, dashboard_password=PASSWORD, login_attempts=3) as running,
        httpx.Client(base_url=running.url, timeout=20) as browser,
    ):
        address = {"X-Forwarded-For": "203.0.113.7"}
        browser.headers.update(address)
        for _ in range(3):
            assert submit(browser, "wrong password").status_code == 401
        answer = submit(browser, PASSWORD)
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= 100
        assert re.search(r"Too many failed attempts; wait \d+ s", answer.text)
        assert submit(browser, running.token).status_code == 303, "a token cannot be guessed"
        browser.cookies.clear()
        browser.headers["X-Forwarded-For"] = "203.0.113.8"
        assert submit(browser, PASSWORD).status_code == 303, "another address is not touched"
        with running.api() as api:
            refused = api.post("/sessions", json={"secret": "x"}, headers=address)
            assert (refused.status_code, refused.json()["error"]) == (429, "too_many_attempts")


def test_a_login_ends_with_its_token(browser: httpx.Client, embedded: RunningServer) -> None:
    token_id, token = token_of(embedded, scope="read", label="laptop")
    browser.get(f"/?token={token}")
    session = next(value for name, value in browser.cookies.items() if "session" in name)
    with embedded.api(session) as api:
        who = api.get("/sessions/current").json()
        assert (who["label"], who["scope"], who["token_id"]) == ("laptop", "read", token_id)
        with embedded.api() as admin:
            assert admin.delete(f"/tokens/{token_id}").status_code == 204
        assert api.get("/runs").status_code == 401


def test_another_password_or_admin_token_ends_the_logins_that_the_old_one_opened(tmp_path: Path) -> None:
    sessions = {}
    with running_server(tmp_path, dashboard_password=PASSWORD) as running, running.api() as api:
        for kind, secret in (("password", PASSWORD), ("admin", running.token)):
            sessions[kind] = api.post("/sessions", json={"secret": secret}).json()["session"]

    def valid(**settings: str) -> list[str]:
        with running_server(tmp_path, **settings) as running:
            found = []
            for kind, session in sessions.items():
                with running.api(session) as api:
                    if api.get("/runs").status_code == 200:
                        found.append(kind)
            return found

    assert valid(dashboard_password=PASSWORD) == ["password", "admin"]
    assert valid(dashboard_password="another password") == ["admin"]
    assert valid(admin_token="sw_another_admin_token", dashboard_password=PASSWORD) == ["password"]


def test_pages_have_security_headers(logged_in: httpx.Client, browser: httpx.Client) -> None:
    page = logged_in.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    script = next(rule for rule in policy.split("; ") if rule.startswith("script-src"))
    assert "unsafe" not in script
    for header, value in (
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "same-origin"),
    ):
        assert page.headers[header] == value
    login = browser.get("/login").headers
    assert "frame-ancestors 'none'" in login["content-security-policy"]
    assert login["referrer-policy"] == "same-origin", "without a referrer, browsers post the form from the origin null"


def test_a_dashboard_without_its_server_answers_503() -> None:
    app = create_app(DashboardConfig(api_url="http://127.0.0.1:9"), cookies=Cookies(suffix=""))
    with (
        serving(app, lifespan="on") as url,
        httpx.Client(base_url=url, cookies={"spikewatch_session": "sws_x"}) as browser,
    ):
        answer = browser.get("/")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "does not answer the dashboard" in answer.text
        assert not socket_opens(browser, url)
