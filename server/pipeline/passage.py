"""The part of the steps that the detectors of a run have read, so that other runs can tell what it has passed."""

from __future__ import annotations

from server.detectors.outliers import position_of
from server.models import Passage, Sample


class PassageTracker:
    """Follows the steps with a loss, over all attempts.

    >>> tracker = PassageTracker()
    >>> for step in (10, 20, 30, 5):
    ...     tracker.update(Sample(step=step, time=0.0, scalars={"loss": 1.0}))
    >>> passage = tracker.passage
    >>> (passage.first_step, passage.last_step, passage.interval)
    (5, 30, 10)
    """

    def __init__(self, known: Passage | None = None) -> None:
        """Continue from what is known of the run."""
        self._first_step = None if known is None else known.first_step
        self._last_step = None if known is None else known.last_step
        self._interval = 1 if known is None else known.interval
        self._axis = None if known is None else known.axis
        self._first_position = None if known is None else known.first_position
        self._last_position = None if known is None else known.last_position
        self._latest: int | None = self._last_step

    @property
    def passage(self) -> Passage | None:
        """The steps and positions that were read; None before the first loss."""
        if self._first_step is None or self._last_step is None:
            return None
        return Passage(
            first_step=self._first_step,
            last_step=self._last_step,
            interval=self._interval,
            axis=self._axis,
            first_position=self._first_position,
            last_position=self._last_position,
        )

    def update(self, sample: Sample) -> None:
        """Add a sample with a loss."""
        step = sample.step
        if self._latest is not None and step > self._latest:
            self._interval = step - self._latest
        self._latest = step
        if self._first_step is None or step < self._first_step:
            self._first_step = step
        if self._last_step is None or step > self._last_step:
            self._last_step = step
        axis, position = position_of(sample.scalars)
        if axis is None or position is None:
            return
        if axis != self._axis or self._first_position is None or self._last_position is None:
            self._axis, self._first_position, self._last_position = axis, position, position
        elif position > self._last_position:
            self._last_position = position
        elif position < self._first_position:
            self._first_position = position
