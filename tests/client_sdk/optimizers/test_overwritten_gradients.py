"""Gradients that the optimizer's step writes into are those that it was given, or absent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import schedulefree
import torch

from client_sdk.stats import gradients

Train = Callable[..., Any]


def schedule_free(parameters: Any) -> torch.optim.Optimizer:
    optimizer = schedulefree.AdamWScheduleFree(parameters, lr=0.01)
    optimizer.train()
    made: torch.optim.Optimizer = optimizer
    return made


def test_the_norm_is_that_of_the_gradient_before_the_step(train: Train) -> None:
    trained = train(schedule_free)
    for seed in range(5):
        measurement = trained.step(seed)
        true = [float(grad.norm()) for grad in trained.gradients]
        if seed == 0:
            assert "grad_norm" not in measurement.scalars
            assert all(map(math.isnan, trained.column(measurement, "grad_norm")))
            assert all(map(math.isnan, trained.column(measurement, "nonfinite")))
        else:
            assert measurement.scalars["grad_norm"] == pytest.approx(math.hypot(*true), rel=1e-5)
            assert trained.column(measurement, "grad_norm") == pytest.approx(true, rel=1e-5)
            assert trained.column(measurement, "nonfinite") == [0, 0, 0, 0]


def test_what_does_not_fit_into_the_copies_is_summed_before_the_step(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "COPY_BYTES", 100 * 4)  # none but the last bias
    monkeypatch.setattr(gradients, "CHUNK", 16)
    trained = train(schedule_free)
    trained.step(0)
    measurement = trained.step(1)
    true = [float(grad.norm()) for grad in trained.gradients]
    assert trained.column(measurement, "grad_norm") == pytest.approx(true, rel=1e-5)
    assert measurement.scalars["grad_norm"] == pytest.approx(math.hypot(*true), rel=1e-5)
    assert trained.column(measurement, "nonfinite") == [0, 0, 0, 0]
    known = [math.isfinite(value) for value in trained.column(measurement, "rms_ratio")]
    assert not all(known), "it needs gradient and second moment together"
    assert all(map(math.isfinite, trained.column(measurement, "v_rms")))


def test_non_finite_gradients_are_counted_before_the_step(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "COPY_BYTES", 0)
    trained = train(schedule_free)
    trained.step(0)

    def broken() -> None:
        trained.optimizer.step()

    trained.model[0].weight.register_hook(lambda grad: grad.masked_fill(torch.eye(40, 6, dtype=torch.bool), math.inf))
    measurement = trained.step(1, broken)
    assert trained.column(measurement, "nonfinite")[0] == 6


def test_other_optimizers_are_read_after_the_step(train: Train) -> None:
    trained = train(lambda p: torch.optim.AdamW(p, lr=0.01))
    for seed in range(3):
        measurement = trained.step(seed)
        assert measurement.scalars["grad_norm"] == pytest.approx(
            math.hypot(*(float(grad.norm()) for grad in trained.gradients)), rel=1e-5
        )
