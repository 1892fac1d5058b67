"""The Trainer on several processes, each of which measures the curvature of its own batches with the others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.client_sdk.distributed.test_curvature_of_ranks import assert_like_one, steps_with
from tests.client_sdk.distributed.trainings import Outcome
from tests.client_sdk.integrations.trainer_ranks import train_by_trainer
from tests.support.rank_pool import RankPool


@pytest.fixture(scope="module")
def two() -> Iterator[RankPool]:
    """Process group of two ranks."""
    pool = RankPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def one() -> Iterator[Outcome]:
    """Record of the same training on one process."""
    pool = RankPool(1)
    yield pool.run(train_by_trainer)[0]
    pool.close()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_curvature_is_that_of_one_process(two: RankPool, one: Outcome, accumulate: int) -> None:
    found = two.run(train_by_trainer, accumulate=accumulate)

    assert [outcome.warnings for outcome in found] == [[], []]
    assert len(steps_with(found[0], "lambda_max")) >= 3
    assert len(steps_with(one, "lambda_max")) >= 9
    assert steps_with(found[1], "lambda_max") == []
    assert_like_one(found[0], one)


def test_training_ends_in_the_same_bits(two: RankPool) -> None:
    measured, bare = two.run(train_by_trainer), two.run(train_by_trainer, curvature=False)

    for ours, theirs in zip(measured, bare, strict=True):
        assert all(np.array_equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)
