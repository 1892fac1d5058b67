"""The live socket ``WS /api/v1/live``: what is new, as JSON text frames, pushed to dashboards and other viewers.

Frames: ``subscribed`` first, then ``run``, ``advance``, ``alert`` and ``event`` as they come, ``resync`` where some are
missing: read everything anew, and ``degraded`` and ``restored`` when the servers lose and find each other. Each
carries a ``cursor``, with which a viewer that comes back gets what it missed, from any server. An ``error`` frame says
why the socket closes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from server.auth.tokens import UNAUTHENTICATED, Authenticator, bearer_token
from server.broker import Broker
from server.errors import UNAVAILABLE, ApiError, DatabaseError
from server.models import Principal, Scope

SEND_TIMEOUT = 30.0  # seconds; a viewer that does not read is let go
MAX_RUNS = 1_000
CLOSE_CODES = {401: 4401, 403: 4401, 503: 1011}


class LiveEndpoint:
    def __init__(self, broker: Broker, authenticator: Authenticator) -> None:
        self._broker = broker
        self._authenticator = authenticator
        self._draining = asyncio.Event()

    async def handle(self, socket: WebSocket) -> None:
        """Serve one viewer to its end."""
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect, TimeoutError, RuntimeError):
            try:
                principal = await self._admit(socket)
                run_ids = _asked_runs(socket.query_params.get("runs"))
            except ApiError as error:
                retryable = error.status == 503
                body = {"type": "error", "code": error.code, "message": error.message, "retryable": retryable}
                await _send(socket, body)
                await socket.close(CLOSE_CODES.get(error.status, 4400), error.code)
                return
            await self._serve(socket, principal, run_ids, socket.query_params.get("cursor"))

    def drain(self) -> None:
        """Close every socket: the server goes away."""
        self._draining.set()

    async def _serve(
        self, socket: WebSocket, principal: Principal, run_ids: frozenset[str] | None, cursor: str | None
    ) -> None:
        tasks = [
            asyncio.create_task(self._push(socket, principal, run_ids, cursor)),
            asyncio.create_task(_watch(socket)),
            asyncio.create_task(self._draining.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._draining.is_set():
            await socket.close(1012, "going_away")

    async def _push(
        self, socket: WebSocket, principal: Principal, run_ids: frozenset[str] | None, cursor: str | None
    ) -> None:
        news = self._broker.subscribe(run_ids=run_ids, project=principal.project, cursor=cursor)
        async with news as subscription:
            subscribed = {
                "type": "subscribed",
                "runs": None if run_ids is None else sorted(run_ids),
                "resumed": subscription.is_resumed,
                "cursor": subscription.cursor,
            }
            await _send(socket, subscribed)
            while True:
                await _send_text(socket, (await subscription.get()).frame)

    async def _admit(self, socket: WebSocket) -> Principal:
        try:
            principal = await self._authenticator.principal(bearer_token(socket.headers))
        except DatabaseError as error:
            raise ApiError(503, "storage_unavailable", UNAVAILABLE) from error
        if principal is None:
            raise ApiError(401, "unauthenticated", UNAUTHENTICATED)
        if not principal.may(Scope.READ):
            raise ApiError(403, "forbidden", "this token may not read")
        return principal


def _asked_runs(value: str | None) -> frozenset[str] | None:
    if value is None:
        return None
    run_ids = frozenset(part for part in value.split(",") if part)
    if len(run_ids) > MAX_RUNS:
        raise ApiError(400, "invalid_parameter", f"runs: at most {MAX_RUNS}")
    return run_ids or None


async def _watch(socket: WebSocket) -> None:
    """Until the viewer leaves. What it sends has no meaning."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _send(socket: WebSocket, body: Mapping[str, Any]) -> None:
    await _send_text(socket, msgspec.json.encode(body).decode())


async def _send_text(socket: WebSocket, text: str) -> None:
    async with asyncio.timeout(SEND_TIMEOUT):
        await socket.send_text(text)
