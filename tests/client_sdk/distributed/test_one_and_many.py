"""A model that several ranks train has the same statistics as on one process."""

from __future__ import annotations

import numpy as np
import pytest

from tests.client_sdk.distributed.trainings import Outcome, alone, train
from tests.support.rank_pool import RankPool


def assert_same(found: Outcome, expected: Outcome) -> None:
    """Compare every statistic of every layer at every step, up to rounding to float32."""
    assert found.layers == expected.layers
    assert found.sizes == expected.sizes
    assert found.statistics == expected.statistics
    assert found.steps == expected.steps
    for ours, theirs in zip(found.blocks, expected.blocks, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-9, equal_nan=True)
    norms = [[scalars["grad_norm"] for scalars in outcome.scalars] for outcome in (found, expected)]
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-6)


@pytest.fixture(scope="module")
def single() -> Outcome:
    """Record of the same training on one process."""
    return alone()


@pytest.mark.parametrize(
    "wrap", ["ddp", "ddp-compiled", "fsdp2", "hsdp", "tp", "tp-fsdp2", "fsdp1", "fsdp1-flat", "zero1"]
)
def test_every_statistic_is_that_of_one_process(ranks: RankPool, wrap: str, single: Outcome) -> None:
    found = ranks.run(train, wrap)

    assert [outcome.warnings for outcome in found] == [[]] * ranks.size
    assert_same(found[0], single)


@pytest.mark.parametrize("wrap", ["fsdp1-hybrid", "fsdp1-hybrid-flat"])
def test_copies_of_fsdp1_are_measured_once_and_compared(four: RankPool, wrap: str, single: Outcome) -> None:
    found = four.run(train, wrap)

    assert [outcome.warnings for outcome in found] == [[]] * 4
    assert_same(found[0], single)
    assert [scalars["replicas_differ"] for scalars in found[0].scalars] == [0.0] * 4
