"""The report of a check: what was found about each run, and whether it passes. Pure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from client_sdk.vocabulary import LEVEL_RANK, STAGE_REASONS, AlertLevel
from server.checking.finding import Finding, RunFacts, findings_of

SECTIONS: Final = {
    "events": "What happened",
    "forecasts": "What was forecast",
    "settings": "How it is set up",
    "audit": "What the audit found",
}
"""Titles of the parts of a report, in their order."""
WIDTH: Final = 100  # characters of a line
SHOWN_RUNS: Final = 3
"""Number of runs that are reported in full; the others have one line each."""
SHOWN_FINDINGS: Final = 4
"""Number of findings of each part of a report."""
LISTED_RUNS: Final = 12
VERSION: Final = 1


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found about one run."""

    run_id: str | None
    """Id of the stored run; null where logs were checked, whose runs are not stored."""
    name: str
    project: str
    state: str
    first_step: int | None
    last_step: int | None
    loss: float | None
    """Last loss; null where it is not finite or there is none."""
    loss_name: str | None
    stage: str | None
    not_judged: str | None
    """Why spikes cannot be predicted in the run, None if they can."""
    audited: str | None
    """Sentence that says how much the audit checked, None where it did not run, as in imported logs."""
    worst: str | None
    """Level of the most severe finding, None without findings."""
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, facts: RunFacts, *, is_stored: bool) -> RunReport:
        """Return the report of a run."""
        run, found = facts.run, findings_of(facts)
        firsts = [attempt.first_step for attempt in run.attempts if attempt.first_step is not None]
        return cls(
            run_id=run.id if is_stored else None,
            name=run.title,
            project=run.project,
            state=run.state,
            first_step=min(firsts, default=None),
            last_step=run.last_step,
            loss=run.loss if run.loss is not None and math.isfinite(run.loss) else None,
            loss_name=run.loss_words or None,
            stage=run.stage,
            not_judged=None if run.stage_reason is None else STAGE_REASONS.get(run.stage_reason, run.stage_reason),
            audited=facts.audit.sentence if facts.audit.checks else None,
            worst=found[0].level if found else None,
            findings=tuple(found),
        )


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """Verdict on all runs of a check."""

    fail_on: str
    """Least level of a finding that fails the check."""
    passed: bool
    runs: tuple[RunReport, ...]
    """Reports, the worst run first."""
    version: int = VERSION

    @classmethod
    def of(cls, facts: Sequence[RunFacts], fail_on: AlertLevel, *, is_stored: bool) -> CheckReport:
        """Return the verdict. The runs ``is_stored`` if they can be looked at later."""
        reports = (RunReport.of(one, is_stored=is_stored) for one in facts)
        runs = sorted(reports, key=lambda report: -_rank(report.worst))
        passed = all(_rank(run.worst) < LEVEL_RANK[fail_on] for run in runs)
        return cls(fail_on=fail_on.value, passed=passed, runs=tuple(runs))

    def lines(self) -> Iterator[str]:
        """Yield the report as lines for a terminal, about one screen of them."""
        in_full = [run for run in self.runs if run.findings][:SHOWN_RUNS] or list(self.runs[:1])
        for run in in_full:
            yield from _of_run(run)
            yield ""
        rest = [run for run in self.runs if run not in in_full]
        yield from (_in_one_line(run) for run in rest[:LISTED_RUNS])
        if len(rest) > LISTED_RUNS:
            yield f"… and {len(rest) - LISTED_RUNS} more runs; --json lists all"
        if rest:
            yield ""
        failing = sum(finding.rank >= LEVEL_RANK[self.fail_on] for run in self.runs for finding in run.findings)
        runs = _counted(len(self.runs), "run")
        if self.passed:
            yield f"passed: {runs}, nothing at the level {self.fail_on} or above"
        else:
            yield f"failed: {runs}, {_counted(failing, 'finding')} at the level {self.fail_on} or above"


def _of_run(run: RunReport) -> Iterator[str]:
    loss = "" if run.loss is None else f", {run.loss_name or 'loss'} {run.loss:.4g} at the end"
    steps = "no steps" if run.last_step is None else f"steps {run.first_step or 0:,} to {run.last_step:,}"
    where = f" (run {run.run_id} in {run.project}, {run.state})" if run.run_id is not None else ""
    yield f"{run.name}{where}: {steps}{loss}"
    for section, title in SECTIONS.items():
        found = [finding for finding in run.findings if finding.section == section]
        if not found:
            continue
        yield f"  {title}:"
        for finding in found[:SHOWN_FINDINGS]:
            yield from _of_finding(finding)
        if len(found) > SHOWN_FINDINGS:
            yield f"    … and {len(found) - SHOWN_FINDINGS} more"
    if not run.findings:
        yield "  Nothing was found."
    if run.audited is not None:
        yield f"  Audit: {run.audited}."
    if run.not_judged is not None:
        yield f"  Note: {run.not_judged}."


def _of_finding(finding: Finding) -> Iterator[str]:
    outcome = f" [{finding.outcome}]" if finding.outcome is not None else ""
    where = "" if f"step {finding.step}" in finding.title else f"step {finding.step}: "
    yield f"    {finding.level:<8}  {where}{finding.title}{outcome}"
    details = [] if finding.cause is None else [f"cause: {finding.cause}"]
    if finding.layers:
        details.append(f"layers: {', '.join(finding.layers[:3])}")
    if finding.advice:
        details.append(f"try: {finding.advice[0]}")
    for detail in details:
        yield from textwrap.wrap(detail, WIDTH, initial_indent=" " * 14, subsequent_indent=" " * 16, max_lines=2)


def _in_one_line(run: RunReport) -> str:
    found = "nothing found" if run.worst is None else f"{run.worst}: {run.findings[0].title}"
    return f"{run.name}{f' (run {run.run_id})' if run.run_id is not None else ''}: {found}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _rank(level: str | None) -> int:
    return -1 if level is None else LEVEL_RANK[level]
