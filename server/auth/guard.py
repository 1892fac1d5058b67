"""ASGI middleware in front of the dashboard: a cookie that a token buys, and requests from its own origin alone."""

from __future__ import annotations

from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.auth.login_page import login_page
from server.auth.sessions import Sessions
from server.auth.tokens import Authenticator

MAX_LOGIN_BYTES = 4096


class DashboardGuard:
    """ASGI middleware in front of the dashboard. Paths in ``open_paths`` have their own checks and pass untouched."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        sessions: Sessions,
        cookie: str,
        open_paths: Iterable[str] = (),
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._sessions = sessions
        self._cookie = cookie
        self._open_paths = tuple(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"} or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "websocket":
            if self._has_session(headers) and is_same_origin(headers):
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 4401, "reason": "log in first"})
            return
        response = await self._answer(Request(scope, receive), headers)
        if response is not None:
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return any(path == known or path.startswith(known.rstrip("/") + "/") for known in self._open_paths)

    async def _answer(self, request: Request, headers: Headers) -> Response | None:
        """The guard's own answer, None to let the request pass."""
        if request.method in {"GET", "HEAD"} and "token" in request.query_params:
            return await self._log_in(request.query_params["token"], _without_token(request))
        if request.url.path == "/login":
            if request.method != "POST":
                return login_page(None)
            if not is_same_origin(headers):
                return login_page("This form was sent from another site.", status=403)
            form = parse_qs((await _body(request)).decode("utf-8", "replace"))
            return await self._log_in(form.get("token", [""])[0].strip(), "/")
        if not self._has_session(headers):
            return login_page(None, status=401)
        if request.method not in {"GET", "HEAD", "OPTIONS"} and not is_same_origin(headers):
            return Response("the request came from another site", status_code=403)
        return None

    async def _log_in(self, token: str, target: str) -> Response:
        principal = await self._authenticator.principal(token)
        if principal is None or principal.project is not None:
            # The dashboard shows every project, so a token of one project does not open it.
            return login_page("This token does not open the dashboard.", status=401)
        response = RedirectResponse(target, status_code=303)
        response.set_cookie(
            self._cookie,
            self._sessions.issue(),
            max_age=self._sessions.seconds,
            httponly=True,
            samesite="lax",
            path="/",
        )
        response.headers["Cache-Control"] = "no-store"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    def _has_session(self, headers: Headers) -> bool:
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        morsel = cookies.get(self._cookie)
        return morsel is not None and self._sessions.is_valid(morsel.value)


def is_same_origin(headers: Headers) -> bool:
    """Whether a request says that it comes from a page of this very server. Browsers always say where from."""
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != ""


def _without_token(request: Request) -> str:
    query = urlencode([(key, value) for key, value in parse_qsl(request.url.query) if key != "token"])
    path = request.url.path if request.url.path != "/login" else "/"
    # A path that begins with two slashes would be read as another host.
    return "/" + path.lstrip("/") + (f"?{query}" if query else "")


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_LOGIN_BYTES:
            return b""
    return body
