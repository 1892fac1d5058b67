"""The detectors of one run: read what was committed, in order, exactly once, and say what came of it.

What this server commits comes by an inbox; whatever is missing there, after a restart for one, is read from storage.
The state and everything that was concluded are saved in one transaction that names the position reached, so a crash
repeats work and never a conclusion.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

from server.alerts.lifecycle import AlertLifecycle
from server.detectors.layer_sums import STATISTICS
from server.errors import DatabaseError
from server.models import DELETING, Event, Layout, RunState
from server.pipeline.detector_state import Head
from server.pipeline.inbox import FreshSegment, Inbox
from server.pipeline.samples import samples
from server.pyramid.columns import Columns, Payload
from server.rule import RuleSet
from server.storage.detector_states import DetectorStateSave, DetectorStateStore, SavedDetectorState, SuiteState
from server.storage.layouts import LayoutStore
from server.storage.measurements.segments import SegmentStore, StoredSegment, UnreadSegments
from server.storage.runs import RunLabels, RunStore

logger = logging.getLogger(__name__)

READ = frozenset(STATISTICS)
SEGMENTS_AT_ONCE = 64
SAVE_EVERY = 1.0  # seconds between two saves while nothing noteworthy happens
LOOK_EVERY = 30.0  # seconds between two looks into the database while everything comes by the inbox
INLINE_BYTES = 32 * 1024
"""Less is read on the event loop: in about a millisecond, less than the way to a busy thread and back takes."""
RETRY_DELAYS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds; the last one is repeated

Publish = Callable[[Sequence[dict[str, Any]], Sequence[Event]], Awaitable[None]]
"""Tell the world about changed alerts (JSON) and events that are stored."""
Save = Callable[[DetectorStateSave], Awaitable[SavedDetectorState]]


class RunFollower:
    """One task a run; `wake` it after a commit."""

    def __init__(
        self,
        run_id: str,
        *,
        runs: RunStore,
        layouts: LayoutStore,
        segments: SegmentStore,
        monitors: DetectorStateStore,
        inbox: Inbox,
        save: Save,
        executor: Executor,
        publish: Publish,
        rules: Callable[[], RuleSet],
        clock: Callable[[], float],
        idle_after: float,
    ) -> None:
        """``save``: how a state is stored. ``rules``: those of now. ``idle_after``: seconds without news after which
        `run` returns."""
        self.run_id = run_id
        self.behind_since: float | None = clock()
        """Since when something is committed and not read; None while all is read."""
        self._runs = runs
        self._layout_store = layouts
        self._segments = segments
        self._monitors = monitors
        self._inbox = inbox
        self._save_state = save
        self._executor = executor
        self._publish = publish
        self._rules = rules
        self._clock = clock
        self._idle_after = idle_after
        self._awake = asyncio.Event()
        self._awake.set()
        self._head: Head | None = None
        self._layouts: dict[int, dict[int, Layout]] = {}
        self._labels: RunLabels | None = None
        self._heard_since: float | None = None
        self._saved_at = 0.0
        self._must_look = True
        """Into the database, whatever is in the inbox."""
        self._looked_at = 0.0
        self.is_resting = False
        """Whether everything is read and saved, and nothing has come since."""

    def look(self, since: float) -> None:
        """Judge by the clock, though nothing was committed: the rules have changed, or silence is due. ``since``: what
        came before that Unix time nobody could have heard."""
        self._heard_since = since
        self.wake()

    def offer(self, segment: FreshSegment) -> None:
        """This server has committed a segment of the run."""
        if self._head is not None and segment.rank > self._head.rank:
            return  # the detectors go by the lowest rank
        if not self._inbox.offer(segment) or self._head is None:
            self._must_look = True
        self._stir()

    def wake(self) -> None:
        """Something was committed, or the run ended: the database knows."""
        self._must_look = True
        self._stir()

    def _stir(self) -> None:
        self.is_resting = False
        if self.behind_since is None:
            self.behind_since = self._clock()
        self._awake.set()

    async def run(self) -> None:
        """Follow the run until nothing has come for a while and all is saved. Survives outages of the database."""
        failures = 0
        while True:
            try:
                if not await self._wait():
                    return
                found = await self._read_all()
                if self._heard_since is not None:
                    await self._look(self._heard_since)
                if found is not None and not await self._close_if_ended(found.state):
                    return
                if not self._awake.is_set():
                    self.behind_since = None
                failures = 0
            except Exception as error:  # one run's trouble must not end its followership
                self._head = None
                self._must_look = True
                delay = RETRY_DELAYS[min(failures, len(RETRY_DELAYS) - 1)]
                failures += 1
                expected = isinstance(error, DatabaseError)
                logger.log(
                    logging.WARNING if expected else logging.ERROR,
                    "the detectors of run %s stopped (%s); next try in %s s",
                    self.run_id,
                    error,
                    delay,
                    exc_info=None if expected else error,
                    extra={"action": "follower_failed", "run_id": self.run_id},
                )
                await asyncio.sleep(delay)
                self._awake.set()

    async def save_now(self) -> None:
        """Save what is read, at shutdown. The task must have ended."""
        if self._head is not None and self._head.position != (self._head.saved_position or 0):
            await self._save(self._head)

    async def _wait(self) -> bool:
        """True when there may be something to read; False when it has been quiet for long."""
        while True:
            unsaved = self._head is not None and self._head.position != (self._head.saved_position or 0)
            self.is_resting = not unsaved and not self._awake.is_set()
            try:
                async with asyncio.timeout(SAVE_EVERY if unsaved else self._idle_after):
                    await self._awake.wait()
                    self.is_resting = False
            except TimeoutError:
                if self._awake.is_set():
                    continue
                if not unsaved:
                    return False
                assert self._head is not None
                await self._save(self._head)
                continue
            self._awake.clear()
            return True

    async def _read_all(self) -> UnreadSegments | None:
        """Read everything that is committed, and tell what was found. Returns the last look into the database, None
        where there was none."""
        found = None
        while True:
            head = self._head
            fresh = [] if head is None else self._inbox.take(head.rank, head.position)
            if head is not None and fresh:
                await self._hear(head, fresh, sum(segment.size for segment in fresh))
            elif fresh is None or self._must_look or self._is_over(LOOK_EVERY, self._looked_at):
                self._must_look = False
                self._looked_at = self._clock()
                found = await self._read_some()
                if len(found.segments) == SEGMENTS_AT_ONCE:
                    self._must_look = True
                elif fresh is None and not found.segments:
                    self._inbox.drop()  # of a rank that is not read
            else:
                return found

    async def _read_some(self) -> UnreadSegments:
        """Read the next segments of the database, if there are any."""
        head = self._head if self._head is not None else await self._load()
        rank, position = (None, 0) if head is None else (head.rank, head.position)
        found = await self._segments.unread(self.run_id, rank, position, SEGMENTS_AT_ONCE)
        if found.lowest_rank is None:
            return found
        if head is None:
            head = Head(rank=found.lowest_rank, book=AlertLifecycle(self.run_id))
        self._head = head
        if found.lowest_rank < head.rank:
            # A lower rank has begun: it leads from now on, and its own history is read from the beginning.
            head.begin(found.lowest_rank)
            return await self._read_some()
        if not found.segments:
            return found
        await self._learn_layouts(found.segments)
        await self._hear(head, found.segments, None)
        return found

    async def _hear(self, head: Head, found: Sequence[StoredSegment | FreshSegment], size: int | None) -> None:
        """Let the detectors read these, in this thread where they are small. ``size``: None for not known."""
        await self._adopt_rules(head)
        if size is not None and size <= INLINE_BYTES:
            self._advance(head, found)
        else:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._advance, head, found)
        if head.is_noteworthy or self._is_over(SAVE_EVERY, self._saved_at):
            await self._save(head)

    def _is_over(self, seconds: float, since: float) -> bool:
        """Also where the clock was set back meanwhile."""
        return not 0 <= self._clock() - since < seconds

    async def _load(self) -> Head | None:
        state = await self._monitors.load(self.run_id)
        return None if state is None else Head.restore(self.run_id, state)

    async def _learn_layouts(self, found: Sequence[StoredSegment]) -> None:
        """Layouts of writers that are new, and of known ones that may have grown."""
        if all(segment.writer_id in self._layouts for segment in found) and not self._grew(found):
            return
        self._layouts = {}
        for item in await self._layout_store.of_run(self.run_id):
            self._layouts.setdefault(item.writer_id, {})[item.layout.id] = item.layout
        for segment in found:
            self._layouts.setdefault(segment.writer_id, {})

    def _grew(self, found: Sequence[StoredSegment]) -> bool:
        for segment in found:
            known: Mapping[int, Layout] = self._layouts[segment.writer_id]
            try:
                if any(number not in known for number in Payload(segment.payload).layouts()):
                    return True
            except ValueError:
                continue  # reported where it is read
        return False

    def _advance(self, head: Head, found: Sequence[StoredSegment | FreshSegment]) -> None:
        """In the executor, or instead of it."""
        for segment in found:
            columns, layouts = self._decode(segment, head.bank.statistics)
            if columns is None:
                head.position = segment.id
                continue
            for sample in samples(columns, segment.attempt, layouts, summed=True):
                head.hear(sample, segment.committed_at)
            head.position = segment.id

    def _decode(
        self, segment: StoredSegment | FreshSegment, statistics: frozenset[str]
    ) -> tuple[Columns | None, Mapping[int, Layout]]:
        """The columns, None where they are damaged, and the layouts of their writer."""
        if isinstance(segment, FreshSegment):
            return segment.columns, segment.layouts
        try:
            return Payload(segment.payload).columns(READ | statistics), self._layouts[segment.writer_id]
        except ValueError as error:
            logger.error(
                "segment %s of run %s is damaged and is left out by the detectors (%s)",
                segment.id,
                self.run_id,
                error,
                extra={"action": "segment_corrupt", "run_id": self.run_id},
            )
            return None, {}

    async def _adopt_rules(self, head: Head) -> None:
        """From here on the rules of now; alerts of those that are gone or changed are over."""
        rules = self._rules()
        if head.bank.version == rules.version:
            return
        if self._labels is None:
            self._labels = await self._runs.labels(self.run_id)
        if self._labels is None:
            return  # deleted meanwhile
        chosen = rules.of_run(self._labels.project, self._labels.name, self._labels.tags)
        for rule_id in head.bank.replace_rules(chosen, rules.version):
            head.close_rule(rule_id, self._clock(), " The rule was changed, switched off or deleted.")

    async def _look(self, since: float) -> None:
        """Everything that is committed has been read: what is missing is silence."""
        self._heard_since = None
        head = self._head = self._head if self._head is not None else await self._load()
        if head is None:
            return
        await self._adopt_rules(head)
        now = self._clock()
        if await self._runs.state_of(self.run_id) in {RunState.RUNNING, RunState.STALE}:
            for finding in head.bank.find_silent(now, since):
                head.note(head.book.report(finding, head.bank.last_step, now))
        if head.is_noteworthy or head.bank.due_at != head.due_at:
            await self._save(head)

    async def _save(self, head: Head) -> None:
        due_at, revision = head.bank.due_at, 1 if head.revision is None else head.revision + 1
        saved = await self._save_state(
            DetectorStateSave(
                run_id=self.run_id,
                before=head.revision,
                after=SuiteState(
                    rank=head.rank, position=head.position, state=head.snapshot(), revision=revision, due_at=due_at
                ),
                progress=head.progress.progress(),
                changed=list(head.changed.values()),
                happened=head.happened,
                now=self._clock(),
            )
        )
        if saved.alerts is None:
            # Another server follows the run and is ahead: take over its state, and tell nothing twice.
            self._head = None
            self._must_look = True
            self._awake.set()
            return
        happened, head.happened, head.changed = head.happened, [], {}
        head.saved_position, head.revision, head.due_at = head.position, revision, due_at
        self._saved_at = self._clock()
        await self._publish(saved.alerts, happened)

    async def _close_if_ended(self, state: str | None) -> bool:
        """When the run has ended and everything is read, nothing stays open. False when the run was deleted."""
        if state in {None, DELETING}:
            self._head = None
            return False
        head = self._head
        if state not in {RunState.FINISHED, RunState.CRASHED} or head is None:
            return True
        head.note(*head.book.close_all(self._clock()))
        head.happened += head.thinned.end()
        if head.is_noteworthy or head.position != (head.saved_position or 0):
            await self._save(head)
        return True
