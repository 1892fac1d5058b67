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


def test_flat_parameters_are_layers_of_their_own(pair: RankPool, single: Outcome) -> None:
    found = pair.run(train, "fsdp1-flat")[0]

    assert found.warnings == []
    assert found.layers == ("_flat_param", "wide._flat_param")
    norms = [[scalars["grad_norm"] for scalars in outcome.scalars] for outcome in (found, single)]
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-6)
    assert np.hypot(*(np.array(single.column(f"wide.{name}", "grad_norm")) for name in ("weight", "bias"))) == (
        pytest.approx(found.column("wide._flat_param", "grad_norm"), rel=1e-5)
    )


@pytest.mark.parametrize("wrap", ["ddp", "ddp-compiled", "fsdp2", "hsdp", "tp", "tp-fsdp2", "fsdp1", "zero1"])
def test_every_statistic_is_that_of_one_process(ranks: RankPool, wrap: str, single: Outcome) -> None:
    found = ranks.run(train, wrap)

    assert [outcome.warnings for outcome in found] == [[]] * ranks.size
    assert_same(found[0], single)
