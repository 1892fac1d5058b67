"""The writers that are connected to this server: their registration, and the end of sessions that were replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from client_sdk.protocol import Hello
from server.broker import Broker
from server.errors import IngestError, LayoutChangedError, ProjectMismatchError, RunDeletedError
from server.pipeline.publisher import Publisher
from server.pipeline.writer_session import WriterSession
from server.storage.runs import RunStore

MAX_REGISTRATIONS = 4
"""Concurrent registrations: when thousands of clients connect at once, commits still find a database connection."""


class WriterRegistry:
    """Registers writers and keeps the connected sessions. Used from the event loop only."""

    def __init__(self, runs: RunStore, broker: Broker, publisher: Publisher, *, clock: Callable[[], float]) -> None:
        self._runs = runs
        self._broker = broker
        self._publisher = publisher
        self._clock = clock
        self._connected: dict[WriterSession, None] = {}
        self._registering = asyncio.Semaphore(MAX_REGISTRATIONS)
        self._listener: asyncio.Task[None] | None = None

    @property
    def connected_runs(self) -> set[str]:
        """Ids of the runs that have a writer connected to this server."""
        return {session.registration.run_id for session in self._connected}

    @property
    def connected_writers(self) -> list[int]:
        """Database ids of the writers that are connected to this server."""
        return [session.registration.writer_id for session in self._connected]

    def start(self) -> None:
        """Listen for writers that register again, on any server."""
        self._listener = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """Stop listening. Open sessions are not closed."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    async def register(self, hello: Hello, is_wanted: Callable[[], bool] = lambda: True) -> WriterSession:
        """Store a writer with its run and layouts, and return its session.

        If the registration had to wait for others, ``is_wanted`` is called to check that the client is still there.
        Raises `IngestError` and `DatabaseError`.
        """
        has_to_wait = self._registering.locked()
        try:
            async with self._registering:
                if has_to_wait and not is_wanted():
                    raise IngestError("going_away", "the connection ended before it was registered", retryable=True)
                registration = await self._runs.register(hello, self._clock())
        except ProjectMismatchError as error:
            raise IngestError("forbidden", str(error), close_code=4401) from error
        except LayoutChangedError as error:
            raise IngestError("bad_layout", str(error)) from error
        except RunDeletedError as error:
            raise IngestError("run_deleted", str(error)) from error
        self._publisher.registered(registration)
        return WriterSession(registration, {layout.id: len(layout.statistics) for layout in hello.layouts})

    def connect(self, session: WriterSession) -> None:
        """Count a session as connected: its run does not become stale, however little the writer sends."""
        self._connected[session] = None

    def disconnect(self, session: WriterSession) -> None:
        """Stop counting a session as connected."""
        self._connected.pop(session, None)

    async def _listen(self) -> None:
        """End the sessions that a later registration of their writer has replaced."""
        async with self._broker.subscribe(run_ids=None, project=None, types=frozenset({"writer"})) as subscription:
            while True:
                delivery = await subscription.get()
                if delivery.type != "writer":
                    continue
                replaced = delivery.body()
                for session in list(self._connected):
                    known = session.registration
                    if known.writer_id == replaced["writer_id"] and known.epoch < replaced["epoch"]:
                        session.on_taken()
