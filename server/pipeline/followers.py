"""The followers of all runs that this server follows, and the leases by which servers share the runs among them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from client_sdk import answers
from server.broker.leases import Leases
from server.broker.shielded_calls import ShieldedCalls
from server.errors import DatabaseError
from server.log_actions import LogAction
from server.models import Event
from server.pipeline.follower import Publish as PublishOfRun
from server.pipeline.follower import RunFollower
from server.pipeline.group_committer import GroupCommitter
from server.pipeline.inbox import FreshSegment, Inbox, InboxBudget
from server.pipeline.segment_source import SegmentSource
from server.rule import RuleSet
from server.storage.detector_states import (
    DetectorStateSave,
    DetectorStateSaveResult,
    DetectorStateStore,
    StoredDetectorState,
)
from server.storage.layouts import LayoutStore
from server.storage.loss_choices import LossChoiceStore
from server.storage.measurements.segments import SegmentStore
from server.storage.runs import RunStore

logger = logging.getLogger(__name__)

DETECTOR_THREADS = 2
SAVE_GATHER = 0.1  # seconds between two transactions that save states, while many states wait
MAX_SAVE_BYTES = 1024 * 1024
"""Bytes of detector states after which a transaction takes no further state."""
LEASE = "follower:"
"""Prefix of the names of leases; the run id follows."""
PUBLISH_TIMEOUT = 2.0  # seconds that the last conclusions have to be queued for publication at shutdown
ORPHANS_EVERY = 6  # renewals of the leases between two searches for runs that no server follows

Publish = Callable[[str, Sequence[answers.Alert], Sequence[Event]], Awaitable[None]]
"""Publishes changed alerts and events of a run after they are stored."""


@dataclass(frozen=True, kw_only=True)
class FollowerStores:
    """Stores that followers read from and write to."""

    runs: RunStore
    layouts: LayoutStore
    segments: SegmentStore
    states: DetectorStateStore
    losses: LossChoiceStore


class _GroupedStates:
    """Detector states whose saves share transactions."""

    def __init__(self, store: DetectorStateStore, write_lock: asyncio.Lock) -> None:
        self._store = store
        self._groups: GroupCommitter[DetectorStateSave, DetectorStateSaveResult] = GroupCommitter(
            store.save, max_bytes=MAX_SAVE_BYTES, gather=SAVE_GATHER, lock=write_lock
        )
        self._saves = ShieldedCalls()

    async def load(self, run_id: str) -> StoredDetectorState | None:
        return await self._store.load(run_id)

    async def save(self, save: DetectorStateSave, publish: PublishOfRun) -> DetectorStateSaveResult:
        # Another server may take the run over during the transaction. It finds the conclusions stored and takes them
        # for published, so the end of this server's follower must not come between the transaction and the publication.
        result: DetectorStateSaveResult = await self._saves.call(self._save_and_publish(save, publish))
        return result

    async def stop(self) -> None:
        """Return when every save has ended, with its publication."""
        await self._groups.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PUBLISH_TIMEOUT):  # a broker that blocks may leave no room
                await self._saves.wait_done()

    async def _save_and_publish(self, save: DetectorStateSave, publish: PublishOfRun) -> DetectorStateSaveResult:
        saved = await self._groups.write(save, save.run_id, len(save.after.state))
        if saved.alerts is not None:
            await publish(saved.alerts, save.happened)
        return saved


class Followers:
    """Starts, feeds and stops the followers. Used from the event loop only."""

    def __init__(
        self,
        *,
        stores: FollowerStores,
        leases: Leases,
        publish: Publish,
        rules: Callable[[], RuleSet],
        connected_runs: Callable[[], set[str]],
        write_lock: asyncio.Lock,
        clock: Callable[[], float],
        idle_after: float,
    ) -> None:
        """``rules`` returns the current alert rules, ``connected_runs`` the runs with a writer on this server.

        ``write_lock`` serializes the transactions of this server that change several runs. The detectors of a run leave
        memory after ``idle_after`` seconds without a commit.
        """
        self._stores = stores
        self._leases = leases
        self._publish = publish
        self._rules = rules
        self._connected_runs = connected_runs
        self._clock = clock
        self._idle_after = idle_after
        self._executor = ThreadPoolExecutor(DETECTOR_THREADS, thread_name_prefix="detectors")
        self._budget = InboxBudget()
        self._states = _GroupedStates(stores.states, write_lock)
        self._held: dict[str, tuple[RunFollower, asyncio.Task[None]]] = {}
        self._elsewhere: dict[str, float] = {}
        """Runs that another server follows, with the Unix time until which its lease is not requested again."""
        self._lease_keeper: asyncio.Task[None] | None = None
        self._loss_version: str | None = None
        """Version of the choices of the loss that the followers know."""

    def __len__(self) -> int:
        """Return the number of runs whose detectors are in memory."""
        return len(self._held)

    @property
    def lag(self) -> float:
        """Seconds for which the slowest run has had unread segments."""
        since = [follower.behind_since for follower, task in self._held.values() if not task.done()]
        return max((self._clock() - begun for begun in since if begun is not None), default=0.0)

    async def start(self) -> None:
        """Follow the runs with segments that were not read before the last stop. Raises `DatabaseError`."""
        for run_id in await self._stores.runs.lagging():
            self.follow(run_id)
        if self._leases.is_shared:
            self._lease_keeper = asyncio.create_task(self._keep_leases())

    async def stop(self) -> None:
        """Save what the detectors have read. Nothing may be committed any more."""
        if self._lease_keeper is not None:
            self._lease_keeper.cancel()
            await asyncio.gather(self._lease_keeper, return_exceptions=True)
        held = list(self._held.values())
        for _, task in held:
            task.cancel()
        await asyncio.gather(*(task for _, task in held), return_exceptions=True)
        # A thread may still be updating detectors, whose state is consistent only afterwards.
        await asyncio.to_thread(self._executor.shutdown)
        await self._states.stop()  # a save that was in progress when its follower was cancelled
        await asyncio.gather(*(self._leave(follower) for follower, _ in held))
        await self._states.stop()

    def follow(self, run_id: str, *, rank: int | None = None) -> RunFollower | None:
        """Let the detectors read what the database has of a run. Return None if another server follows it.

        ``rank`` is that of the writer on this server that has sent something. The detectors read the lowest rank, so
        the server of rank 0 takes the run over, and a server of higher ranks leaves it where it is.
        """
        follower = self._follower(run_id, rank)
        if follower is not None:
            follower.wake()
        return follower

    def offer(self, run_id: str, segments: Sequence[FreshSegment]) -> None:
        """Pass segments of one rank that this server has just committed to the follower of their run."""
        follower = self._follower(run_id, segments[0].rank)
        if follower is not None:
            for segment in segments:
                follower.offer(segment)

    def forget(self, run_id: str) -> None:
        """Stop the detectors of a run that is being deleted."""
        held = self._held.pop(run_id, None)
        if held is not None:
            held[1].cancel()

    def forget_ended(self) -> None:
        """Release followers whose detectors have left memory."""
        for run_id, (_, task) in list(self._held.items()):
            if task.done():
                del self._held[run_id]

    def look(self, since: float) -> None:
        """Let all followers evaluate the alert rules by the clock; see `RunFollower.look`."""
        for follower, task in self._held.values():
            if not task.done():
                follower.look(since)

    async def refresh_losses(self) -> None:
        """Let all followers read the choice of the loss again if any was changed, on any server.

        Raises `DatabaseError`.
        """
        version = await self._stores.losses.version()
        if version != self._loss_version:
            self._loss_version = version
            for follower, _ in self._held.values():
                follower.reload_labels()

    async def settle(self, run_id: str) -> None:
        """Wait until the detectors have read everything that is committed of a run and have left memory.

        Returns soon only if ``idle_after`` is short.
        """
        held = self._held.get(run_id)
        if held is not None:
            await asyncio.wait([held[1]])

    def _follower(self, run_id: str, rank: int | None) -> RunFollower | None:
        held = self._held.get(run_id)
        if held is not None and not held[1].done():
            return held[0]
        is_leading = rank == 0
        if not is_leading and self._elsewhere.get(run_id, 0.0) > self._clock():
            return None
        inbox = Inbox(self._budget)
        follower = RunFollower(
            run_id,
            source=SegmentSource(run_id, inbox=inbox, layouts=self._stores.layouts, segments=self._stores.segments),
            runs=self._stores.runs,
            states=self._states,
            executor=self._executor,
            publish=lambda alerts, events: self._publish_all(run_id, alerts, events),
            rules=self._rules,
            clock=self._clock,
        )
        self._held[run_id] = (follower, asyncio.create_task(self._run(follower, inbox, is_leading)))
        return follower

    async def _publish_all(self, run_id: str, alerts: Sequence[answers.Alert], events: Sequence[Event]) -> None:
        """Publish the conclusions of a run, and alerts of other runs about which it has changed what is said."""
        await self._publish(run_id, [alert for alert in alerts if alert.run_id == run_id], events)
        for alert in alerts:
            if alert.run_id != run_id:
                await self._publish(alert.run_id, [alert], ())

    async def _run(self, follower: RunFollower, inbox: Inbox, is_leading: bool) -> None:
        """Run a follower while this server holds the lease of its run, so that no other server does the same."""
        lease = _lease_of(follower.run_id)
        try:
            is_needed = True
            while is_needed:
                if not await self._leases.take(lease, force=is_leading):
                    self._elsewhere[follower.run_id] = self._clock() + self._leases.seconds / 3
                    return
                self._elsewhere.pop(follower.run_id, None)
                await follower.run(self._idle_after)
                await self._leases.release(lease)
                is_needed = follower.is_awake  # something was committed while the lease was being released
        finally:
            inbox.clear()

    async def _leave(self, follower: RunFollower) -> None:
        try:
            await follower.save_now()
        except DatabaseError as error:
            logger.warning(
                "cannot save the detectors of run %s; they read its last segments again after the next start: %s",
                follower.run_id,
                error,
                extra={"action": LogAction.DETECTORS_NOT_SAVED, "run_id": follower.run_id},
            )
        await self._leases.release(_lease_of(follower.run_id))

    async def _keep_leases(self) -> None:
        """Renew the leases of active runs, release idle runs, and follow runs that no server follows."""
        for beat in itertools.count():
            await asyncio.sleep(self._leases.seconds / 3)
            try:
                active = {run_id for run_id, (_, task) in self._held.items() if not task.done()}
                resting = {run_id for run_id in active - self._connected_runs() if self._held[run_id][0].is_resting}
                for run_id in await self._leases.keep([_lease_of(run_id) for run_id in active - resting]):
                    await self._unfollow(run_id.removeprefix(LEASE))
                for run_id in resting:
                    await self._unfollow(run_id)
                    await self._leases.release(_lease_of(run_id))
                now = self._clock()
                self._elsewhere = {run_id: until for run_id, until in self._elsewhere.items() if until > now}
                if beat % ORPHANS_EVERY == 0:
                    for run_id in await self._stores.runs.lagging():
                        self.follow(run_id)
            except Exception as error:  # the next renewal must come, whatever this one failed on
                expected = isinstance(error, DatabaseError)
                logger.log(
                    logging.WARNING if expected else logging.ERROR,
                    "cannot renew the leases of the followed runs: %s",
                    error,
                    exc_info=None if expected else error,
                    extra={"action": LogAction.LEASES_FAILED},
                )

    async def _unfollow(self, run_id: str) -> None:
        """Stop following a run that another server follows or may follow. That server reads again what is unsaved."""
        held = self._held.pop(run_id, None)
        if held is not None:
            held[1].cancel()
            await asyncio.gather(held[1], return_exceptions=True)


def _lease_of(run_id: str) -> str:
    return LEASE + run_id
