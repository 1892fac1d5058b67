"""ASGI middleware that admits logged-in viewers to the pages, and only requests from pages of this origin.

A login exchanges a token or the password for a credential of the API, which the session cookie holds. The guard asks
the API for the identity behind the credential, and the pages call the API with it. The API alone decides what a viewer
sees, and revoking a token ends its logins.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from urllib.parse import parse_qs, parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from client_sdk.answers import Identity
from dashboard.client import ApiClient, ApiError, ApiRefusedError
from dashboard.login.cookies import Cookies, new_form_value
from dashboard.login.origin import is_own_origin
from dashboard.login.page import login_page
from dashboard.viewer import Viewer, current_viewer

MAX_LOGIN_BYTES = 8192
MAX_CREDENTIAL_CHARS = 512
IDENTITY_SECONDS = 5.0  # time for which an identity from the API is cached
MAX_IDENTITIES = 4096
CSRF_HEADER = "X-Spikewatch-CSRF"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OTHER_SITE = "This form is too old, or was sent from another site. Try again."


class LoginGuard:
    """ASGI middleware that puts a login in front of an application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        client: ApiClient,
        cookies: Cookies,
        public_url: str | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``client``: client of the API without a credential.

        ``public_url``: address that browsers open, if a proxy hides it.
        """
        self._app = app
        self._client = client
        self._cookies = cookies
        self._public_url = public_url
        self._monotonic = monotonic
        self._identities: dict[str, tuple[float, Viewer | None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            passed = await self._admit(request)
        except ApiError as error:
            words = f"The server does not answer the dashboard: {error}. Try again in a moment."
            passed = PlainTextResponse(
                words, status_code=503, headers={"Retry-After": "5", "Cache-Control": "no-store"}
            )
        if isinstance(passed, Response):
            await passed(scope, receive, send)
        else:
            await self._pass(passed, scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        viewer = None
        if is_own_origin(headers, self._public_url):
            try:
                viewer = await self._viewer(self._cookies.read(headers))
            except ApiError:
                await send({"type": "websocket.close", "code": 1013, "reason": "the server does not answer"})
                return
        if viewer is None:
            await send({"type": "websocket.close", "code": 4401, "reason": "log in first"})
        else:
            await self._pass(viewer, scope, receive, send)

    async def _pass(self, viewer: Viewer, scope: Scope, receive: Receive, send: Send) -> None:
        token = current_viewer.set(viewer)
        try:
            await self._app(scope, receive, send)
        finally:
            current_viewer.reset(token)

    async def _admit(self, request: Request) -> Response | Viewer:
        """Return the viewer if the request may pass, otherwise an answer. Raises `ApiError` if the API is away."""
        cookies = self._cookies.read(request.headers)
        is_safe = request.method in SAFE_METHODS
        if is_safe and "token" in request.query_params:
            return await self._log_in(request, request.query_params["token"], _without_token(request))
        if request.url.path == "/login":
            target = _local(request.query_params.get("target", "/"))
            return self._form(request, None, target=target) if is_safe else await self._submitted(request, cookies)
        viewer = await self._viewer(cookies)
        if viewer is None:
            return self._form(request, None, status=401)
        if is_safe:
            return viewer
        if not is_own_origin(request.headers, self._public_url):
            return PlainTextResponse("the request came from another site", status_code=403)
        if request.url.path == "/logout":
            form = await _form_of(request)
            return await self._log_out(request, viewer) if _same(form.get("csrf"), viewer.csrf) else _forged()
        return viewer if _same(request.headers.get(CSRF_HEADER), viewer.csrf) else _forged()

    async def _viewer(self, cookies: dict[str, str]) -> Viewer | None:
        """Return the viewer with these cookies, or None. Raises `ApiError` if the API does not answer."""
        credential = cookies.get(self._cookies.session, "")
        if not 0 < len(credential) <= MAX_CREDENTIAL_CHARS or not credential.isascii() or not credential.isprintable():
            return None
        now = self._monotonic()
        known = self._identities.get(credential)
        if known is None or now - known[0] > IDENTITY_SECONDS:
            if len(self._identities) > MAX_IDENTITIES:
                self._identities.clear()
            known = self._identities[credential] = (now, await self._ask(credential))
        return known[1]

    async def _ask(self, credential: str) -> Viewer | None:
        try:
            identity = await self._client.acting_for(credential).identity()
        except ApiRefusedError as error:
            if error.status == 401:
                return None
            raise
        return _viewer_of(credential, identity)

    async def _submitted(self, request: Request, cookies: dict[str, str]) -> Response:
        form = await _form_of(request)
        target = _local(form.get("target", "/"))
        if not is_own_origin(request.headers, self._public_url) or not _same(
            form.get("csrf"), cookies.get(self._cookies.form, "")
        ):
            return self._form(request, OTHER_SITE, status=403, target=target)
        return await self._log_in(request, form.get("secret", "").strip(), target)

    async def _log_in(self, request: Request, secret: str, target: str) -> Response:
        address = request.client.host if request.client is not None else ""
        try:
            session, identity = await self._client.log_in(secret, address)
        except ApiRefusedError as error:
            if error.status >= 500:
                raise
            answer = self._form(request, _capitalised(error.message), status=error.status, target=target)
            if error.retry_after is not None:
                answer.headers["Retry-After"] = error.retry_after
            return answer
        response = RedirectResponse(target, status_code=303)
        lasts = max(int((identity.expires_at or 0) - time.time()), 60)
        viewer = _viewer_of(session, identity)
        self._cookies.begin(response, viewer, seconds=lasts, secure=request.url.scheme == "https")
        response.headers["Cache-Control"] = "no-store"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    async def _log_out(self, request: Request, viewer: Viewer) -> Response:
        self._identities.pop(viewer.credential, None)
        await self._client.acting_for(viewer.credential).log_out()
        response = RedirectResponse("/login", status_code=303)
        self._cookies.end(response)
        return response

    def _form(self, request: Request, problem: str | None, *, status: int = 200, target: str | None = None) -> Response:
        # The browser keeps its present value, so that a late answer to a page just left does not invalidate the form.
        value = self._cookies.read(request.headers).get(self._cookies.form) or new_form_value()
        page = login_page(problem, csrf=value, target=target or _without_token(request), status=status)
        self._cookies.offer_form(page, value, secure=request.url.scheme == "https")
        return page


def _viewer_of(credential: str, identity: Identity) -> Viewer:
    return Viewer(credential=credential, label=identity.label, project=identity.project, scope=identity.scope)


def _forged() -> Response:
    return PlainTextResponse("the request does not repeat the token of its page; reload the page", status_code=403)


def _same(given: str | None, wanted: str) -> bool:
    return bool(wanted) and hmac.compare_digest((given or "").encode(), wanted.encode())


def _capitalised(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _without_token(request: Request) -> str:
    query = urlencode([(key, value) for key, value in parse_qsl(request.url.query) if key != "token"])
    return _local(request.url.path + (f"?{query}" if query else ""))


def _local(target: str) -> str:
    """Return the target if it is a path of this site, otherwise "/". Two leading slashes would name another host."""
    path = "/" + target.replace("\\", "/").lstrip("/")
    is_plain = path.isascii() and path.isprintable() and path.split("?")[0] not in {"/login", "/logout"}
    return path if is_plain and not path.startswith("/_dash") else "/"


async def _form_of(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_LOGIN_BYTES:
            return {}
    return {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
