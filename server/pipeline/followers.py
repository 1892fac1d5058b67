"""The followers of all runs that this server follows, and the leases by which servers share the runs out."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from server.broker.leases import Leases
from server.errors import DatabaseError
from server.models import Event
from server.pipeline.follower import RunFollower
from server.pipeline.group_committer import GroupCommitter
from server.pipeline.inbox import FreshSegment, Inbox, Room
from server.rule import RuleSet
from server.storage.detector_states import DetectorStateSave, DetectorStateStore, SavedDetectorState
from server.storage.layouts import LayoutStore
from server.storage.measurements.segments import SegmentStore
from server.storage.runs import RunStore

logger = logging.getLogger(__name__)

DETECTOR_THREADS = 2
SAVE_GATHER = 0.1  # seconds between two transactions that save states, while many have something to save
SAVED_TOGETHER = 1024 * 1024  # bytes of states in one transaction
LEASE = "follower:"
ORPHANS_EVERY = 6  # beats of the leases between two looks for runs that nobody follows

Publish = Callable[[str, Sequence[dict[str, Any]], Sequence[Event]], Awaitable[None]]
"""Tell the world about changed alerts (JSON) and events of a run, which are stored."""


class Followers:
    """Used from the event loop alone."""

    def __init__(
        self,
        *,
        runs: RunStore,
        layouts: LayoutStore,
        segments: SegmentStore,
        monitors: DetectorStateStore,
        leases: Leases,
        publish: Publish,
        rules: Callable[[], RuleSet],
        connected: Callable[[], set[str]],
        turn: asyncio.Lock,
        clock: Callable[[], float],
        idle_after: float,
    ) -> None:
        """``rules``: those of now. ``connected``: runs with a writer that is connected to this server.
        ``turn``: of the transactions that change several runs.
        ``idle_after``: seconds without news after which a run's detectors leave memory."""
        self._runs = runs
        self._layouts = layouts
        self._segments = segments
        self._monitors = monitors
        self._leases = leases
        self._publish = publish
        self._rules = rules
        self._connected = connected
        self._clock = clock
        self._idle_after = idle_after
        self._executor = ThreadPoolExecutor(DETECTOR_THREADS, thread_name_prefix="detectors")
        self._room = Room()
        self._saver: GroupCommitter[DetectorStateSave, SavedDetectorState] = GroupCommitter(
            monitors.save, most=SAVED_TOGETHER, gather=SAVE_GATHER, turn=turn
        )
        self._held: dict[str, tuple[RunFollower, asyncio.Task[None]]] = {}
        self._elsewhere: dict[str, float] = {}
        """Runs that another server follows, and the time until which it is not asked again whether it still does."""
        self._warden: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Runs whose detectors are in memory."""
        return len(self._held)

    @property
    def lag(self) -> float:
        """Seconds for which the detectors of the slowest run have not read what is committed."""
        since = [follower.behind_since for follower, task in self._held.values() if not task.done()]
        return max((self._clock() - begun for begun in since if begun is not None), default=0.0)

    async def start(self) -> None:
        """Follow what was committed and not read before the last stop."""
        for run_id in await self._runs.lagging():
            self.follow(run_id)
        if self._leases.is_shared:
            self._warden = asyncio.create_task(self._keep_leases())

    async def stop(self) -> None:
        """Save what the detectors have read. Nothing may be committed any more."""
        if self._warden is not None:
            self._warden.cancel()
            await asyncio.gather(self._warden, return_exceptions=True)
        held = list(self._held.values())
        for _, task in held:
            task.cancel()
        await asyncio.gather(*(task for _, task in held), return_exceptions=True)
        # A thread may still be advancing the detectors; their state is whole only after it.
        await asyncio.to_thread(self._executor.shutdown)
        await self._saver.stop()  # a save that a follower did not wait for to its end
        await asyncio.gather(*(self._leave(follower) for follower, _ in held))
        await self._saver.stop()

    def follow(self, run_id: str, *, rank: int | None = None) -> RunFollower | None:
        """Let the detectors read what the database has of the run. None where another server does that.

        ``rank``: of the writer here that has sent something. The detectors go by the lowest rank, so its server takes
        them over; one that has only others leaves them where they are.
        """
        follower = self._follower(run_id, rank)
        if follower is not None:
            follower.wake()
        return follower

    def offer(self, run_id: str, segments: Sequence[FreshSegment]) -> None:
        """This server has just committed these, of one rank."""
        follower = self._follower(run_id, segments[0].rank)
        if follower is not None:
            for segment in segments:
                follower.offer(segment)

    def forget(self, run_id: str) -> None:
        """The run is being deleted: its detectors stop."""
        held = self._held.pop(run_id, None)
        if held is not None:
            held[1].cancel()

    def forget_ended(self) -> None:
        """Detectors that have left memory are no longer counted."""
        for run_id, (_, task) in list(self._held.items()):
            if task.done():
                del self._held[run_id]

    def look(self, since: float) -> None:
        """Let all of them judge by the clock. ``since``: see `RunFollower.look`."""
        for follower, task in self._held.values():
            if not task.done():
                follower.look(since)

    async def settle(self, run_id: str) -> None:
        """Wait until the detectors have read all that is committed of a run, and have left it: soon, where
        ``idle_after`` is short."""
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
        inbox = Inbox(self._room)
        follower = RunFollower(
            run_id,
            runs=self._runs,
            layouts=self._layouts,
            segments=self._segments,
            monitors=self._monitors,
            inbox=inbox,
            save=self._save,
            executor=self._executor,
            publish=lambda alerts, events: self._publish(run_id, alerts, events),
            rules=self._rules,
            clock=self._clock,
            idle_after=self._idle_after,
        )
        self._held[run_id] = (follower, asyncio.create_task(self._run(follower, inbox, is_leading)))
        return follower

    async def _run(self, follower: RunFollower, inbox: Inbox, is_leading: bool) -> None:
        """With a lease, so that no other server does the same."""
        lease = _lease_of(follower.run_id)
        try:
            if not await self._leases.take(lease, force=is_leading):
                self._elsewhere[follower.run_id] = self._clock() + self._leases.seconds / 3
                return
            self._elsewhere.pop(follower.run_id, None)
            await follower.run()
            await self._leases.release(lease)
        finally:
            inbox.clear()

    async def _save(self, save: DetectorStateSave) -> SavedDetectorState:
        return await self._saver.write(save, save.run_id, len(save.after.state))

    async def _leave(self, follower: RunFollower) -> None:
        try:
            await follower.save_now()
        except DatabaseError as error:
            logger.warning("the state of run %s is not saved (%s)", follower.run_id, error)
        await self._leases.release(_lease_of(follower.run_id))

    async def _keep_leases(self) -> None:
        """Keep the leases of what is followed here, let go of runs that have moved, and take up what nobody follows."""
        for beat in itertools.count():
            await asyncio.sleep(self._leases.seconds / 3)
            try:
                active = {run_id for run_id, (_, task) in self._held.items() if not task.done()}
                resting = {run_id for run_id in active - self._connected() if self._held[run_id][0].is_resting}
                for run_id in await self._leases.keep([_lease_of(run_id) for run_id in active - resting]):
                    await self._unfollow(run_id.removeprefix(LEASE))
                for run_id in resting:
                    await self._unfollow(run_id)
                    await self._leases.release(_lease_of(run_id))
                now = self._clock()
                self._elsewhere = {run_id: until for run_id, until in self._elsewhere.items() if until > now}
                if beat % ORPHANS_EVERY == 0:
                    for run_id in await self._runs.lagging():
                        self.follow(run_id)
            except Exception as error:  # whatever it is, the next beat comes
                expected = isinstance(error, DatabaseError)
                logger.log(
                    logging.WARNING if expected else logging.ERROR,
                    "the leases are not kept (%s)",
                    error,
                    exc_info=None if expected else error,
                    extra={"action": "leases_failed"},
                )

    async def _unfollow(self, run_id: str) -> None:
        """Another server follows the run, or may. What is not saved it reads again."""
        held = self._held.pop(run_id, None)
        if held is not None:
            held[1].cancel()
            await asyncio.gather(held[1], return_exceptions=True)


def _lease_of(run_id: str) -> str:
    return LEASE + run_id
