"""One injection tried out: the run that watches it, and what its records say about the audit."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from campaigns.audit.fault import Injection, Train
from client_sdk.config import Settings
from client_sdk.protocol import AuditFinding
from client_sdk.run import Run
from tests.support.logged import kept


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Result of a training that was watched."""

    findings: dict[str, tuple[int, AuditFinding]]
    """Step and finding of each check that found something."""
    runs: dict[str, int]
    """Number of times that each check ran."""
    named_after: int | None
    """Steps from the first one at which the fault can be seen until it was named, both included; None if it was not."""
    warnings: dict[str, int]


def try_out(injection: Injection) -> Trial:
    """Train with the fault and return what was found."""
    return watched(injection.train, dict(injection.config), check=injection.check)


def watched(train: Train, config: dict[str, float] | None = None, *, check: str = "", rank: int = 0) -> Trial:
    """Run a training whose records stay on this machine, and return what its audit says of ``check``."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.resolve(
            project="audit", directory=Path(folder), environ={"RANK": str(rank)}, mode="offline", config=config or {}
        )
        run = Run(settings)
        try:
            begins = train(run)
            records = kept(run)
        finally:
            run.finish(0.0)
    findings: dict[str, tuple[int, AuditFinding]] = {}
    runs: dict[str, int] = {}
    for record in records:
        if record.audit is None:
            continue
        runs |= record.audit.runs
        for finding in record.audit.findings:
            findings[finding.check] = (record.step if finding.step is None else finding.step, finding)
    found = findings.get(check)
    return Trial(
        findings=findings,
        runs=runs,
        named_after=None if found is None else found[0] - begins + 1,
        warnings=dict(run.warner.counts),
    )
