"""`log` accepts numbers of many types, and skips anything else with one warning."""

from __future__ import annotations

import logging
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from client_sdk.metrics import BadValueError, MetricReader, as_step
from client_sdk.warner import Warner


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (True, 1.0),
        (0.0, 0.0),
        (-0.5, -0.5),
        (math.inf, math.inf),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7.0),
        (np.bool_(True), 1.0),
        (np.array(2.5), 2.5),
        (np.array([[2.5]]), 2.5),
        (Decimal("0.25"), 0.25),
        (Fraction(1, 4), 0.25),
        (torch.tensor(3.5), 3.5),
        (torch.tensor([3.5]), 3.5),
        (torch.tensor(3, dtype=torch.int8), 3.0),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor(True), 1.0),
        (torch.tensor(2.0, requires_grad=True) * 2, 4.0),
    ],
    ids=repr,
)
def test_number_is_accepted(value: Any, expected: float) -> None:
    warner = Warner()
    scalars, deferred = MetricReader(warner).read({"x": value})
    assert scalars == {"x": expected}
    assert type(scalars["x"]) is float
    assert not deferred
    assert not warner.counts


def test_nan_is_kept() -> None:
    scalars, _ = MetricReader(Warner()).read({"x": float("nan"), "y": torch.tensor(float("nan"))})
    assert all(math.isnan(value) for value in scalars.values())
    assert len(scalars) == 2


@pytest.mark.parametrize(
    "value",
    ["0.5", b"1", None, [1.0], {"a": 1}, 1j, object(), 10**400, np.array([1.0, 2.0]), torch.zeros(2), torch.zeros(0)],
    ids=lambda value: type(value).__name__,
)
def test_other_values_are_skipped_with_one_warning(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    warner = Warner()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            scalars, _ = MetricReader(warner).read({"bad": value, "good": 1.0})
            assert scalars == {"good": 1.0}
    assert warner.counts == {"bad_metric": 3}
    assert len(caplog.records) == 1
    assert "'bad'" in caplog.text


@pytest.mark.parametrize(
    "name", ["x" * 10_000, "", "a\nb", "\ud800", 3, None, ("a",)], ids=lambda name: repr(name)[:12]
)
def test_bad_name_is_skipped_with_one_short_warning(name: Any, caplog: pytest.LogCaptureFixture) -> None:
    warner = Warner()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            reader = MetricReader(warner)
            assert reader.checked(reader.read({name: 1.0, "good": 1.0})[0]) == {"good": 1.0}
            assert reader.read({name: 1, "good": 1})[0] == {"good": 1.0}
    assert warner.counts == {"bad_name": 4}
    assert len(caplog.records) == 1
    assert "skipped" in caplog.text
    assert len(caplog.text) < 400


def test_tensor_on_a_device_is_left_for_later() -> None:
    tensor = torch.zeros((), device="meta", requires_grad=True)
    scalars, deferred = MetricReader(Warner()).read({"loss": tensor, "n": 1})
    assert scalars == {"n": 1.0}
    assert not deferred["loss"].requires_grad


def test_tensor_on_a_device_must_have_one_element() -> None:
    warner = Warner()
    assert MetricReader(warner).read({"loss": torch.zeros(3, device="meta")}) == ({}, {})
    assert warner.counts == {"bad_metric": 1}


@pytest.mark.parametrize(
    ("value", "step"), [(0, 0), (2**63 - 1, 2**63 - 1), (np.int32(4), 4), (10.0, 10), (torch.tensor(5), 5)], ids=repr
)
def test_step_is_accepted(value: Any, step: int) -> None:
    assert as_step(value) == step
    assert type(as_step(value)) is int


@pytest.mark.parametrize(
    "value",
    [-1, 2**63, 10**400, 1.5, math.nan, math.inf, "3", [3], torch.zeros(2), torch.zeros((), device="meta")],
    ids=lambda value: repr(value)[:20],
)
def test_other_steps_are_refused_with_a_short_message(value: Any) -> None:
    with pytest.raises(BadValueError) as caught:
        as_step(value)
    assert len(str(caught.value)) < 120
