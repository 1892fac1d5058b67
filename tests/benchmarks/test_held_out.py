"""The held-out trainings share no family with those that constants may be fitted to, and all of them train."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import held_out_trainings, spike_trainings


def test_no_family_is_in_both_sets() -> None:
    own = {case.family for case in spike_trainings.CASES.values()}
    held_out = {case.family for case in held_out_trainings.CASES.values()}
    assert not own & held_out
    assert len(held_out) >= 12


@pytest.mark.parametrize("name", held_out_trainings.CASES)
def test_a_case_trains(name: str) -> None:
    case = held_out_trainings.CASES[name]
    torch.manual_seed(0)
    training = case.build()
    optimizer = case.optimizer(training.model)
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    for step in (1, 2, 3):
        for group in optimizer.param_groups:
            group["lr"] = case.rate(step)
        batch_loss = training.new_batch(step)
        optimizer.zero_grad()
        loss = batch_loss()
        assert batch_loss().item() == pytest.approx(loss.item()), "the closure must repeat the loss of its step"
        loss.backward()
        optimizer.step()
    assert math.isfinite(loss.item())
    assert any(not torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))
