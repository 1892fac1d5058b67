"""Where the detectors of one run stand: their states, what they have concluded, and what of that is saved."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from client_sdk.protocol import Alert
from server.alerts.lifecycle import AlertLifecycle
from server.detectors.detector_suite import DetectorSuite
from server.detectors.rule_evaluator import RuleEvaluator
from server.models import AlertKind, Event, Finding, Sample
from server.pipeline.progress import RunProgress
from server.pipeline.thinned_span import ThinnedSpan
from server.storage.detector_states import SuiteState

logger = logging.getLogger(__name__)


class _Saved(msgspec.Struct, array_like=True):
    monitor: bytes
    book: bytes
    progress: bytes
    rules: bytes = b""
    thinned: bytes = b""


@dataclass(kw_only=True)
class Head:
    """Touched by one thread at a time."""

    rank: int
    position: int = 0
    saved_position: int | None = None
    """Position in the database, None where the run has no state yet."""
    revision: int | None = None
    """Of the state in the database."""
    due_at: float | None = None
    """In the database."""
    monitor: DetectorSuite = field(default_factory=DetectorSuite)
    book: AlertLifecycle
    progress: RunProgress = field(default_factory=RunProgress)
    bank: RuleEvaluator = field(default_factory=RuleEvaluator)
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

    def begin(self, rank: int) -> None:
        """The detectors go by another rank, from its first step on."""
        self.rank, self.position = rank, 0
        self.monitor, self.progress, self.bank = DetectorSuite(), RunProgress(), RuleEvaluator()
        self.thinned = ThinnedSpan()

    def hear(self, sample: Sample, committed_at: float) -> None:
        """Let everybody judge one sample."""
        verdict = self.monitor.update(sample)
        self.progress.update(sample, verdict)
        held = self._go_by_rules(sample, committed_at)
        if held:
            verdict = replace(verdict, findings=(*verdict.findings, *held))
        self.note(*self.book.apply(verdict, sample.time, sample.attempt))
        self.happened += [replace(event, attempt=sample.attempt) for event in verdict.events]
        self.happened += self.thinned.update(sample)

    def _go_by_rules(self, sample: Sample, committed_at: float) -> tuple[Finding, ...]:
        """What the rules hold after a sample; alerts about data that came back are closed."""
        heard = self.bank.update(sample, committed_at)
        for rule_id, seconds in heard.returned:
            self.close_rule(rule_id, committed_at, f" It came again after {seconds / 60:.0f} minutes.")
        return heard.findings

    def snapshot(self) -> bytes:
        return msgspec.msgpack.encode(
            _Saved(
                monitor=self.monitor.snapshot(),
                book=self.book.snapshot(),
                progress=self.progress.snapshot(),
                rules=self.bank.snapshot(),
                thinned=self.thinned.snapshot(),
            )
        )

    @classmethod
    def restore(cls, run_id: str, state: SuiteState) -> Head:
        """As it was saved. Detectors whose state is of another version begin anew."""
        head = cls(
            rank=state.rank,
            position=state.position,
            saved_position=state.position,
            revision=state.revision,
            due_at=state.due_at,
            book=AlertLifecycle(run_id),
        )
        try:
            saved = msgspec.msgpack.decode(state.state, type=_Saved)
            head.book = AlertLifecycle.restore(saved.book)
            head.progress = RunProgress.restore(saved.progress)
            head.monitor = DetectorSuite.restore(saved.monitor)
            head.bank = RuleEvaluator.restore(saved.rules) if saved.rules else RuleEvaluator()
            head.thinned = ThinnedSpan.restore(saved.thinned) if saved.thinned else ThinnedSpan()
        except ValueError as error:
            logger.warning(
                "the detectors of run %s begin anew: their saved state is of another version (%s)",
                run_id,
                error,
                extra={"action": "snapshot_refused", "run_id": run_id},
            )
        return head
