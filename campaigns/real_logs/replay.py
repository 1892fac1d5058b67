"""Replay of a log through the detectors and the alerts of the product, one record at a time.

Replayed is what the server does with each record of a run: `DetectorSuite` and `AlertLifecycle`. A message is an alert
of level warning or above, which is what a person is notified of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from campaigns.real_logs.coincidences import LossLog
from campaigns.real_logs.logs import Log
from server.alerts.lifecycle import AlertLifecycle
from server.detectors.detector_suite import DetectorSuite
from server.models import AlertLevel, Outlier, Verdict


@dataclass(kw_only=True)
class Told:
    """One alert over its whole life."""

    kind: str
    opened_step: int
    named_step: int
    """Step that the alert names as the beginning: at its first message, or at its opening if it never was one."""
    level: str
    """Highest level of the alert."""
    cause: str
    """Latest cause of the alert."""
    message_step: int | None = None
    """Step at which the alert first was a message, that is of level warning or above; None if it never was."""
    message_record: int | None = None
    """Position in the log of the record at which the alert first was a message."""
    last_step: int
    """Step at which the alert was last opened, changed or closed."""

    @property
    def is_message(self) -> bool:
        """Whether a person was notified of the alert."""
        return self.message_step is not None


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A log with what the product said about it."""

    kind: str
    name: str
    steps: int
    records: tuple[int, ...]
    """Step of each record."""
    has_gradients: bool
    """Whether the log has gradient norms."""
    alerts: tuple[Told, ...]
    """Alerts in the order of their opening."""
    loss_log: LossLog | None = None
    """Losses and outliers, for a log that has a loss at every step; None for any other log."""


def replay(log: Log) -> Replayed:
    """Return what the product says about a log."""
    suite, lifecycle = DetectorSuite(), AlertLifecycle(log.name)
    alerts: dict[str, Told] = {}
    outliers = []
    for number, sample in enumerate(log.samples):
        verdict = suite.update(sample)
        if verdict.outlier is not None:
            outliers.append(verdict.outlier)
        for alert in lifecycle.apply(verdict, sample.time, sample.attempt):
            told = alerts.get(alert.id)
            if told is None:
                told = alerts[alert.id] = Told(
                    kind=alert.kind,
                    opened_step=alert.step,
                    named_step=_named(verdict, alert.kind, alert.step),
                    level=alert.level,
                    cause=alert.cause,
                    last_step=alert.step,
                )
            told.level, told.cause, told.last_step = alert.level, alert.cause, sample.step
            if told.message_step is None and alert.level != AlertLevel.WATCH:
                told.message_step, told.message_record = sample.step, number
                told.named_step = _named(verdict, alert.kind, told.named_step)
    return Replayed(
        kind=log.kind,
        name=log.name,
        steps=log.steps,
        records=tuple(sample.step for sample in log.samples),
        has_gradients=any("grad_norm" in sample.scalars for sample in log.samples),
        alerts=tuple(alerts.values()),
        loss_log=_loss_log(log, tuple(outliers)),
    )


def _loss_log(log: Log, outliers: tuple[Outlier, ...]) -> LossLog | None:
    steps = tuple(sample.step for sample in log.samples)
    losses = tuple(sample.scalars.get("loss", math.nan) for sample in log.samples)
    if log.steps != len(steps) or not all(map(math.isfinite, losses)):
        return None
    return LossLog(name=log.name, steps=steps, losses=losses, outliers=outliers)


def _named(verdict: Verdict, kind: str, otherwise: int) -> int:
    """Return the step that the finding of this kind names as the beginning."""
    return next((finding.step for finding in verdict.findings if finding.kind == kind), otherwise)
