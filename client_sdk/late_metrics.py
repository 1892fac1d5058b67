"""Tells late metrics from a training that went back, and warns about metrics that count other steps.

`Run.log` asks only about records below the last step, so the usual record pays nothing. The server decides for itself
(docs/explanation/delivery.md); here the answer keeps the step counter and the layer statistics with the training.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

import msgspec

from client_sdk.warner import Warner

FILLED_IN = frozenset({"lr", "stability_limit", "step_time"})
"""Scalars that the SDK adds by itself. They prove nothing about a record that has others."""
MIN_LATE = 3
"""Number of late records of a metric before a warning."""
MAX_METRICS = 1_000
"""Number of late metrics that are followed."""


class _LateMetric(msgspec.Struct):
    first_step: int
    first_at: int
    """Step of the training at the first late record of the metric."""
    count: int = 0


class LateMetrics:
    """Late records of one run. Used by the training thread."""

    def __init__(self, warner: Warner) -> None:
        self._warner = warner
        self._metrics: dict[str, _LateMetric] = {}
        self._previous: tuple[int, frozenset[str]] | None = None
        """Training step and names of the latest late record."""

    def is_late(
        self, step: int, names: Iterable[str], last_step: int, last_names: Container[str], *, has_stepped: bool
    ) -> bool:
        """Return whether a record below the last training step is late, and warn about its metrics if need be.

        It is not if it shares a metric with the last record of the training, or if it repeats the metrics of the
        previous late record and the optimizer moves on (``has_stepped``) without any other record.
        """
        found = frozenset(names)
        telling = found - FILLED_IN or found
        if not telling or any(name in last_names for name in telling):
            self._previous = None
            return False
        previous, self._previous = self._previous, (last_step, telling)
        if has_stepped and previous == (last_step, telling):
            self._previous = None
            return False
        for name in telling:
            self._note(name, step, last_step, last_names)
        return True

    def _note(self, name: str, step: int, last_step: int, last_names: Container[str]) -> None:
        metric = self._metrics.get(name)
        if metric is None:
            if len(self._metrics) >= MAX_METRICS:
                return
            metric = self._metrics[name] = _LateMetric(first_step=step, first_at=last_step)
        metric.count += 1
        # An evaluation that arrives late keeps pace with the training; an epoch does not.
        if metric.count < MIN_LATE or not 0 < 2 * (step - metric.first_step) < last_step - metric.first_at:
            return
        training = "loss" if "loss" in last_names else "the training"
        self._warner.warn(
            f"other_steps {name}",
            f"{name} is logged at steps {metric.first_step} to {step} while {training} is at {last_step}: is that an "
            "epoch? Pass step=the training step to show it there",
        )
