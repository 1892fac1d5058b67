"""Healthy trainings that come close to a fault have no finding."""

from __future__ import annotations

import pytest

from campaigns.audit.healthy import CONTROLS
from campaigns.audit.trial import watched


@pytest.mark.parametrize("name", [name for name in CONTROLS if name != "warmed up"])
def test_a_healthy_training_has_no_finding(name: str) -> None:
    trial = watched(CONTROLS[name])
    assert [finding.message for _, finding in trial.findings.values()] == []
    assert trial.runs, "no check has run"
    assert "audit" not in trial.warnings, "a check raised an exception"
