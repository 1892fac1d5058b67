"""Findings about a run, from whatever looked at it. Pure.

`sources` lists the functions that find. Another kind of examination is one more function there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from client_sdk import answers
from client_sdk.vocabulary import LEVEL_RANK, AlertKind, AlertLevel, Cause, EventKind

SETTINGS: Final = frozenset({AlertKind.LR_JUMP, AlertKind.EPS_FLOOR})
"""Kinds of alerts that are about how the training is set up."""
FORECASTS: Final = frozenset({AlertKind.SPIKE_PREDICTED})


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something about a run that people should know."""

    level: str
    """Severity: "watch", "warning" or "critical"."""
    section: str
    """Part of the report: "events", "forecasts", "settings" or "audit"."""
    kind: str
    step: int
    title: str
    message: str
    cause: str | None = None
    """Cause, None if it is unknown."""
    layers: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    outcome: str | None = None
    """Outcome of a forecast: "hit", "early", "late" or "false"; None if it is not settled, and of other findings."""
    evidence: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        """Order of the level: a higher rank is more severe."""
        return LEVEL_RANK[self.level]


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it is stored, with everything that findings are made from."""

    run: answers.RunDetail
    alerts: Sequence[answers.Alert]
    events: Sequence[answers.Event]
    audit: answers.RunAudit = answers.RunAudit()


Source = Callable[[RunFacts], list[Finding]]


def of_alerts(facts: RunFacts) -> list[Finding]:
    """Return a finding for each alert. A forecast that did not come true is a mere watch."""
    return [_of_alert(alert) for alert in facts.alerts]


def of_rollbacks(facts: RunFacts) -> list[Finding]:
    """Return a watch for each time that the training went back to an earlier step."""
    return [
        Finding(
            level=AlertLevel.WATCH.value,
            section="events",
            kind=event.kind,
            step=event.step,
            title=f"The training went back to step {event.step}",
            message="The steps after it were trained again, from a checkpoint or with other data.",
        )
        for event in facts.events
        if event.kind == EventKind.ROLLBACK
    ]


def of_audit(facts: RunFacts) -> list[Finding]:
    """Return a warning for each finding of the audit that the project has not dismissed.

    The audit grades nothing: it speaks only where it is certain.
    """
    return [
        Finding(
            level=AlertLevel.WARNING.value,
            section="audit",
            kind=found.check,
            step=found.step,
            title=found.title,
            message=found.message,
            layers=found.layers,
            advice=(found.advice,) if found.advice else (),
            evidence=dict(found.evidence),
        )
        for found in facts.audit.open_findings
    ]


sources: Final[tuple[Source, ...]] = (of_alerts, of_rollbacks, of_audit)
"""Functions that find something about a run."""


def findings_of(facts: RunFacts) -> list[Finding]:
    """Return everything that was found about a run, the most severe first, then by step."""
    found = [finding for source in sources for finding in source(facts)]
    return sorted(found, key=lambda finding: (-finding.rank, finding.step))


def _of_alert(alert: answers.Alert) -> Finding:
    outcome = None if alert.outcome is None else alert.outcome.result
    section = "settings" if alert.kind in SETTINGS else "forecasts" if alert.kind in FORECASTS else "events"
    return Finding(
        level=AlertLevel.WATCH.value if outcome == "false" else alert.level,
        section=section,
        kind=alert.kind,
        step=alert.step,
        title=alert.title,
        message=alert.message,
        cause=None if alert.cause == Cause.UNKNOWN else alert.cause,
        layers=alert.layers,
        advice=alert.advice,
        outcome=outcome,
        evidence=dict(alert.evidence),
    )
