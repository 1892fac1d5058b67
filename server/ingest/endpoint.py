"""Accepts ingest connections, and drains them at shutdown."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.websockets import WebSocket

from server.auth.tokens import UNAUTHENTICATED, Authenticator, bearer_token
from server.broker import Broker
from server.errors import UNAVAILABLE, DatabaseError, IngestError
from server.ingest.connection import GOING_AWAY, Connection, IngestLimits
from server.models import Principal, Scope
from server.pipeline.pipeline import Pipeline
from server.storage.alerts import AlertStore


class IngestEndpoint:
    def __init__(
        self,
        *,
        pipeline: Pipeline,
        broker: Broker,
        alerts: AlertStore,
        authenticator: Authenticator,
        limits: IngestLimits,
        name: str,
    ) -> None:
        """``name``: what `Welcome` calls this server."""
        self._pipeline = pipeline
        self._broker = broker
        self._alerts = alerts
        self._authenticator = authenticator
        self._limits = limits
        self._name = name
        self._connections: set[Connection] = set()
        self._draining = False

    async def handle(self, socket: WebSocket) -> None:
        """Serve one connection to its end."""
        await socket.accept()
        connection = Connection(
            socket,
            pipeline=self._pipeline,
            broker=self._broker,
            alerts=self._alerts,
            limits=self._limits,
            name=self._name,
        )
        try:
            principal = await self._admit(socket)
        except IngestError as error:
            await connection.refuse(error)
            return
        self._connections.add(connection)
        try:
            await connection.serve(principal)
        finally:
            self._connections.discard(connection)

    async def drain(self, seconds: float) -> None:
        """Stop reading, commit and acknowledge what was read, say going away.

        Returns when all are done, at the latest after ``seconds``.
        """
        self._draining = True
        connections = list(self._connections)
        for connection in connections:
            connection.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(connection.ended.wait() for connection in connections))

    async def _admit(self, socket: WebSocket) -> Principal:
        if self._draining:
            raise IngestError(*GOING_AWAY, retryable=True, close_code=1012)
        try:
            principal = await self._authenticator.principal(bearer_token(socket.headers))
        except DatabaseError as error:
            raise IngestError("storage_unavailable", UNAVAILABLE, retryable=True, close_code=1011) from error
        if principal is None:
            raise IngestError("unauthenticated", UNAUTHENTICATED, close_code=4401)
        if not principal.may(Scope.WRITE):
            raise IngestError("forbidden", "this token may only read; training needs the scope write", close_code=4401)
        return principal
