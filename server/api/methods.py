"""Answers to the methods that the routes do not define: HEAD as GET without its body, OPTIONS, and 405 for the rest."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Router
from starlette.types import Message, Receive, Scope, Send

from server.api.errors import refusal_answer

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class OtherMethods(BaseRoute):
    """Route for the requests whose path one of the routes before it has, but not with their method.

    Add it behind these routes and before those that match every path. It needs no token, because it tells no more than
    the OpenAPI document does.
    """

    def __init__(self, router: Router) -> None:
        self._router = router

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the paths of the routes before this one, whatever the method."""
        if scope["type"] != "http":
            return Match.NONE, {}
        has_path = any(route.matches(scope)[0] is not Match.NONE for route in self._routes)
        return (Match.FULL if has_path else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer HEAD as GET, OPTIONS with the methods of the path, and every other method with 405."""
        methods = [method for method in METHODS if self._has(scope, method)]
        if "GET" in methods:
            methods.insert(1, "HEAD")
        allow = ", ".join([*methods, "OPTIONS"])
        if scope["method"] == "HEAD" and "HEAD" in methods:
            head = _Head(receive, send)
            await self._router({**scope, "method": "GET"}, head.receive, head.send)
            return
        if scope["method"] == "OPTIONS":
            answer = Response(status_code=204, headers={"Allow": allow})
        else:
            message = f"{Request(scope).url.path} does not accept {scope['method']}; it accepts {allow}"
            answer = refusal_answer(405, "method_not_allowed", message)
            answer.headers["Allow"] = allow
        await answer(scope, receive, send)

    @property
    def _routes(self) -> Iterable[BaseRoute]:
        return itertools.takewhile(lambda route: route is not self, self._router.routes)

    def _has(self, scope: Scope, method: str) -> bool:
        asked = {**scope, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in self._routes)


class _Head:
    """Connection of a HEAD request: it leaves the body out, and a handler that streams one ends as if nobody listened.

    The headers are those of GET. An export is thus not read for the sake of its headers.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._is_answered = False

    async def receive(self) -> Message:
        return {"type": "http.disconnect"} if self._is_answered else await self._receive()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(message)
        elif not self._is_answered:
            self._is_answered = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
