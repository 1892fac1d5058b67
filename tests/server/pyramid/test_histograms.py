"""Hartigan's dip of histograms, and their encoding."""

from __future__ import annotations

import numpy as np
import pytest

from client_sdk.protocol import Layout
from server.pipeline.packing import pack
from server.pyramid.histograms import DIP_POINTS, dips_of
from tests.support.writer import histogram, record


def counts_of(values: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(np.clip(values, -3, 3), bins=64, range=(-3, 3))
    return counts.astype(np.uint32)


def test_two_modes_have_a_greater_dip_than_one() -> None:
    generator = np.random.default_rng(0)
    bell = generator.normal(size=20_000)
    modes = np.concatenate([generator.normal(-1, 0.2, 10_000), generator.normal(1, 0.2, 10_000)])
    one, two = dips_of(np.array([counts_of(bell), counts_of(modes)]))
    assert one < 0.02
    assert two > 0.1


def test_the_dip_does_not_depend_on_the_number_of_parameters() -> None:
    generator = np.random.default_rng(1)
    shape = np.array([counts_of(np.concatenate([generator.normal(-1, 0.3, 2_000), generator.normal(1, 0.3, 2_000)]))])
    few, many = dips_of(shape)[0], dips_of(shape * 1_000)[0]
    assert many == pytest.approx(few, abs=2 / DIP_POINTS)


def test_an_empty_histogram_has_no_dip() -> None:
    assert np.isnan(dips_of(np.zeros((1, 64), dtype=np.uint32))).all()


def test_a_single_parameter_has_a_dip() -> None:
    counts = np.zeros((1, 64), dtype=np.uint32)
    counts[0, 5] = 1
    assert np.isfinite(dips_of(counts)).all()


def test_the_dip_stands_in_for_a_bimodality_that_was_sent() -> None:
    layout = Layout(id=0, layers=("only",), statistics=("bimodality",))
    sent = record(0, block=[[0.2]], histograms=(histogram("ratio", [[1] * 64]),))
    (draft,) = pack(1, [sent], {0: layout}, {0: 1})
    assert draft.columns.blocks[0].statistics["bimodality"].item() == dips_of(np.ones((1, 64), np.uint32)).item()
