"""The detector suite: all detectors of one writer's stream, a sample in, a verdict out.

Owns the order of the detectors and the snapshot. A suite is a pure function of the stream: no clock, no randomness, one
sample at a time, so that the division of the stream into batches cannot matter. Its memory is bounded.

A snapshot is the msgpack of `_State` (arrays as little-endian float64) with a version. A snapshot of another version is
refused; the caller then replays the stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Final, TypeVar

import msgspec
import numpy as np

from server.detectors.bad_batch import BadBatchDetector
from server.detectors.causes import CauseTracker
from server.detectors.context import Context
from server.detectors.detector import Detector
from server.detectors.divergence import DivergenceDetector
from server.detectors.eps_floor import EpsFloorDetector
from server.detectors.gradient_explosion import GradientExplosionDetector
from server.detectors.guard import GuardDetector
from server.detectors.jump import JumpDetector
from server.detectors.layer_sums import sums_of
from server.detectors.loss_name import LossName
from server.detectors.loss_noise import LossNoiseDetector
from server.detectors.lr_jump import LearningRateJumpDetector
from server.detectors.nonfinite import NonfiniteDetector
from server.detectors.outliers import OutlierDetector
from server.detectors.sensitivity import USUAL, weighed
from server.detectors.signals import Reading, Signals
from server.detectors.spike import MIN_LOSSES, SpikeDetector
from server.detectors.spike_predictor import SpikePredictor
from server.detectors.stages import STAGES, StageTracker
from server.detectors.track_record import TrackRecord
from server.models import AlertKind, Event, EventKind, Finding, Outlier, Sample, Stage, StageReason, Verdict

SNAPSHOT_VERSION: Final = 1
READ_SCALARS: Final = ("loss", "lr", "grad_norm", "lambda_max", "lambda_grad", "lambda_step")
"""Scalars that the detectors read. A sample with none of them and without layers is skipped."""
REPORTED_FIRST: Final = {
    AlertKind.SPIKE_PREDICTED: 0,
    AlertKind.SPIKE: 1,
    AlertKind.BAD_BATCH: 2,
    AlertKind.LR_JUMP: 3,
    AlertKind.NONFINITE: 4,
}
"""Kinds of findings that open a verdict, with their order; the others follow in the order of their detectors."""

_D = TypeVar("_D", bound=Detector)


def _detector(kind: type[_D]) -> Any:
    return msgspec.field(default_factory=kind)


class _Shared(msgspec.Struct):
    """State of a suite apart from its detectors."""

    version: int = SNAPSHOT_VERSION
    attempt: int = 0
    last_step: int | None = None
    """Step of the last sample that was not skipped."""
    stability: float | None = None
    """Last measured stability ratio."""
    findings: tuple[Finding, ...] = ()
    """Findings after the last sample that was not skipped."""
    loss_name: LossName = msgspec.field(default_factory=LossName)
    judged_loss: str | None = None
    """Name of the loss that the detectors have read; None before the first one."""
    signals: Signals = msgspec.field(default_factory=Signals)
    record: TrackRecord = msgspec.field(default_factory=TrackRecord)
    causes: CauseTracker = msgspec.field(default_factory=CauseTracker)


class _State(_Shared):
    """The ordered list of the detectors: each one sees what those before it concluded.

    A new detector is one line here. The name of its field is its key in snapshots. A snapshot without that key restores
    the detector in its initial state.
    """

    nonfinite: NonfiniteDetector = _detector(NonfiniteDetector)
    lr_jump: LearningRateJumpDetector = _detector(LearningRateJumpDetector)
    bad_batch: BadBatchDetector = _detector(BadBatchDetector)
    jump: JumpDetector = _detector(JumpDetector)
    spike: SpikeDetector = _detector(SpikeDetector)
    predictor: SpikePredictor = _detector(SpikePredictor)
    divergence: DivergenceDetector = _detector(DivergenceDetector)
    eps_floor: EpsFloorDetector = _detector(EpsFloorDetector)
    gradient_explosion: GradientExplosionDetector = _detector(GradientExplosionDetector)
    loss_noise: LossNoiseDetector = _detector(LossNoiseDetector)
    outliers: OutlierDetector = _detector(OutlierDetector)
    guard: GuardDetector = _detector(GuardDetector)
    stages: StageTracker = _detector(StageTracker)


DETECTORS: Final = _State.__struct_fields__[len(_Shared.__struct_fields__) :]
"""Names of the detectors in the order in which they judge."""
_in_order: Final = attrgetter(*DETECTORS)


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.astype("<f8").tobytes()
    raise NotImplementedError(type(value))


def _decode_array(kind: type, value: Any) -> Any:
    if kind is np.ndarray or getattr(kind, "__origin__", None) is np.ndarray:
        return np.frombuffer(value, dtype="<f8").copy()
    raise NotImplementedError(kind)


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_decoder: Final = msgspec.msgpack.Decoder(_State, dec_hook=_decode_array)


class DetectorSuite:
    """The detectors of one writer. Not thread-safe; a sample of 300 layers takes about a tenth of a millisecond.

    >>> suite = DetectorSuite()
    >>> for step in range(60):
    ...     verdict = suite.update(Sample(step=step, time=0.0, scalars={"loss": 1.0 if step < 50 else 4.0}))
    >>> [finding.title for finding in verdict.findings]
    ['Loss spike at step 50']
    """

    def __init__(self, sensitivity: float = USUAL) -> None:
        """``sensitivity`` is that of the predictions (`sensitivity`). It is no part of a snapshot."""
        self._state = _State()
        self._sensitivity = sensitivity

    @property
    def detectors(self) -> Mapping[str, Detector]:
        """The detectors by name, in the order in which they judge. They must not be changed."""
        return dict(zip(DETECTORS, _in_order(self._state), strict=True))

    def update(self, sample: Sample) -> Verdict:
        """Return what holds true after one more sample. Samples must arrive in the order of their sequence.

        A new attempt resets everything but the track record of the run's predictions, and so does another loss, whose
        values cannot be compared to those before. A sample without any value that
        the detectors read changes nothing, and neither does a step that was seen before (training and evaluation
        metrics may be logged separately).
        """
        if sample.attempt != self._state.attempt:
            self._restart(sample.attempt)
        sample = self._state.loss_name.read(sample)
        is_other_loss = self._follow_loss(sample)
        state = self._state
        if state.last_step is not None and sample.step <= state.last_step:
            return self._verdict(state.last_step, ())
        if not (sample.has_layers or any(key in sample.scalars for key in READ_SCALARS)):
            return self._verdict(sample.step, ())
        is_first = state.last_step is None or is_other_loss
        state.last_step = sample.step
        return self._judge(sample, is_first)

    def _restart(self, attempt: int) -> None:
        """Begin with fresh detectors. The track record of the run's predictions and the name of the loss are kept."""
        before = self._state
        self._state = _State(
            attempt=attempt, record=before.record, loss_name=before.loss_name, judged_loss=before.judged_loss
        )
        self._state.record.renew()

    def _follow_loss(self, sample: Sample) -> bool:
        """Begin with fresh detectors if another scalar than before is the loss, and return whether that was so."""
        name, before = self._state.loss_name.found, self._state.judged_loss
        if name is None or name == before:
            return False
        if before is not None:
            last_step = self._state.last_step
            self._restart(sample.attempt)
            self._state.last_step = last_step
        self._state.judged_loss = name
        return before is not None

    def _judge(self, sample: Sample, is_first: bool) -> Verdict:
        state = self._state
        reading = state.signals.update(sample, sums_of(sample))
        if reading.stability is not None:
            state.stability = reading.stability
        context = self._context(reading, is_first)
        context.scalars = sample.scalars
        detectors: tuple[Detector, ...] = _in_order(state)
        events = [event for one in detectors if (event := one.update(reading, context)) is not None]
        state.record.update(
            reading.step, context.prediction_level, due=context.prediction_due, spike=context.outcome_level
        )
        findings = [
            weighed(finding, context.sensitivity)
            for one in detectors
            if (finding := one.finding(reading, context)) is not None
        ]
        if len(findings) > 1:
            findings.sort(key=lambda finding: REPORTED_FIRST.get(finding.kind, len(REPORTED_FIRST)))
        state.findings = tuple(map(state.outliers.name_outlier, findings))
        return self._verdict(reading.step, tuple(map(self._with_outlier, events)), context.outlier)

    def _context(self, reading: Reading, is_first: bool) -> Context:
        """Return the context of a step as the detectors left it at the step before."""
        state = self._state
        is_finite = reading.loss is not None and math.isfinite(reading.loss)
        context = Context(
            causes=state.causes,
            record=state.record,
            sensitivity=self._sensitivity,
            missing=self._missing(state.spike.seen + is_finite),
            is_first=is_first,
            is_spiking=state.spike.active,
            is_jumping=state.jump.active,
            prediction_level=state.predictor.level,
        )
        state.causes.update(reading, context.is_spike_predicted)
        return context

    def _missing(self, losses: int) -> StageReason | None:
        """Return what keeps the detectors from judging whether the run is stable, after so many finite losses."""
        state = self._state
        if state.loss_name.found is None and not losses:
            return StageReason.NO_LOSS
        if losses < MIN_LOSSES:
            return StageReason.TOO_FEW_RECORDS
        signals = state.signals
        if signals.decouplings.values or signals.gradient_stabilities.values:
            return None
        return StageReason.LOSS_ONLY if signals.layout is None else StageReason.NO_SECOND_MOMENT

    def _with_outlier(self, event: Event) -> Event:
        """Return the event of a spike or a bad batch with the step of the outlier with which it began."""
        if event.kind not in (EventKind.SPIKE, EventKind.BAD_BATCH):
            return event
        step = self._state.outliers.outlier_within(event.step, event.detail.get("peak_step"))
        if step is None:
            return event
        return msgspec.structs.replace(event, detail={**event.detail, "outlier_step": step})

    def _verdict(self, step: int, events: tuple[Event, ...], outlier: Outlier | None = None) -> Verdict:
        state = self._state
        is_reported = any(finding.kind is AlertKind.SPIKE_PREDICTED for finding in state.findings)
        reason = self._missing(state.spike.seen) if state.stages.stage == Stage.NOT_JUDGED else None
        return Verdict(
            step=step,
            stage=STAGES[state.stages.stage],
            stage_reason=None if reason is None else reason.value,
            loss_name=state.loss_name.found,
            stability_ratio=state.stability,
            forecast=state.predictor.forecast(step) if is_reported else None,
            findings=state.findings,
            events=events,
            outlier=outlier,
            interval=max(state.signals.pauses, default=1),
        )

    @property
    def judged_loss(self) -> str | None:
        """Name of the loss that the detectors have read; None before the first one."""
        return self._state.judged_loss

    def choose_loss(self, name: str | None, preferred: str | None = None) -> None:
        """Read this scalar as the loss from the next sample on; None leaves it to the names of the scalars.

        ``preferred`` is the loss wherever it is logged, if ``name`` is None.
        """
        self._state.loss_name.choose(name, preferred)

    def snapshot(self) -> bytes:
        """Return the whole state. A suite that is restored from it continues exactly where this one is."""
        return _encoder.encode(self._state)

    @classmethod
    def restore(cls, data: bytes) -> DetectorSuite:
        """Return the suite that a snapshot was taken of.

        Raises `ValueError` for a snapshot of another version and for anything else (`msgspec.DecodeError` is one).
        """
        suite = cls()
        state = _decoder.decode(data)
        if state.version != SNAPSHOT_VERSION:
            raise ValueError(f"the snapshot has version {state.version}, but this server reads {SNAPSHOT_VERSION}")
        if "jump" not in (stored := msgspec.msgpack.decode(data)):
            # Older versions had one detector for what the jump and the spike detector do now.
            state.jump = msgspec.convert(stored["spike"], JumpDetector)
        state.predictor.height.take_losses(state.jump.losses.values, state.jump.scale)
        suite._state = state
        return suite
