"""The section of a run's page that says what the audit checked, when last, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dash import html
from dash.development.base_component import Component

from client_sdk.answers import AuditFinding, RunAudit
from dashboard import ids
from dashboard.forms.actions import ActionContext, FormAction, Handler, Properties
from dashboard.forms.attributes import aria
from dashboard.forms.fields import button
from dashboard.numbers import exact

SEPARATOR: Final = "\n"
"""Separator of check, run and project in the subject of an action; check and run have no line break."""


def section() -> Component:
    """Return the section before its first data."""
    return html.Section(
        [
            html.Div(
                html.Div(
                    [
                        html.H2("What was checked"),
                        html.Span("whether training does what it is meant to do", className="note"),
                    ],
                    className="panel-title",
                ),
                className="panel-head",
            ),
            html.Div(html.P("Loading …", className="note"), id=ids.RUN_AUDIT, className="audit-body"),
        ],
        className="card panel audit",
        **aria(label="audit"),
    )


def contents(audit: RunAudit, project: str, run_id: str) -> list[Component]:
    """Return the findings, then the number of checks and the last step, with the checks to unfold."""
    shown = [_finding(finding, project, run_id) for finding in audit.open_findings]
    sentence = audit.sentence[0].upper() + audit.sentence[1:] + "."
    if audit.checks and not shown:
        sentence += " They found nothing."
    parts: list[Component] = [html.P(sentence, className="audit-sentence"), *shown]
    dismissed = [finding for finding in audit.findings if finding.dismissed]
    if dismissed:
        rows = [
            html.Li(
                [
                    f"{finding.title} at step {finding.step:,}. ",
                    _button("Show again", "restore", finding, project, run_id),
                ]
            )
            for finding in dismissed
        ]
        parts.append(
            html.Details([html.Summary(f"{len(dismissed)} dismissed in {project}"), html.Ul(rows)], className="note")
        )
    if audit.checks:
        checks = [
            html.Li(
                f"{check.claim}: {check.runs:,} time{'' if check.runs == 1 else 's'}, last at step {check.last_step:,}"
            )
            for check in audit.checks
        ]
        parts.append(html.Details([html.Summary("All checks"), html.Ul(checks)], className="note"))
    return parts


def _finding(finding: AuditFinding, project: str, run_id: str) -> Component:
    evidence = " · ".join(
        f"{name.replace('_', ' ')} {exact(value) if isinstance(value, float) else value}"
        for name, value in finding.evidence.items()
    )
    return html.Article(
        [
            html.H3(f"{finding.title}"),
            html.P([html.B(f"Step {finding.step:,}: "), f"{finding.message}."]),
            html.P(finding.advice),
            html.P(f"Evidence: {evidence}", className="note") if evidence else None,
            html.P(f"Source: {finding.source}", className="note") if finding.source else None,
            _button("Dismiss", "dismiss", finding, project, run_id),
        ],
        className="finding",
    )


def _button(word: str, verb: str, finding: AuditFinding, project: str, run_id: str) -> Component:
    return button(word, f"{verb}-finding", subject=f"{finding.check}{SEPARATOR}{run_id}{SEPARATOR}{project}")


async def _dismiss(action: FormAction, context: ActionContext) -> Properties:
    """Dismiss the findings of a check for a project."""
    return await _put(action, context, dismissed=True)


async def _restore(action: FormAction, context: ActionContext) -> Properties:
    """Show the findings of a check again."""
    return await _put(action, context, dismissed=False)


async def _put(action: FormAction, context: ActionContext, *, dismissed: bool) -> Properties:
    check, _, rest = action.subject.partition(SEPARATOR)
    run_id, _, project = rest.partition(SEPARATOR)
    await context.client.dismiss_finding(project, check, dismissed=dismissed)
    audit = await context.client.audit(run_id)
    return {ids.RUN_AUDIT: {"children": contents(audit, project, run_id)}}


ACTIONS: Final[Mapping[str, Handler]] = {"dismiss-finding": _dismiss, "restore-finding": _restore}
"""Handlers keyed by verb."""
