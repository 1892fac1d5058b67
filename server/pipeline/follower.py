"""The detectors of one run: read what was committed, in order, exactly once, and say what came of it.

The follower reads segments from storage, live and after a restart alike. Its state and everything that it concluded are
saved in one transaction that names the position reached, so a crash repeats work and never a conclusion.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from client_sdk.protocol import Alert
from server.alerts.lifecycle import AlertBook
from server.detectors.layer_sums import STATISTICS
from server.detectors.monitor import RunMonitor
from server.detectors.rules import RuleBank
from server.errors import DatabaseError
from server.models import AlertKind, Event, Finding, Layout, RunState, Sample
from server.pipeline.progress import RunProgress
from server.pipeline.samples import samples
from server.pipeline.thinned_span import ThinnedSpan
from server.rule import RuleSet
from server.storage.columns import Payload
from server.storage.layouts import LayoutStore
from server.storage.monitors import MonitorState, MonitorStore
from server.storage.runs import RunLabels, RunStore
from server.storage.segments import SegmentStore, StoredSegment, Unread

logger = logging.getLogger(__name__)

READ = frozenset(STATISTICS)
SEGMENTS_AT_ONCE = 64
SAVE_EVERY = 1.0  # seconds between two saves while nothing noteworthy happens
RETRY_DELAYS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds; the last one is repeated

Publish = Callable[[Sequence[dict[str, Any]], Sequence[Event]], Awaitable[None]]
"""Tell the world about changed alerts (JSON) and events that are stored."""


class _Saved(msgspec.Struct, array_like=True):
    monitor: bytes
    book: bytes
    progress: bytes
    rules: bytes = b""
    thinned: bytes = b""


@dataclass(kw_only=True)
class _Head:
    """Where the follower stands. Touched by one thread at a time."""

    rank: int
    position: int = 0
    saved_position: int | None = None
    """Position in the database, None where the run has no state yet."""
    revision: int | None = None
    """Of the state in the database."""
    due_at: float | None = None
    """In the database."""
    monitor: RunMonitor = field(default_factory=RunMonitor)
    book: AlertBook
    progress: RunProgress = field(default_factory=RunProgress)
    bank: RuleBank = field(default_factory=RuleBank)
    thinned: ThinnedSpan = field(default_factory=ThinnedSpan)
    changed: dict[str, Alert] = field(default_factory=dict)
    """Alerts not yet saved; of each the latest form."""
    happened: list[Event] = field(default_factory=list)

    @property
    def is_noteworthy(self) -> bool:
        return bool(self.changed or self.happened)

    def note(self, *alerts: Alert | None) -> None:
        """Alerts that opened, changed or closed."""
        self.changed.update({alert.id: alert for alert in alerts if alert is not None})

    def close_rule(self, rule_id: str, time: float, note: str) -> None:
        """The alert of a rule is over at once, whatever the steps say."""
        slot = f"{AlertKind.CUSTOM_RULE.value}:{rule_id}"
        self.note(self.book.end(slot, self.bank.last_step, time, note))


class RunFollower:
    """One task a run; `wake` it after a commit."""

    def __init__(
        self,
        run_id: str,
        *,
        runs: RunStore,
        layouts: LayoutStore,
        segments: SegmentStore,
        monitors: MonitorStore,
        executor: Executor,
        publish: Publish,
        rules: Callable[[], RuleSet],
        clock: Callable[[], float],
        idle_after: float,
    ) -> None:
        """``rules``: those of now. ``idle_after``: seconds without news after which `run` returns."""
        self.run_id = run_id
        self.behind_since: float | None = clock()
        """Since when something is committed and not read; None while all is read."""
        self._runs = runs
        self._layout_store = layouts
        self._segments = segments
        self._monitors = monitors
        self._executor = executor
        self._publish = publish
        self._rules = rules
        self._clock = clock
        self._idle_after = idle_after
        self._awake = asyncio.Event()
        self._awake.set()
        self._head: _Head | None = None
        self._layouts: dict[int, dict[int, Layout]] = {}
        self._labels: RunLabels | None = None
        self._heard_since: float | None = None
        self._saved_at = 0.0
        self.is_resting = False
        """Whether everything is read and saved, and nothing has come since."""

    def look(self, since: float) -> None:
        """Judge by the clock, though nothing was committed: the rules have changed, or silence is due. ``since``: what
        came before that Unix time nobody could have heard."""
        self._heard_since = since
        self.wake()

    def wake(self) -> None:
        """Something was committed, or the run ended."""
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
                found = await self._read_some()
                while len(found.segments) == SEGMENTS_AT_ONCE:
                    found = await self._read_some()
                if self._heard_since is not None:
                    await self._look(self._heard_since)
                if not await self._close_if_ended(found.state):
                    return
                if not self._awake.is_set():
                    self.behind_since = None
                failures = 0
            except Exception as error:  # one run's trouble must not end its followership
                self._head = None
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

    async def _read_some(self) -> Unread:
        """Read the next segments, if there are any, and tell what was found."""
        head = self._head if self._head is not None else await self._load()
        rank, position = (None, 0) if head is None else (head.rank, head.position)
        found = await self._segments.unread(self.run_id, rank, position, SEGMENTS_AT_ONCE)
        if found.lowest_rank is None:
            return found
        if head is None:
            head = _Head(rank=found.lowest_rank, book=AlertBook(self.run_id))
        self._head = head
        if found.lowest_rank < head.rank:
            # A lower rank has begun: it leads from now on, and its own history is read from the beginning.
            head.rank, head.position = found.lowest_rank, 0
            head.monitor, head.progress, head.bank = RunMonitor(), RunProgress(), RuleBank()
            head.thinned = ThinnedSpan()
            return await self._read_some()
        if not found.segments:
            return found
        await self._learn_layouts(found.segments)
        await self._adopt_rules(head)
        await asyncio.get_running_loop().run_in_executor(self._executor, self._advance, head, found.segments)
        if head.is_noteworthy or self._clock() - self._saved_at >= SAVE_EVERY:
            await self._save(head)
        return found

    async def _load(self) -> _Head | None:
        state = await self._monitors.load(self.run_id)
        if state is None:
            return None
        head = _Head(
            rank=state.rank,
            position=state.position,
            saved_position=state.position,
            revision=state.revision,
            due_at=state.due_at,
            book=AlertBook(self.run_id),
        )
        try:
            saved = msgspec.msgpack.decode(state.state, type=_Saved)
            head.book = AlertBook.restore(saved.book)
            head.progress = RunProgress.restore(saved.progress)
            head.monitor = RunMonitor.restore(saved.monitor)
            head.bank = RuleBank.restore(saved.rules) if saved.rules else RuleBank()
            head.thinned = ThinnedSpan.restore(saved.thinned) if saved.thinned else ThinnedSpan()
        except ValueError as error:
            logger.warning(
                "the detectors of run %s begin anew: their saved state is of another version (%s)",
                self.run_id,
                error,
                extra={"action": "snapshot_refused", "run_id": self.run_id},
            )
        return head

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

    def _advance(self, head: _Head, found: Sequence[StoredSegment]) -> None:
        """In the executor."""
        for segment in found:
            try:
                columns = Payload(segment.payload).columns(READ | head.bank.statistics)
            except ValueError as error:
                logger.error(
                    "segment %s of run %s is damaged and is left out by the detectors (%s)",
                    segment.id,
                    self.run_id,
                    error,
                    extra={"action": "segment_corrupt", "run_id": self.run_id},
                )
                head.position = segment.id
                continue
            for sample in samples(columns, segment.attempt, self._layouts[segment.writer_id], summed=True):
                verdict = head.monitor.update(sample)
                head.progress.update(sample, verdict)
                heard = _hear(head, sample, segment.committed_at)
                verdict = replace(verdict, findings=(*verdict.findings, *heard))
                head.note(*head.book.apply(verdict, sample.time, sample.attempt))
                head.happened += [replace(event, attempt=sample.attempt) for event in verdict.events]
                head.happened += head.thinned.update(sample)
            head.position = segment.id

    async def _adopt_rules(self, head: _Head) -> None:
        """From here on the rules of now; alerts of those that are gone or changed are over."""
        rules = self._rules()
        if head.bank.version == rules.version:
            return
        if self._labels is None:
            self._labels = await self._runs.labels(self.run_id)
        if self._labels is None:
            return  # deleted meanwhile
        chosen = rules.of_run(self._labels.project, self._labels.name, self._labels.tags)
        for rule_id in head.bank.adopt(chosen, rules.version):
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
            for finding in head.bank.silence(now, since):
                head.note(head.book.report(finding, head.bank.last_step, now))
        if head.is_noteworthy or head.bank.due_at != head.due_at:
            await self._save(head)

    async def _save(self, head: _Head) -> None:
        state = msgspec.msgpack.encode(
            _Saved(
                monitor=head.monitor.snapshot(),
                book=head.book.snapshot(),
                progress=head.progress.snapshot(),
                rules=head.bank.snapshot(),
                thinned=head.thinned.snapshot(),
            )
        )
        due_at, revision = head.bank.due_at, 1 if head.revision is None else head.revision + 1
        shown = await self._monitors.save(
            self.run_id,
            before=head.revision,
            after=MonitorState(rank=head.rank, position=head.position, state=state, revision=revision, due_at=due_at),
            progress=head.progress.progress(),
            changed=list(head.changed.values()),
            happened=head.happened,
            now=self._clock(),
        )
        if shown is None:
            # Another server follows the run and is ahead: take over its state, and tell nothing twice.
            self._head = None
            self._awake.set()
            return
        happened, head.happened, head.changed = head.happened, [], {}
        head.saved_position, head.revision, head.due_at = head.position, revision, due_at
        self._saved_at = self._clock()
        await self._publish(shown, happened)

    async def _close_if_ended(self, state: str | None) -> bool:
        """When the run has ended and everything is read, nothing stays open. False when the run was deleted."""
        if state in {None, RunState.DELETING}:
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


def _hear(head: _Head, sample: Sample, committed_at: float) -> tuple[Finding, ...]:
    """What the rules hold after a sample; alerts about data that came back are closed."""
    heard = head.bank.update(sample, committed_at)
    for rule_id, seconds in heard.returned:
        head.close_rule(rule_id, committed_at, f" It came again after {seconds / 60:.0f} minutes.")
    return heard.findings
