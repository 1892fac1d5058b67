"""Accepts ingest connections, and drains them at shutdown."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.websockets import WebSocket

from server.auth.admissions import Admission, Admissions
from server.auth.tokens import REVOKED, Authenticator, Identity, bearer_token
from server.broker import Broker
from server.errors import UNAVAILABLE, DatabaseError, IngestError, LimitError
from server.ingest.connection import GOING_AWAY, Connection, IngestLimits
from server.metrics import Metrics
from server.models import Scope
from server.pipeline.pipeline import Pipeline
from server.storage.alerts import AlertStore


class IngestEndpoint:
    """Serves all ingest connections of a server. Used from the event loop only."""

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        broker: Broker,
        alerts: AlertStore,
        authenticator: Authenticator,
        admissions: Admissions,
        limits: IngestLimits,
        metrics: Metrics,
        name: str,
    ) -> None:
        """``name`` identifies this server in `Welcome`."""
        self._pipeline = pipeline
        self._broker = broker
        self._alerts = alerts
        self._authenticator = authenticator
        self._admissions = admissions
        self._limits = limits
        self._metrics = metrics
        self._name = name
        self._connections: set[Connection] = set()
        self._draining = False

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self._connections)

    @property
    def queued_frames(self) -> int:
        """Number of frames of all connections that were read and are not committed yet."""
        return sum(connection.queued_frames for connection in self._connections)

    async def handle(self, socket: WebSocket) -> None:
        """Serve one connection until it ends."""
        await socket.accept()
        connection = Connection(
            socket,
            pipeline=self._pipeline,
            broker=self._broker,
            alerts=self._alerts,
            limits=self._limits,
            metrics=self._metrics,
            name=self._name,
        )
        try:
            identity = await self._identify(socket)
            with self._admissions.admit(identity) as admission:
                await self._serve(connection, admission)
        except IngestError as error:
            await connection.refuse(error)
        except LimitError as error:
            await connection.refuse(IngestError("too_many_connections", str(error), retryable=True, close_code=1013))

    async def _serve(self, connection: Connection, admission: Admission) -> None:
        principal = admission.identity.principal

        async def dismiss() -> None:
            await admission.ended.wait()
            connection.dismiss(IngestError("unauthenticated", REVOKED, close_code=4401))

        self._connections.add(connection)
        dismissing = asyncio.create_task(dismiss())
        try:
            await connection.serve(principal, lambda values: self._admissions.pause_after(principal, values))
        finally:
            self._connections.discard(connection)
            dismissing.cancel()

    async def drain(self, seconds: float) -> None:
        """Stop reading, commit and acknowledge what was read, and close each connection with ``going_away``.

        Returns when every connection has ended, at the latest after ``seconds``.
        """
        self._draining = True
        connections = list(self._connections)
        for connection in connections:
            connection.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(connection.ended.wait() for connection in connections))

    async def _identify(self, socket: WebSocket) -> Identity:
        if self._draining:
            raise IngestError(*GOING_AWAY, retryable=True, close_code=1012)
        token = bearer_token(socket.headers)
        try:
            identity = await self._authenticator.identity(token)
            if identity is None:
                refusal = await self._authenticator.refusal(token)
                raise IngestError(refusal.code, refusal.message, close_code=4401)
        except DatabaseError as error:
            raise IngestError("storage_unavailable", UNAVAILABLE, retryable=True, close_code=1011) from error
        if not identity.principal.may(Scope.WRITE):
            raise IngestError("forbidden", "this token may only read; use one with the scope write", close_code=4401)
        return identity
