"""The summary of a run that the fleet page shows, updated with each sample.

Pure; the state round-trips through bytes.
"""

from __future__ import annotations

import math

import msgspec

from server.models import Progress, Sample, Verdict

SPARKLINE_BUCKETS = 64
RATE_WINDOW = 10.0  # seconds by the clock of the training process
RATE_POINTS = 32


class _State(msgspec.Struct):
    attempt: int = 0
    width: int = 1
    """Number of steps that a bucket of the sparkline covers; a power of two."""
    buckets: dict[int, float | None] = {}
    """Largest loss per bucket, keyed by bucket number; None for a bucket with a non-finite loss."""
    marks: list[tuple[float, int]] = []
    """Pairs (time, step), at least RATE_WINDOW / RATE_POINTS seconds apart."""
    loss: float | None = None
    loss_step: int = -1
    """Step of the last loss."""
    lr: float | None = None
    stage: str | None = None
    stage_reason: str | None = None
    loss_name: str | None = None
    loss_since: int | None = None
    """First step that was judged with this loss, None if no other one was."""
    stability_ratio: float | None = None


class RunProgress:
    """Loss, learning rate, stage, step rate and sparkline of a run. Not thread-safe."""

    def __init__(self) -> None:
        self._state = _State()

    def update(self, sample: Sample, verdict: Verdict) -> None:
        """Add a sample and the verdict of the detectors on it."""
        state = self._state
        if sample.attempt != state.attempt:
            state.attempt = sample.attempt
            state.marks = []
            state.loss_step = -1
            state.buckets = {k: value for k, value in state.buckets.items() if (k + 1) * state.width <= sample.step}
        state.stage, state.stage_reason = verdict.stage, verdict.stage_reason
        if verdict.loss_name is not None:
            self._follow_loss(verdict.loss_name, sample.step)
        state.stability_ratio = _finite(verdict.stability_ratio)
        if "lr" in sample.scalars and not sample.is_late:
            state.lr = _finite(sample.scalars["lr"])
        if "loss" in sample.scalars and sample.step >= state.loss_step:  # A late loss is not the present one.
            state.loss, state.loss_step = _finite(sample.scalars["loss"]), sample.step
            self._add_loss(sample.step, sample.scalars["loss"])
        if not sample.is_late:
            self._mark(sample.time, sample.step)

    @property
    def last_time(self) -> float | None:
        """Time of the newest sample of the attempt by the clock of the training process, None if none had a time."""
        return self._state.marks[-1][0] if self._state.marks else None

    def _add_loss(self, step: int, loss: float) -> None:
        state = self._state
        k = step // state.width
        is_new = k not in state.buckets
        before = state.buckets.get(k, -math.inf)
        state.buckets[k] = None if before is None or not math.isfinite(loss) else max(before, loss)
        if not is_new:
            return
        while max(state.buckets) - min(state.buckets) >= SPARKLINE_BUCKETS:
            state.width *= 2
            merged: dict[int, float | None] = {}
            for number, value in state.buckets.items():
                other = merged.get(number // 2, -math.inf)
                merged[number // 2] = None if value is None or other is None else max(value, other)
            state.buckets = merged

    def _follow_loss(self, name: str, step: int) -> None:
        """Begin anew with the values of another loss."""
        state = self._state
        if state.loss_name not in (None, name):
            state.loss_since, state.loss, state.loss_step, state.buckets = step, None, -1, {}
        state.loss_name = name

    def _mark(self, time: float, step: int) -> None:
        marks = self._state.marks
        if not math.isfinite(time) or (marks and time < marks[-1][0]):
            return
        # The newest mark moves with the run until it is far enough from its predecessor.
        if len(marks) >= 2 and marks[-1][0] - marks[-2][0] < RATE_WINDOW / RATE_POINTS:
            marks[-1] = (time, step)
        else:
            marks.append((time, step))
        while len(marks) > 2 and time - marks[1][0] >= RATE_WINDOW:
            marks.pop(0)

    def progress(self) -> Progress:
        """Return the summary as it is stored."""
        state = self._state
        rate = None
        if len(state.marks) >= 2:
            (begin, first), (end, last) = state.marks[0], state.marks[-1]
            rate = (last - first) / (end - begin) if end > begin else None
        numbers = sorted(state.buckets)
        return Progress(
            step_rate=rate,
            loss=state.loss,
            lr=state.lr,
            stage=state.stage,
            stage_reason=state.stage_reason,
            loss_name=state.loss_name,
            loss_since=state.loss_since,
            stability_ratio=state.stability_ratio,
            sparkline={
                "first_step": numbers[0] * state.width if numbers else 0,
                "bucket_steps": state.width,
                "max": [state.buckets[number] for number in numbers],
            },
        )

    def snapshot(self) -> bytes:
        """Return the state as bytes for `restore`."""
        return msgspec.msgpack.encode(self._state)

    @classmethod
    def restore(cls, data: bytes) -> RunProgress:
        """Return the progress of a snapshot. Raises `msgspec.DecodeError` for other bytes."""
        progress = cls()
        progress._state = msgspec.msgpack.decode(data, type=_State)
        return progress


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
