"""Publishes what is committed and concluded to live subscribers, in order for each run.

Owns the queue between the parts that store and the broker. Posting to the queue never waits, so a broker that is slow
or blocked delays live views and notifications to training processes, but no acknowledgement.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from client_sdk import answers
from server.broker import Broker, LiveMessage
from server.broker.live_message import RESYNC
from server.errors import DatabaseError
from server.log_actions import LogAction
from server.models import Event
from server.pipeline.announcer import Announcer
from server.storage.measurements.commits import Commit
from server.storage.runs import Registration

logger = logging.getLogger(__name__)

MAX_PENDING = 256
"""Messages of one run that may wait for the broker.

Beyond, the waiting ``advance`` and ``event`` messages of the run give way to one ``resync``, on which viewers read the
run again. Alerts are never dropped: the detectors wait until there is room for them.
"""
DELETED = "deleted"
"""Type of the message that a run is being deleted."""
DROPPABLE = frozenset({"advance", "event", RESYNC})
RETRY_DELAY = 1.0  # seconds until a run's project is read again after a database error
STOP_TIMEOUT = 2.0  # seconds that pending messages have to reach the broker at shutdown


class WriterReplaced(msgspec.Struct, frozen=True, kw_only=True):
    """Message between servers: a later connection has replaced the connections of a writer."""

    type: str = "writer"
    writer_id: int
    epoch: int


Body = answers.LiveFrame | WriterReplaced


class Publisher:
    """Passes messages to the broker from one background task. Used from the event loop only."""

    def __init__(
        self,
        broker: Broker,
        announcer: Announcer,
        project_of: Callable[[str], Awaitable[str | None]],
        *,
        on_alerts: Callable[[Sequence[answers.Alert]], None] = lambda alerts: None,
    ) -> None:
        """``project_of`` returns the project of a run, or None if the run is deleted.

        ``on_alerts`` is called with alerts that the detectors have changed and stored. It must not
        block.
        """
        self._broker = broker
        self._announcer = announcer
        self._project_of = project_of
        self._on_alerts = on_alerts
        self._projects: dict[str, str] = {}
        self._pending: dict[str, deque[Body]] = {}
        self._in_flight: deque[Body] = deque()
        self._room = asyncio.Event()
        self._is_overflowing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """Number of messages that the broker has not accepted yet."""
        return len(self._in_flight) + sum(map(len, self._pending.values()))

    def registered(self, registration: Registration) -> None:
        """Announce the run of a writer that has registered, and end earlier connections of that writer."""
        self._projects[registration.run_id] = registration.project
        if registration.epoch > 1:
            # The database already refuses commits of an earlier connection; this closes the connection as well.
            body = WriterReplaced(writer_id=registration.writer_id, epoch=registration.epoch)
            self._post(registration.run_id, [body])
        self._announcer.mark(registration.run_id)

    def committed(self, run_id: str, commit: Commit, committed_at: float) -> None:
        """Publish that a run has advanced, and the events of the commit. Never waits."""
        advance = answers.LiveFrame(
            type="advance",
            run_id=run_id,
            attempt=commit.attempt,
            step_from=commit.first_step,
            step_to=commit.last_step,
            committed_at=committed_at,
        )
        self._post(run_id, [advance, *_event_frames(run_id, commit.events)])
        self._announcer.mark(run_id)

    async def concluded(self, run_id: str, alerts: Sequence[answers.Alert], events: Sequence[Event]) -> None:
        """Publish stored conclusions of a run's detectors. Returns when the run's queue has room again."""
        if alerts:
            self._on_alerts(alerts)
        self._post(run_id, [*map(_alert_frame, alerts), *_event_frames(run_id, events)])
        self._announcer.mark(run_id)
        await self._wait_for_room(run_id)

    async def alert_changed(self, alert: answers.Alert) -> None:
        """Publish an alert that a user has changed."""
        self._post(alert.run_id, [_alert_frame(alert)])
        self._announcer.mark(alert.run_id)
        await self._wait_for_room(alert.run_id)

    def summary_changed(self, run_id: str) -> None:
        """Schedule the summary of a run for publication."""
        self._announcer.mark(run_id)

    def deleted(self, run_id: str, project: str) -> None:
        """Tell viewers that a run is being deleted. Never waits."""
        self._projects[run_id] = project  # it may be gone from the database when the message leaves
        self._post(run_id, [answers.LiveFrame(type=DELETED, run_id=run_id)])

    def forget(self, run_id: str) -> None:
        """Release what is kept about a run that is being deleted."""
        self._projects.pop(run_id, None)

    async def stop(self) -> None:
        """Stop after the pending messages, if the broker accepts them soon. Nothing may be posted any more."""
        if self._task is not None:
            _, unfinished = await asyncio.wait([self._task], timeout=STOP_TIMEOUT)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.pending:
            logger.warning(
                "%d live messages were not published before the shutdown; viewers that reconnect read the runs again",
                self.pending,
                extra={"action": LogAction.PUBLICATIONS_DROPPED},
            )
        await self._announcer.stop()

    def _post(self, run_id: str, bodies: Iterable[Body]) -> None:
        pending = self._pending.setdefault(run_id, deque())
        for body in bodies:
            if len(pending) >= MAX_PENDING and body.type in DROPPABLE:
                self._drop(run_id, pending)
                continue  # the resync covers this one as well
            pending.append(body)
        if not pending:
            del self._pending[run_id]
        elif self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    def _drop(self, run_id: str, pending: deque[Body]) -> None:
        """Replace the droppable messages of a run by one resync."""
        kept = [body for body in pending if body.type not in DROPPABLE]
        pending.clear()
        pending.extend([*kept, answers.LiveFrame(type=RESYNC)])
        if not self._is_overflowing:
            self._is_overflowing = True
            logger.warning(
                "the broker accepts messages too slowly: viewers of run %s and possibly others read their runs again",
                run_id,
                extra={"action": LogAction.PUBLICATIONS_DROPPED, "run_id": run_id},
            )

    async def _wait_for_room(self, run_id: str) -> None:
        while len(self._pending.get(run_id, ())) >= MAX_PENDING:
            self._room.clear()
            await self._room.wait()

    async def _run(self) -> None:
        """Publish until nothing is pending. Messages of a run stay in order; runs alternate."""
        while self._pending:
            run_id = next(iter(self._pending))
            self._in_flight = self._pending.pop(run_id)
            self._room.set()
            try:
                await self._publish(run_id)
            except DatabaseError as error:
                logger.warning(
                    "cannot read the project of run %s, retrying in %s s: %s",
                    run_id,
                    RETRY_DELAY,
                    error,
                    extra={"action": LogAction.PUBLICATION_DELAYED, "run_id": run_id},
                )
                self._in_flight.extend(self._pending.pop(run_id, ()))
                self._pending[run_id], self._in_flight = self._in_flight, deque()
                await asyncio.sleep(RETRY_DELAY)
        self._is_overflowing = False

    async def _publish(self, run_id: str) -> None:
        project = self._projects.get(run_id)
        if project is None:
            project = await self._project_of(run_id)
            if project is None:  # the run was deleted meanwhile
                self._in_flight.clear()
                return
            self._projects[run_id] = project
        while self._in_flight:
            body = self._in_flight[0]
            try:
                await self._broker.publish(LiveMessage(run_id=run_id, project=project, body=msgspec.to_builtins(body)))
            except Exception:  # a message that the broker refuses must not hold up the others
                logger.exception(
                    "the broker refused a message of run %s",
                    run_id,
                    extra={"action": LogAction.PUBLICATION_FAILED, "run_id": run_id},
                )
                if body.type != RESYNC:
                    self._post(run_id, [answers.LiveFrame(type=RESYNC)])
            if body.type == DELETED:
                self._projects.pop(run_id, None)
            self._in_flight.popleft()


def _alert_frame(alert: answers.Alert) -> Body:
    return answers.LiveFrame(type="alert", alert=alert)


def _event_frames(run_id: str, events: Iterable[Event]) -> list[Body]:
    return [
        answers.LiveFrame(
            type="event",
            run_id=run_id,
            event=answers.Event.of(event.step, event.kind, event.attempt, event.detail),
        )
        for event in events
    ]
