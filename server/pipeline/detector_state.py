"""The saved state of one run: its detector suite, its alerts and its progress, with what has not been saved yet."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from client_sdk.protocol import Alert
from client_sdk.vocabulary import LOSS
from server.alerts.lifecycle import AlertLifecycle
from server.detectors.detector_suite import DetectorSuite
from server.detectors.loss_name import renamed
from server.detectors.rule_evaluator import RuleEvaluator
from server.log_actions import LogAction
from server.models import AlertKind, Event, Finding, Outlier, Sample
from server.pipeline.passage import PassageTracker
from server.pipeline.progress import RunProgress
from server.pipeline.thinned_span import ThinnedSpan
from server.storage.detector_states import StoredDetectorState

logger = logging.getLogger(__name__)


class _Saved(msgspec.Struct, array_like=True):
    """The stored form: one snapshot per part, in this order."""

    suite: bytes
    book: bytes
    progress: bytes
    rules: bytes = b""
    thinned: bytes = b""


@dataclass(kw_only=True)
class DetectorState:
    """The detectors of one run, the alerts they opened, and the position they have reached.

    Not thread-safe: a follower passes it to one thread at a time.
    """

    rank: int
    """Rank whose segments the detectors read."""
    position: int = 0
    """Id of the last segment that the detectors have read."""
    saved_position: int | None = None
    """Position in the database, or None if the run has no saved state yet."""
    revision: int | None = None
    """Revision of the state in the database, or None if the run has no saved state yet."""
    due_at: float | None = None
    """Unix time in the database at which a rule about missing data is due, or None if there is none."""
    suite: DetectorSuite = field(default_factory=DetectorSuite)
    alerts: AlertLifecycle
    progress: RunProgress = field(default_factory=RunProgress)
    rules: RuleEvaluator = field(default_factory=RuleEvaluator)
    thinned: ThinnedSpan = field(default_factory=ThinnedSpan)
    changed: dict[str, Alert] = field(default_factory=dict)
    """Latest form of each alert that has changed since the last save, keyed by alert id."""
    happened: list[Event] = field(default_factory=list)
    """Events since the last save."""
    outliers: list[Outlier] = field(default_factory=list)
    """Outliers of the loss and marks since the last save."""
    passage: PassageTracker = field(default_factory=PassageTracker)

    @property
    def has_conclusions(self) -> bool:
        """Whether an alert, an event or an outlier waits to be saved."""
        return bool(self.changed or self.happened or self.outliers)

    @property
    def is_saved(self) -> bool:
        """Whether the database has the position that the detectors have reached."""
        return self.position == (self.saved_position or 0)

    def record_alerts(self, *alerts: Alert | None) -> None:
        """Keep alerts that opened, changed or closed for the next save."""
        self.changed.update({alert.id: alert for alert in alerts if alert is not None})

    def close_rule(self, rule_id: str, time: float, note: str) -> None:
        """Close the alert of a rule at once, regardless of later steps."""
        slot = f"{AlertKind.CUSTOM_RULE.value}:{rule_id}"
        self.record_alerts(self.alerts.end(slot, self.rules.last_step, time, note))

    def restart(self, rank: int) -> None:
        """Begin again with fresh detectors at the first segment of another rank."""
        self.rank, self.position = rank, 0
        self.suite, self.progress, self.rules = DetectorSuite(), RunProgress(), RuleEvaluator()
        self.thinned = ThinnedSpan()

    def update(self, sample: Sample, committed_at: float) -> None:
        """Let the detectors, the alert rules and the progress read one sample."""
        time = sample.time
        if not math.isfinite(time):  # a log may lack the time of some records
            time = committed_at if self.progress.last_time is None else self.progress.last_time
        before = self.suite.judged_loss
        verdict = self.suite.update(sample)
        if before not in (None, self.suite.judged_loss):
            note = f" The loss is {self.suite.judged_loss} now, and the detectors began anew."
            self.record_alerts(*self.alerts.begin_anew(time, note))
        sample = renamed(sample, verdict.loss_name)
        self.progress.update(sample, verdict)
        if LOSS in sample.scalars and not sample.is_late:
            self.passage.update(sample)
        if verdict.outlier is not None:
            self.outliers.append(replace(verdict.outlier, attempt=sample.attempt))
        held = self._apply_rules(sample, committed_at)
        if held:
            verdict = replace(verdict, findings=(*verdict.findings, *held))
        if sample.is_late:
            verdict = replace(verdict, step=max(verdict.step, self.rules.last_step))  # alerts never step back
        self.record_alerts(*self.alerts.apply(verdict, time, sample.attempt))
        self.happened += [replace(event, attempt=sample.attempt) for event in verdict.events]
        self.happened += self.thinned.update(sample)

    def _apply_rules(self, sample: Sample, committed_at: float) -> tuple[Finding, ...]:
        """Return the findings of the alert rules after a sample, and close alerts about data that has returned."""
        evaluated = self.rules.update(sample, committed_at)
        for rule_id, seconds in evaluated.returned:
            self.close_rule(rule_id, committed_at, f" It came again after {seconds / 60:.0f} minutes.")
        return evaluated.findings

    def snapshot(self) -> bytes:
        """Return the state as bytes for `restore`."""
        return msgspec.msgpack.encode(
            _Saved(
                suite=self.suite.snapshot(),
                book=self.alerts.snapshot(),
                progress=self.progress.snapshot(),
                rules=self.rules.snapshot(),
                thinned=self.thinned.snapshot(),
            )
        )

    @classmethod
    def restore(cls, run_id: str, stored: StoredDetectorState) -> DetectorState:
        """Return the state that was saved. Parts whose snapshot is of another version begin fresh."""
        state = cls(
            rank=stored.rank,
            position=stored.position,
            saved_position=stored.position,
            revision=stored.revision,
            due_at=stored.due_at,
            alerts=AlertLifecycle(run_id),
            passage=PassageTracker(stored.passage),
        )
        try:
            saved = msgspec.msgpack.decode(stored.state, type=_Saved)
            state.alerts = AlertLifecycle.restore(saved.book)
            state.progress = RunProgress.restore(saved.progress)
            state.suite = DetectorSuite.restore(saved.suite)
            state.rules = RuleEvaluator.restore(saved.rules) if saved.rules else RuleEvaluator()
            state.thinned = ThinnedSpan.restore(saved.thinned) if saved.thinned else ThinnedSpan()
        except ValueError as error:
            logger.warning(
                "the detectors of run %s begin fresh because their saved state has another version: %s",
                run_id,
                error,
                extra={"action": LogAction.SNAPSHOT_REFUSED, "run_id": run_id},
            )
        return state
