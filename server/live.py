"""The live socket ``WS /api/v1/live``, which pushes changes to dashboards and other viewers as JSON text frames.

The first frame is ``subscribed``; ``run``, ``advance``, ``alert`` and ``event`` follow as they happen. ``resync`` means
that frames are missing and the viewer has to read everything again; ``degraded`` and ``restored`` mean that the servers
have lost or regained contact with each other. Each frame carries a ``cursor``, with which a viewer that reconnects to
any server receives what it missed. An ``error`` frame gives the reason before the socket closes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from client_sdk import answers
from server.auth.admissions import Admission, Admissions
from server.auth.tokens import REVOKED, Authenticator, Identity, bearer_token
from server.broker import Broker
from server.broker.live_message import RESYNC
from server.errors import UNAVAILABLE, ApiError, DatabaseError, LimitError
from server.metrics import Metrics
from server.models import Principal, Scope

SEND_TIMEOUT = 30.0  # seconds; a viewer that does not read is disconnected
MAX_RUNS = 1_000
"""Number of runs that one viewer may select."""
CLOSE_CODES: Final = {401: 4401, 403: 4401, 429: 1013, 503: 1011}
"""Close code of the websocket for each HTTP status; 4400 for the others."""


class LiveEndpoint:
    """Serves all live sockets of a server. Used from the event loop only."""

    def __init__(self, broker: Broker, authenticator: Authenticator, admissions: Admissions, metrics: Metrics) -> None:
        self.viewers = 0
        """Number of open sockets."""
        self._metrics = metrics
        self._broker = broker
        self._authenticator = authenticator
        self._admissions = admissions
        self._draining = asyncio.Event()

    async def handle(self, socket: WebSocket) -> None:
        """Serve one viewer until it leaves."""
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect, TimeoutError, RuntimeError):
            try:
                identity = await self._identify(socket)
                run_ids = _asked_runs(socket.query_params.getlist("runs"))
                with self._admissions.admit(identity) as admission:
                    await self._serve(socket, admission, run_ids, socket.query_params.get("cursor"))
            except ApiError as error:
                await _refuse(socket, error)
            except LimitError as error:
                await _refuse(socket, ApiError(429, "too_many_connections", str(error)))

    def drain(self) -> None:
        """Close every socket because the server is shutting down."""
        self._draining.set()

    async def _serve(
        self, socket: WebSocket, admission: Admission, run_ids: frozenset[str] | None, cursor: str | None
    ) -> None:
        tasks = [
            asyncio.create_task(self._push(socket, admission.identity.principal, run_ids, cursor)),
            asyncio.create_task(_watch(socket)),
            asyncio.create_task(self._draining.wait()),
            asyncio.create_task(admission.ended.wait()),
        ]
        self.viewers += 1
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.viewers -= 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._draining.is_set():
            await socket.close(1012, "going_away")
        elif admission.ended.is_set():
            raise ApiError(401, "unauthenticated", REVOKED)

    async def _push(
        self, socket: WebSocket, principal: Principal, run_ids: frozenset[str] | None, cursor: str | None
    ) -> None:
        news = self._broker.subscribe(run_ids=run_ids, project=principal.project, cursor=cursor)
        async with news as subscription:
            subscribed = answers.LiveFrame(
                type="subscribed",
                runs=None if run_ids is None else tuple(sorted(run_ids)),
                resumed=subscription.is_resumed,
                cursor=subscription.cursor,
            )
            await _send(socket, subscribed)
            while True:
                delivery = await subscription.get()
                if delivery.type == RESYNC:
                    self._metrics.live_resyncs.inc()
                await _send_text(socket, delivery.frame)

    async def _identify(self, socket: WebSocket) -> Identity:
        token = bearer_token(socket.headers)
        try:
            identity = await self._authenticator.identity(token)
            if identity is None:
                raise await self._authenticator.refusal(token)
        except DatabaseError as error:
            raise ApiError(503, "storage_unavailable", UNAVAILABLE) from error
        if not identity.principal.may(Scope.READ):
            raise ApiError(403, "forbidden", "this token may not read; use one with the scope read")
        return identity


def _asked_runs(values: Sequence[str]) -> frozenset[str] | None:
    run_ids = frozenset(part for value in values for part in value.split(",") if part)
    if len(run_ids) > MAX_RUNS:
        raise ApiError(400, "invalid_parameter", f"runs: select at most {MAX_RUNS}")
    return run_ids or None


async def _refuse(socket: WebSocket, error: ApiError) -> None:
    is_retryable = error.status in {429, 503}
    await _send(socket, answers.LiveFrame(type="error", code=error.code, message=error.message, retryable=is_retryable))
    await socket.close(CLOSE_CODES.get(error.status, 4400), error.code)


async def _watch(socket: WebSocket) -> None:
    """Return when the viewer leaves. Messages that it sends are ignored."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _send(socket: WebSocket, frame: answers.LiveFrame) -> None:
    await _send_text(socket, msgspec.json.encode(frame).decode())


async def _send_text(socket: WebSocket, text: str) -> None:
    async with asyncio.timeout(SEND_TIMEOUT):
        await socket.send_text(text)
