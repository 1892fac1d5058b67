"""Layer statistics are rounded within the promised error, and counts are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from client_sdk.errors import ConfigurationError
from client_sdk.precision import RELATIVE_ERROR, compact, compact_block
from client_sdk.watch import watch
from tests.support.logged import MakeRun
from tests.support.logged import kept as records

ANY = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=2), elements=st.floats(width=32))


@given(ANY)
def test_a_compact_value_is_within_its_relative_error(values: NDArray[np.float32]) -> None:
    kept = compact(values)
    assert kept.dtype == np.float32
    assert kept.shape == values.shape
    finite = np.isfinite(values)
    np.testing.assert_array_equal(kept[~finite], values[~finite])
    exact = values[finite].astype(np.float64)
    assert np.all(np.abs(kept[finite].astype(np.float64) - exact) <= RELATIVE_ERROR * np.abs(exact))
    assert np.array_equal(np.signbit(kept[finite]), np.signbit(values[finite]))


@given(ANY)
def test_compact_values_stay_as_they_are(values: NDArray[np.float32]) -> None:
    once = compact(values)
    np.testing.assert_array_equal(compact(once), once)


def test_a_compact_value_has_twelve_bits_less() -> None:
    values = np.random.default_rng(0).lognormal(size=1_000).astype(np.float32)
    assert not np.any(compact(values).view(np.uint32) & 0xFFF)


def test_whole_numbers_up_to_4096_are_exact() -> None:
    counts = np.arange(4_097, dtype=np.float32)
    np.testing.assert_array_equal(compact(counts), counts)


def test_counts_of_a_block_are_exact() -> None:
    block = np.array([[1.00001, 4_099.0], [np.nan, 1_000_001.0]], dtype=np.float32)
    kept = compact_block(block, ("grad_norm", "nonfinite"))
    assert kept[:, 1].tolist() == [4_099.0, 1_000_001.0]
    assert kept[0, 0] == 1.0
    assert np.isnan(kept[1, 0])


def test_watch_sends_compact_statistics_by_default(make_run: MakeRun) -> None:
    sent = []
    every: tuple[dict[str, Any], ...] = ({}, {"precision": "exact"})
    for options in every:
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 4)
        optimizer = torch.optim.Adam(model.parameters())
        run = make_run(mode="offline")
        watch(run, model, optimizer, **options)
        model(torch.randn(3, 8)).sum().backward()
        optimizer.step()
        run.log({"loss": 1.0 + 2.0**-30})
        (record,) = records(run)
        assert record.scalars["loss"] == 1.0 + 2.0**-30
        assert record.block is not None
        sent.append(np.frombuffer(record.block, "<f4"))
    assert not np.any(sent[0].view(np.uint32) & 0xFFF)
    np.testing.assert_array_equal(sent[0], compact(sent[1]))
    assert np.any(sent[0] != sent[1])


def test_an_unknown_precision_is_refused(make_run: MakeRun) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigurationError, match="'compact' or 'exact'"):
        watch(make_run(mode="offline"), model, torch.optim.SGD(model.parameters(), lr=0.1), precision="half")
