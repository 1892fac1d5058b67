"""The section of a run's page about the audit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from plotly.utils import PlotlyJSONEncoder

from client_sdk.answers import AuditCheckRuns, AuditFinding, RunAudit
from dashboard.forms.actions import ActionContext, FormAction
from dashboard.pages.run_audit import ACTIONS, contents, section

CHECKS = (
    AuditCheckRuns.of("tied-weights", 4_000, 84_200),
    AuditCheckRuns.of("dead-layer", 210, 84_150),
)
FINDING = AuditFinding.of(
    "tied-weights", message="a and b were one parameter and are 2 now", step=12, evidence={"names": 2, "share": 0.25}
)


def words(components: Any) -> str:
    return json.dumps(components, cls=PlotlyJSONEncoder, ensure_ascii=False)


def test_silence_says_how_much_was_checked_and_when_last() -> None:
    shown = words(contents(RunAudit(checks=CHECKS), "p", "r"))
    assert "2 checks ran 4,210 times; last at step 84,200. They found nothing." in shown
    assert "tied weights stay one tensor: 4,000 times, last at step 84,200" in shown
    assert "Dismiss" not in shown


def test_a_run_that_was_not_checked_says_so() -> None:
    shown = words(contents(RunAudit(), "p", "r"))
    assert "Nothing was checked" in shown
    assert "They found nothing" not in shown


def test_a_finding_has_its_evidence_its_source_and_a_button() -> None:
    shown = words(contents(RunAudit(checks=CHECKS, findings=(FINDING,)), "team/p", "r"))
    assert "Tied weights came apart" in shown
    assert "a and b were one parameter and are 2 now." in shown
    assert "Evidence: names 2 · share 0.25" in shown
    assert "Source: Press & Wolf 2017 (arXiv 1608.05859); transformers, tie_word_embeddings" in shown
    assert "dismiss-finding" in shown
    assert json.dumps("tied-weights\nr\nteam/p")[1:-1] in shown
    assert "They found nothing" not in shown


def test_a_dismissed_finding_is_folded_and_can_be_shown_again() -> None:
    dismissed = AuditFinding.of("tied-weights", message="m", step=12, dismissed=True)
    shown = words(contents(RunAudit(checks=CHECKS, findings=(dismissed,)), "p", "r"))
    assert "1 dismissed in p" in shown
    assert "restore-finding" in shown
    assert "dismiss-finding" not in shown


@pytest.mark.parametrize(("verb", "dismissed"), [("dismiss-finding", True), ("restore-finding", False)])
async def test_a_button_changes_the_project_and_draws_the_section_again(verb: str, dismissed: bool) -> None:
    class Client:
        put: tuple[str, str, bool] | None = None

        async def dismiss_finding(self, project: str, check: str, *, dismissed: bool) -> None:
            self.put = (project, check, dismissed)

        async def audit(self, run_id: str) -> RunAudit:
            assert run_id == "r"
            return RunAudit(checks=CHECKS)

    client: Any = Client()
    action = FormAction(verb=verb, subject="tied-weights\nr\nteam/p", form="", fields={})
    shown = await ACTIONS[verb](action, ActionContext(client=client, now=0.0))
    assert client.put == ("team/p", "tied-weights", dismissed)
    assert "They found nothing" in words(shown["run-audit"]["children"])


def test_the_section_has_its_heading_before_the_data() -> None:
    assert "What was checked" in words(section())
