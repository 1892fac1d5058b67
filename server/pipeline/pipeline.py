"""Commits batches, then lets the detectors and the viewers know. Owns the states of the runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from client_sdk.protocol import Batch, Finish, Hello
from server.broker import Broker, LiveMessage
from server.broker.leases import Leases
from server.errors import (
    DatabaseError,
    IngestError,
    LayoutChangedError,
    ProjectMismatchError,
    RunDeletedError,
    SequenceMovedError,
    WriterTakenError,
)
from server.models import Event, RunState
from server.pipeline.announcer import Announcer
from server.pipeline.followers import Followers
from server.pipeline.group_committer import GroupCommitter
from server.pipeline.inbox import FreshSegment
from server.pipeline.packing import pack
from server.pipeline.rule_keeper import RuleKeeper
from server.pipeline.writer_session import Writer, new_records, taken
from server.storage.detector_states import DetectorStateStore
from server.storage.events import event_json
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.measurements.commits import Commit, CommitRequest, CommitStore
from server.storage.measurements.segments import SegmentStore
from server.storage.rules import RuleStore
from server.storage.runs import RunStore

logger = logging.getLogger(__name__)

FOLLOWER_IDLE = 120.0  # seconds without a commit after which a run's detectors leave memory
COMMITTED_TOGETHER = 1024 * 1024  # bytes of segments after which a transaction takes no more
MOVED_RETRIES = 3
INLINE_BYTES = 32 * 1024
"""Commits of less are packed where they are: a fraction of a millisecond, less than the way to a thread and back."""
REGISTRATIONS = 4
"""Hellos at a time: thousands that come at once leave connections of the database to commits."""


class Pipeline:
    def __init__(
        self,
        *,
        runs: RunStore,
        fleet: FleetQuery,
        layouts: LayoutStore,
        commits: CommitStore,
        segments: SegmentStore,
        monitors: DetectorStateStore,
        rules: RuleStore,
        broker: Broker,
        leases: Leases,
        clock: Callable[[], float],
        announcements_per_second: float,
        stale_after: float,
        heartbeat_every: float,
        follower_idle: float = FOLLOWER_IDLE,
        alerts_stored: Callable[[], None] = lambda: None,
        alert_changed: Callable[[str, str], None] = lambda kind, state: None,
    ) -> None:
        """``alerts_stored``: what to do as soon as alerts have changed and are committed. It must not block.

        ``alert_changed``: told the kind and the state of each change."""
        self._alerts_stored = alerts_stored
        self._alert_changed = alert_changed
        self._runs = runs
        self._broker = broker
        self._clock = clock
        self._stale_after = stale_after
        self._heartbeat_every = heartbeat_every
        self._rules = RuleKeeper(rules, monitors, clock=clock, look_every=heartbeat_every)
        self._announcer = Announcer(fleet, broker, announcements_per_second)
        turn = asyncio.Lock()
        self._committer: GroupCommitter[CommitRequest, Commit] = GroupCommitter(
            commits.commit, most=COMMITTED_TOGETHER, turn=turn
        )
        self._followers = Followers(
            runs=runs,
            layouts=layouts,
            segments=segments,
            monitors=monitors,
            leases=leases,
            publish=self._tell,
            rules=lambda: self._rules.current,
            connected=lambda: {writer.registration.run_id for writer in self._connected},
            turn=turn,
            clock=clock,
            idle_after=follower_idle,
        )
        self._projects: dict[str, str] = {}
        self._connected: dict[Writer, None] = {}
        self._registering = asyncio.Semaphore(REGISTRATIONS)
        self._keeper: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    @property
    def followers(self) -> int:
        """Runs whose detectors are in memory."""
        return len(self._followers)

    @property
    def follower_lag(self) -> float:
        """Seconds for which the detectors of the slowest run have not read what is committed."""
        return self._followers.lag

    async def start(self) -> None:
        """Follow what was committed and not read before the last stop, and keep the states of the runs."""
        await self._rules.refresh()
        await self._followers.start()
        self._keeper = asyncio.create_task(self._keep_states())
        self._listener = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """Save what the detectors have read. Nothing may be committed any more."""
        for task in (self._keeper, self._listener):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._committer.stop()
        await self._followers.stop()
        await self._announcer.stop()

    async def register(self, hello: Hello, is_wanted: Callable[[], bool] = lambda: True) -> Writer:
        """``is_wanted``: asked where the hello had to wait for its turn. Raises `IngestError` and `DatabaseError`."""
        is_rush = self._registering.locked()
        try:
            async with self._registering:
                if is_rush and not is_wanted():
                    raise IngestError("going_away", "the connection had ended before its turn came", retryable=True)
                registration = await self._runs.register(hello, self._clock())
        except ProjectMismatchError as error:
            raise IngestError("forbidden", str(error), close_code=4401) from error
        except LayoutChangedError as error:
            raise IngestError("bad_layout", str(error)) from error
        except RunDeletedError as error:
            raise IngestError("run_deleted", str(error)) from error
        self._projects[registration.run_id] = registration.project
        if registration.epoch > 1:
            # The database refuses what its earlier connection sends; that one may as well know.
            body = {"type": "writer", "writer_id": registration.writer_id, "epoch": registration.epoch}
            await self._broker.publish(LiveMessage(run_id=registration.run_id, project=registration.project, body=body))
        self._announcer.mark(registration.run_id)
        return Writer(registration, {layout.id: len(layout.statistics) for layout in hello.layouts})

    def connect(self, writer: Writer) -> None:
        """The writer's connection is open: its run is not stale, however little it sends."""
        self._connected[writer] = None

    def disconnect(self, writer: Writer) -> None:
        self._connected.pop(writer, None)

    async def commit(self, writer: Writer, batches: Sequence[Batch]) -> int:
        """Commit consecutive batches as one and return the last sequence that is durable: it may be acknowledged.

        What was committed before is left out, so a resend changes nothing. Raises `IngestError` (``sequence_gap`` where
        records are missing in between, ``writer_taken`` where a later connection is this writer) and `DatabaseError`.
        """
        is_small = sum(map(_size, batches)) <= INLINE_BYTES
        for _ in range(MOVED_RETRIES):
            first_seq, records = new_records(batches, writer.last_seq)
            if not records:
                return writer.last_seq
            arguments = (first_seq, records, writer.registration.layouts, writer.sent_statistics)
            drafts = pack(*arguments) if is_small else await asyncio.to_thread(pack, *arguments)
            request = CommitRequest(
                writer=writer.registration,
                expected_seq=writer.last_seq,
                drafts=drafts,
                now=self._clock(),
                known_names=writer.known_names,
            )
            run_id = writer.registration.run_id
            try:
                commit = await self._committer.write(request, run_id, sum(len(draft.payload) for draft in drafts))
            except SequenceMovedError as moved:
                # Another connection of this writer got there first: what it stored is left out, the rest is new.
                writer.last_seq = moved.last_seq
                continue
            except WriterTakenError as error:
                raise taken() from error
            except RunDeletedError as error:
                raise IngestError("run_deleted", str(error)) from error
            writer.note(commit.last_seq, (name for draft in drafts for name in draft.names))
            await self._publish(
                run_id,
                {
                    "type": "advance",
                    "run_id": run_id,
                    "attempt": commit.attempt,
                    "step_from": commit.first_step,
                    "step_to": commit.last_step,
                    "committed_at": request.now,
                },
            )
            await self._publish_events(run_id, commit.events)
            self._announcer.mark(run_id)
            self._followers.offer(run_id, _fresh(request, commit))
            return commit.last_seq
        raise IngestError("internal", "another connection of this writer is committing; try again", retryable=True)

    @property
    def is_contended(self) -> bool:
        """More waits than one transaction takes: smaller commits let those of others come sooner."""
        return self._committer.is_contended

    async def finish(self, writer: Writer, message: Finish) -> None:
        """Raises `IngestError` when records before the end are missing, and `DatabaseError`."""
        if message.last_seq > writer.last_seq:
            raise IngestError(
                "sequence_gap",
                f"finish after {message.last_seq}, but {writer.last_seq} is the last record here; send the rest first",
                retryable=True,
            )
        run_id = writer.registration.run_id
        known = writer.registration
        try:
            await self._runs.finish_writer(
                run_id, known.writer_id, RunState(message.state), self._clock(), epoch=known.epoch
            )
        except WriterTakenError as error:
            raise taken() from error
        except RunDeletedError as error:
            raise IngestError("run_deleted", str(error)) from error
        self.disconnect(writer)
        self._announcer.mark(run_id)
        self._followers.follow(run_id, rank=known.rank)

    async def settle(self, run_id: str) -> None:
        """Wait until the detectors have read all that is committed of a run, and have left it: soon, where the
        pipeline was made with a short ``follower_idle``."""
        await self._followers.settle(run_id)

    def forget(self, run_id: str) -> None:
        """The run is being deleted: its detectors stop."""
        self._followers.forget(run_id)
        self._projects.pop(run_id, None)

    async def publish_alert(self, alert: dict[str, Any]) -> None:
        """Tell viewers and training processes of an alert that changed, as the API shows it."""
        await self._publish(alert["run_id"], {"type": "alert", "alert": alert})
        self._announcer.mark(alert["run_id"])

    async def rules_changed(self) -> None:
        """Somebody changed the rules: every run that is followed here goes by them from now on. Raises
        `DatabaseError`."""
        if await self._rules.refresh():
            self._followers.look(self._rules.since)

    async def _tell(self, run_id: str, alerts: Sequence[dict[str, Any]], events: Sequence[Event]) -> None:
        """What the detectors of a run have concluded, and is stored."""
        if alerts:
            self._alerts_stored()
        for alert in alerts:
            self._alert_changed(alert["kind"], alert["state"])
            await self._publish(run_id, {"type": "alert", "alert": alert})
        await self._publish_events(run_id, events)
        self._announcer.mark(run_id)

    async def _publish(self, run_id: str, body: dict[str, Any]) -> None:
        project = self._projects.get(run_id)
        if project is None:
            project = await self._runs.project_of(run_id)
            if project is None:
                return
            self._projects[run_id] = project
        await self._broker.publish(LiveMessage(run_id=run_id, project=project, body=body))

    async def _publish_events(self, run_id: str, events: Sequence[Event]) -> None:
        for event in events:
            await self._publish(run_id, {"type": "event", "run_id": run_id, "event": event_json(event)})

    async def _listen(self) -> None:
        """Let go of connections that a later one has taken the place of, whichever server it came to."""
        async with self._broker.subscribe(run_ids=None, project=None, types=frozenset({"writer"})) as subscription:
            while True:
                delivery = await subscription.get()
                if delivery.type != "writer":
                    continue
                news = delivery.body()
                for writer in list(self._connected):
                    known = writer.registration
                    if known.writer_id == news["writer_id"] and known.epoch < news["epoch"]:
                        writer.on_taken()

    async def _keep_states(self) -> None:
        """Connected writers keep their runs alive; the others become stale. Rules that changed elsewhere are read, and
        silence is listened to."""
        while True:
            await asyncio.sleep(self._heartbeat_every)
            try:
                now = self._clock()
                await self._runs.heartbeat([writer.registration.writer_id for writer in self._connected], now)
                for run_id in await self._runs.mark_stale(now - self._stale_after):
                    self._announcer.mark(run_id)
                await self.rules_changed()
                for run_id in await self._rules.look():
                    follower = self._followers.follow(run_id)
                    if follower is not None:
                        follower.look(self._rules.since)
            except Exception as error:  # whatever it is, the next beat comes
                expected = isinstance(error, DatabaseError)
                logger.log(
                    logging.WARNING if expected else logging.ERROR,
                    "the states of the runs are not kept (%s)",
                    error,
                    exc_info=None if expected else error,
                    extra={"action": "heartbeat_failed"},
                )
            self._followers.forget_ended()


def _fresh(request: CommitRequest, commit: Commit) -> list[FreshSegment]:
    """What was committed, as the detectors read it."""
    return [
        FreshSegment(
            id=stored.id,
            previous_id=stored.previous_id,
            rank=request.writer.rank,
            attempt=stored.attempt,
            committed_at=request.now,
            columns=draft.columns,
            layouts=request.writer.layouts,
            size=draft.columns.size,
        )
        for draft, stored in zip(request.drafts, commit.segments, strict=True)
    ]


def _size(batch: Batch) -> int:
    """About the bytes of a batch on the wire."""
    return sum(
        16 + 24 * len(record.scalars) + len(record.block or b"") + sum(len(item.counts) for item in record.histograms)
        for record in batch.records
    )
