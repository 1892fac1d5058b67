"""The rhythm of the layer statistics: which optimizer steps are measured.

Owns the decision only; pure. Counts optimizer steps from 1.
"""

from __future__ import annotations


class Rhythm:
    """Decision before each optimizer step whether to measure its layers, and whether with histograms."""

    def __init__(self, *, every: int, histogram_every: int) -> None:
        """Measure every ``every``-th step, with histograms at every ``histogram_every``-th."""
        self._every, self._histogram_every = every, histogram_every
        self.steps = 0
        """Optimizer steps so far."""
        self.logged_at = 0
        """Number of steps at the last measured `log`."""
        self.measured_at: int | None = None
        """The last step that was measured; None before the first."""
        self.is_due = False
        """Whether the step under way is to be measured."""
        self._histogram_at: int | None = None
        self._steps_a_log = 1
        self._led: int | None = None

    def begin_step(self) -> bool:
        """Decide before an optimizer step whether it is to be measured, and return the decision."""
        step = self.steps + 1
        if self._led is not None:
            self.is_due = self.measured_at is None or step - self.measured_at >= self._led
            return self.is_due
        is_rested = self.measured_at is None or step - self.measured_at >= self._every
        # A training that logs every tenth step does not pay for the nine that are never read.
        self.is_due = is_rested and step - self.logged_at >= self._steps_a_log
        return self.is_due

    def end_step(self) -> bool:
        """Count the step that has ended, and return whether it is to be measured."""
        self.steps += 1
        is_due, self.is_due = self.is_due, False
        return is_due

    @property
    def wants_histogram(self) -> bool:
        """Whether a measurement of this step is to include histograms."""
        return self._histogram_at is None or self.steps - self._histogram_at >= self._histogram_every

    @property
    def next_in(self) -> int:
        """Number of steps from this measured step to the next one that this process would choose."""
        return max(self._every, self._steps_a_log)

    def lead(self, interval: int) -> None:
        """Measure ``interval`` steps after the last measured one, whatever this process would choose by itself."""
        self._led = max(1, interval)

    def note_measured(self, *, histograms: bool) -> None:
        """Note that this step was measured, and whether its histograms were."""
        self.measured_at = self.steps
        if histograms:
            self._histogram_at = self.steps

    def note_logged(self) -> int:
        """Note a measured `log`, and return the number of optimizer steps since the last one."""
        advance = self.steps - self.logged_at
        self.logged_at = self.steps
        self._steps_a_log = max(1, advance)
        return advance
