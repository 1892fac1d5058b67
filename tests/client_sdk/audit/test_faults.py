"""Each fault is put into a real training, and is named within its stated number of steps, and nothing else is."""

from __future__ import annotations

import pytest
import torch

from campaigns.audit.fault import Injection
from campaigns.audit.faults import FAULTS
from campaigns.audit.trial import try_out
from client_sdk.audit_checks import AUDIT_CHECKS

torch.set_num_threads(1)


@pytest.mark.parametrize("injection", FAULTS, ids=lambda injection: f"{injection.number}-{injection.train.__name__}")
def test_a_fault_is_named_within_its_steps_and_no_other_is(injection: Injection) -> None:
    trial = try_out(injection)
    assert set(trial.findings) == {injection.check}
    assert trial.named_after is not None
    assert 1 <= trial.named_after <= injection.within
    assert trial.runs[injection.check] >= 1
    assert "audit" not in trial.warnings, "a check raised an exception"


def test_the_stated_steps_are_those_of_the_catalogue() -> None:
    assert {injection.check: injection.within for injection in FAULTS} == {
        injection.check: AUDIT_CHECKS[injection.check].within for injection in FAULTS
    }


def test_a_finding_says_what_was_found_with_numbers_and_where() -> None:
    (found,) = (injection for injection in FAULTS if injection.train.__name__ == "dead_tensors")
    step, finding = try_out(found).findings["dead-parameters"]
    assert step == 0
    assert finding.layers == ("4.weight", "4.bias")
    assert finding.evidence == {"dead": 2, "replaced": 2}
    assert "4.weight, 4.bias" in finding.message
