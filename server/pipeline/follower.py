"""The task that feeds the committed segments of one run to its detectors, in order and exactly once.

Segments that this server commits arrive through the inbox; whatever is missing there, for example after a restart, is
read from the database. The detector state and everything that was concluded are saved in one transaction that contains
the position reached, so that a crash repeats work but never a conclusion.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Protocol

from client_sdk import answers
from server.alerts.lifecycle import AlertLifecycle
from server.errors import DatabaseError
from server.log_actions import LogAction
from server.models import DELETING, Event, RunState
from server.pipeline.detector_state import DetectorState
from server.pipeline.inbox import FreshSegment
from server.pipeline.samples import samples
from server.pipeline.segment_source import MAX_SEGMENTS, Segment, SegmentSource
from server.rule import RuleSet
from server.storage.detector_states import DetectorStateSave, DetectorStateSaveResult, StoredDetectorState
from server.storage.measurements.segments import UnreadSegments
from server.storage.runs import RunLabels, RunStore

logger = logging.getLogger(__name__)

SAVE_EVERY = 1.0  # seconds between two saves while there is nothing to conclude
LOOK_EVERY = 30.0  # seconds between two queries of the database while the inbox has no gap
INLINE_BYTES = 32 * 1024
"""Smaller segments are read on the event loop: about a millisecond, less than a round trip to a busy thread."""
RETRY_DELAYS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds; the last one is repeated

Publish = Callable[[Sequence[answers.Alert], Sequence[Event]], Awaitable[None]]
"""Publishes changed alerts and events after they are stored."""


class DetectorStates(Protocol):
    """A store of detector states."""

    async def load(self, run_id: str) -> StoredDetectorState | None:
        """Return the saved state of a run, or None if there is none. Raises `DatabaseError`."""
        ...

    async def save(self, save: DetectorStateSave, publish: Publish) -> DetectorStateSaveResult:
        """Store a state with what was concluded, then publish the conclusions. Raises `DatabaseError`.

        Nothing is published if nothing was stored. Both are done even if the caller is cancelled meanwhile, because no
        other follower publishes what this one has stored.
        """
        ...


RULE_OVER = " The rule was changed, switched off or deleted, or it no longer applies to the run."
"""Sentence that ends the message of an alert whose rule is over."""


class RunFollower:
    """Follows one run. `run` is its task; the other methods are called from the same event loop."""

    def __init__(
        self,
        run_id: str,
        *,
        source: SegmentSource,
        runs: RunStore,
        states: DetectorStates,
        executor: Executor,
        publish: Publish,
        rules: Callable[[], RuleSet],
        clock: Callable[[], float],
    ) -> None:
        """``executor`` runs the detectors on large segments. ``rules`` returns the current alert rules."""
        self.run_id = run_id
        self.behind_since: float | None = clock()
        """Unix time since which committed segments are unread, or None if the detectors have read everything."""
        self.is_resting = False
        """Whether everything is read and saved and nothing has arrived since."""
        self._source = source
        self._runs = runs
        self._states = states
        self._executor = executor
        self._publish = publish
        self._rules = rules
        self._clock = clock
        self._awake = asyncio.Event()
        self._awake.set()
        self._state: DetectorState | None = None
        self._labels: RunLabels | None = None
        self._received_since: float | None = None
        self._saved_at = 0.0
        self._is_relabelled = True
        """Whether the name or the tags, by which rules choose runs, may have changed since the rules were chosen."""
        self._must_query = True
        """Whether the database has to be queried even if the inbox has segments."""
        self._queried_at = 0.0

    def look(self, since: float) -> None:
        """Evaluate the alert rules by the clock although nothing was committed.

        Called when the rules have changed or a rule about missing data is due. Data that arrived before the Unix time
        ``since`` may have been missed by this server, so silence before then proves nothing.
        """
        self._received_since = since
        self.wake()

    def reload_labels(self) -> None:
        """Read name, tags and the choice of the loss again before the next record, because they may have changed."""
        self._labels = None
        self._is_relabelled = True

    def offer(self, segment: FreshSegment) -> None:
        """Accept a segment that this server has committed."""
        if self._state is not None and segment.rank > self._state.rank:
            return  # the detectors read the lowest rank
        if not self._source.inbox.offer(segment) or self._state is None:
            self._must_query = True
        self._stir()

    @property
    def is_awake(self) -> bool:
        """Whether something has arrived that `run` has not begun to read."""
        return self._awake.is_set()

    def wake(self) -> None:
        """Query the database: something was committed, or the run ended."""
        self._must_query = True
        self._stir()

    def _stir(self) -> None:
        self.is_resting = False
        if self.behind_since is None:
            self.behind_since = self._clock()
        self._awake.set()

    async def run(self, idle_after: float) -> None:
        """Follow the run until nothing has arrived for ``idle_after`` seconds and everything is saved.

        Errors are logged and the work is repeated, so outages of the database are survived.
        """
        failures = 0
        while True:
            try:
                if not await self._wait(idle_after):
                    return
                found = await self._read_all()
                if self._received_since is not None:
                    await self._evaluate_silence(self._received_since)
                if found is not None and not await self._close_if_ended(found.state):
                    return
                if not self._awake.is_set():
                    self.behind_since = None
                failures = 0
            except Exception as error:  # trouble with one run must not end its follower
                self._state = None
                self._must_query = True
                delay = RETRY_DELAYS[min(failures, len(RETRY_DELAYS) - 1)]
                failures += 1
                expected = isinstance(error, DatabaseError)
                logger.log(
                    logging.WARNING if expected else logging.ERROR,
                    "the detectors of run %s stopped, retrying in %s s: %s",
                    self.run_id,
                    delay,
                    error,
                    exc_info=None if expected else error,
                    extra={"action": LogAction.FOLLOWER_FAILED, "run_id": self.run_id},
                )
                await asyncio.sleep(delay)
                self._awake.set()

    async def save_now(self) -> None:
        """Save what the detectors have read, at shutdown. The task must have ended."""
        if self._state is not None and not self._state.is_saved:
            await self._save(self._state)

    async def _wait(self, idle_after: float) -> bool:
        """Return True when there may be something to read, and False after ``idle_after`` quiet seconds."""
        while True:
            state = self._state
            is_saved = state is None or state.is_saved
            self.is_resting = is_saved and not self._awake.is_set()
            try:
                async with asyncio.timeout(idle_after if is_saved else SAVE_EVERY):
                    await self._awake.wait()
                    self.is_resting = False
            except TimeoutError:
                if self._awake.is_set():
                    continue
                if state is None or is_saved:
                    return False
                await self._save(state)
                continue
            self._awake.clear()
            return True

    async def _read_all(self) -> UnreadSegments | None:
        """Read everything that is committed and publish the conclusions.

        Returns the result of the last query of the database, or None if the inbox had everything.
        """
        found = None
        while True:
            state = self._state
            inbox = self._source.inbox
            fresh = [] if state is None else inbox.take(state.rank, state.position)
            if state is not None and fresh:
                await self._update(state, fresh, sum(segment.size for segment in fresh))
            elif fresh is None or self._must_query or self._has_passed(LOOK_EVERY, self._queried_at):
                self._must_query = False
                self._queried_at = self._clock()
                found = await self._read_stored()
                if len(found.segments) == MAX_SEGMENTS:
                    self._must_query = True
                elif fresh is None and not found.segments:
                    inbox.drop()  # it is of a rank that the detectors do not read
            else:
                return found

    async def _read_stored(self) -> UnreadSegments:
        """Read the next segments from the database, if there are any."""
        state = self._state if self._state is not None else await self._load()
        rank, position = (None, 0) if state is None else (state.rank, state.position)
        found = await self._source.unread(rank, position)
        if found.lowest_rank is None:
            return found
        if state is None:
            state = DetectorState(rank=found.lowest_rank, alerts=AlertLifecycle(self.run_id))
        self._state = state
        if found.lowest_rank < state.rank:
            # A lower rank has begun: the detectors read that one from now on, from its first segment.
            state.restart(found.lowest_rank)
            return await self._read_stored()
        if not found.segments:
            return found
        await self._source.load_layouts(found.segments)
        await self._update(state, found.segments, None)
        return found

    async def _update(self, state: DetectorState, found: Sequence[Segment], size: int | None) -> None:
        """Let the detectors read segments of ``size`` bytes, or of unknown size if it is None."""
        await self._adopt_rules(state)
        if self._labels is None:
            self._labels = await self._runs.labels(self.run_id)
        if self._labels is not None:
            state.suite.choose_loss(self._labels.chosen_loss, self._labels.preferred_loss)
        if size is not None and size <= INLINE_BYTES:
            self._advance(state, found)
        else:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._advance, state, found)
        if state.has_conclusions or self._has_passed(SAVE_EVERY, self._saved_at):
            await self._save(state)

    def _has_passed(self, seconds: float, since: float) -> bool:
        """Return whether so many seconds have passed. True as well if the clock was set back."""
        return not 0 <= self._clock() - since < seconds

    async def _load(self) -> DetectorState | None:
        stored = await self._states.load(self.run_id)
        return None if stored is None else DetectorState.restore(self.run_id, stored)

    def _advance(self, state: DetectorState, found: Sequence[Segment]) -> None:
        """Update the detectors sample by sample. Runs in the executor or, for small segments, on the event loop."""
        for segment in found:
            columns, layouts = self._source.decode(segment, state.rules.statistics)
            if columns is not None:
                for sample in samples(columns, segment.attempt, layouts, is_late=segment.is_late, summed=True):
                    state.update(sample, segment.committed_at)
            state.position = segment.id

    async def _adopt_rules(self, state: DetectorState) -> None:
        """Apply the current alert rules, and close alerts of rules that were changed or deleted."""
        rules = self._rules()
        if state.rules.version == rules.version and not self._is_relabelled:
            return
        if self._labels is None:
            self._labels = await self._runs.labels(self.run_id)
        if self._labels is None:
            return  # the run was deleted meanwhile
        self._is_relabelled = False
        chosen = rules.of_run(self._labels.project, self._labels.name, self._labels.tags)
        for rule_id in state.rules.replace_rules(chosen, rules.version):
            state.close_rule(rule_id, self._clock(), RULE_OVER)

    async def _evaluate_silence(self, since: float) -> None:
        """Report rules about missing data. Everything that is committed has been read, so the rest is silence."""
        self._received_since = None
        state = self._state = self._state if self._state is not None else await self._load()
        if state is None:
            return
        await self._adopt_rules(state)
        now = self._clock()
        if await self._runs.state_of(self.run_id) in {RunState.RUNNING, RunState.STALE}:
            for finding in state.rules.find_silent(now, since):
                state.record_alerts(state.alerts.report(finding, state.rules.last_step, now))
        if state.has_conclusions or state.rules.due_at != state.due_at:
            await self._save(state)

    async def _save(self, state: DetectorState) -> None:
        due_at, revision = state.rules.due_at, 1 if state.revision is None else state.revision + 1
        saved = await self._states.save(
            DetectorStateSave(
                run_id=self.run_id,
                before=state.revision,
                after=StoredDetectorState(
                    rank=state.rank,
                    position=state.position,
                    state=state.snapshot(),
                    revision=revision,
                    due_at=due_at,
                    passage=state.passage.passage,
                ),
                progress=state.progress.progress(),
                changed=list(state.changed.values()),
                happened=state.happened,
                now=self._clock(),
                project=None if self._labels is None else self._labels.project,
                outliers=state.outliers,
            ),
            self._publish,
        )
        if saved.alerts is None:
            # A follower on another server is ahead: load its state, and do not publish anything twice.
            self._state = None
            self._must_query = True
            self._awake.set()
            return
        state.happened, state.changed, state.outliers = [], {}, []
        state.saved_position, state.revision, state.due_at = state.position, revision, due_at
        self._saved_at = self._clock()

    async def _close_if_ended(self, run_state: str | None) -> bool:
        """Close all alerts when the run has ended and everything is read. Return False if the run was deleted."""
        if run_state in {None, DELETING}:
            self._state = None
            return False
        state = self._state
        if run_state not in {RunState.FINISHED, RunState.CRASHED} or state is None:
            return True
        # The end is that of the data: an imported run ended when its log did, and a silent one when it fell silent.
        ended_at = state.progress.last_time
        state.record_alerts(*state.alerts.end_run(self._clock() if ended_at is None else ended_at))
        state.happened += state.thinned.end()
        if state.has_conclusions or not state.is_saved:
            await self._save(state)
        return True
