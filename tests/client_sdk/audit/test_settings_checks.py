"""The checks of settings speak where a setting cannot be meant, and at no default."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from client_sdk.audit.settings import NORMS, TOTALS, lost_eps, number_among, settings_faults, uncorrected
from client_sdk.optimizers import UpdateRule, kind_of, read_update_rule


def rule(**values: Any) -> UpdateRule:
    return UpdateRule(**{"kind": "adam", "lr": 1e-3, "decay": 0.9, "beta2": 0.999, "eps": 1e-8, **values})


def names(one: UpdateRule, total: float | None = None) -> list[str]:
    return [fault.check for fault in settings_faults([one], total)]


def test_betas_of_common_recipes_pass() -> None:
    for betas in ((0.9, 0.999), (0.9, 0.95), (0.95, 0.95), (0.9, 0.98), (0.5, 0.999), (0.0, 0.9), (0.9, 0.99)):
        assert names(rule(decay=betas[0], beta2=betas[1]), 100_000) == [], betas


def test_beta1_squared_above_beta2_is_named_and_so_is_a_missing_gap() -> None:
    assert names(rule(decay=0.9, beta2=0.81)) == ["betas-coupled"]
    assert names(rule(decay=0.99, beta2=0.985)) == ["betas-coupled"]


def test_a_memory_longer_than_the_run_is_named_unless_the_run_is_a_trial() -> None:
    assert names(rule(beta2=0.9999), 5_000) == ["second-moment-too-long"]
    assert names(rule(beta2=0.999), 100) == []
    assert names(rule(beta2=0.999), 1_000) == []


def test_a_decay_of_a_tenth_of_the_weights_is_named() -> None:
    assert names(rule(lr=1.0, decoupled=0.1)) == ["weight-decay-rate"]
    assert names(rule(lr=1e-3, decoupled=1.0)) == []


def test_eps_that_is_zero_in_the_state_is_named() -> None:
    assert lost_eps(rule(), "torch.float16") is not None
    assert lost_eps(rule(), "torch.float32") is None
    assert lost_eps(rule(eps=1e-6), "torch.float16") is None


def test_updates_without_correction_and_warm_up_are_named() -> None:
    assert uncorrected(rule(is_corrected=False), 1e-3, 1e-3) is not None
    assert uncorrected(rule(is_corrected=False), 1e-4, 1e-3) is None
    assert uncorrected(rule(), 1e-3, 1e-3) is None


def test_a_configuration_that_names_two_numbers_says_nothing() -> None:
    assert number_among({"max_grad_norm": 1.0, "train": {"grad_clip": 0.5}}, NORMS) is None
    assert number_among({"train": {"grad_clip": 0.5}}, NORMS) == 0.5
    assert number_among({"max_steps": -1}, TOTALS) is None
    assert number_among({"max_steps": True}, TOTALS) is None


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "SGD"])
def test_the_defaults_of_torch_pass(name: str) -> None:
    optimizer = getattr(torch.optim, name)([torch.nn.Parameter(torch.ones(2))])
    rules = [read_update_rule(kind_of(optimizer), optimizer, group) for group in optimizer.param_groups]
    assert list(settings_faults(rules, 100_000)) == []
