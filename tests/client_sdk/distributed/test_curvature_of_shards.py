"""Curvature of a model that is divided among ranks is that of one process, and no rank waits for another in vain."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from tests.client_sdk.distributed.curvatures import (
    alone_with_closure,
    no_rank_has_one,
    raise_on_every_rank,
    raise_on_rank_1,
    rank_0_has_one,
    rank_1_has_none_later,
    signs,
    slow_adam,
    train_with_closure,
)
from tests.client_sdk.distributed.sharded_loops import Loop, fully_sharded_loop, replicated_loop
from tests.client_sdk.distributed.test_curvature_of_ranks import MEASURED, assert_like_one, names_of, steps_with
from tests.client_sdk.distributed.trainings import Outcome
from tests.support.rank_pool import RankPool


@pytest.fixture(scope="module")
def single() -> Outcome:
    """Record of the same training on one process, which measures at every step, exactly."""
    return alone_with_closure(16)


@pytest.fixture(scope="module")
def usual(pair: RankPool) -> Outcome:
    """Record of a usual loop of FSDP2 on two ranks."""
    outcome: Outcome = pair.run(fully_sharded_loop, "kept-gathered", has_closure=True)[0]
    return outcome


@pytest.mark.parametrize("wrap", ["fsdp2", "tp"])
def test_curvature_is_that_of_one_process(pair: RankPool, wrap: str, single: Outcome) -> None:
    found = pair.run(train_with_closure, wrap, patience=1e9)

    assert [outcome.warnings for outcome in found] == [[], []]
    assert names_of(found[0]) == set(MEASURED)
    assert names_of(found[1]) == set()  # the run has every value once
    assert len(steps_with(found[0], "lambda_max")) >= 4
    assert_like_one(found[0], single)


@pytest.mark.parametrize("wrap", ["fsdp2", "hsdp", "tp-fsdp2"])
def test_four_ranks_measure_together(four: RankPool, wrap: str, single: Outcome) -> None:
    found = four.run(train_with_closure, wrap, loggers=(0, 1, 2, 3), steps=10, patience=1e9)  # some shards are empty

    assert [outcome.warnings for outcome in found] == [[]] * 4
    assert len(steps_with(found[0], "lambda_max")) >= 2
    assert_like_one(found[0], single)


def test_unstable_directions_are_followed_over_all_shards(pair: RankPool) -> None:
    options: dict[str, Any] = {"curvature": "finite-difference", "optimizer": slow_adam, "batches": 1, "patience": 1e9}
    found = pair.run(train_with_closure, "fsdp2", **options)

    # Ranks that hold all of the model make the same measurements, from another random vector.
    whole = pair.run(train_with_closure, "ddp", **options)[0]
    compared = steps_with(found[0], "mode_loss")
    assert len(compared) >= 4
    assert "mode_growth" in found[0].scalars[compared[-1]]
    assert steps_with(found[1], "mode_loss") == []
    for step in compared:
        ours, theirs = found[0].scalars[step], whole.scalars[step]
        assert ours["mode_loss"] == pytest.approx(theirs["mode_loss"], rel=2e-3)
        assert ours["mode_share"] == pytest.approx(theirs["mode_share"], rel=2e-3)


def test_single_products_lead_to_the_eigenvalue_of_one_process(pair: RankPool) -> None:
    options: dict[str, Any] = {
        "budget": 1e6,
        "large_budget": 1e9,
        "batches": 1,
        "optimizer": slow_adam,
        "patience": 1e9,
    }
    found = pair.run(train_with_closure, "fsdp2", steps=50, **options)

    single = alone_with_closure(50, batches=1, optimizer=slow_adam)
    assert [outcome.warnings for outcome in found] == [[], []]
    assert len(steps_with(found[0], "lambda_max")) >= 2
    assert len(steps_with(found[0], "lambda_grad")) >= 2
    assert_like_one(found[0], single)


def test_a_closure_may_compute_micro_batches(pair: RankPool, single: Outcome) -> None:
    found = pair.run(train_with_closure, "fsdp2", micro_batches=2, steps=10, patience=1e9)[0]

    assert len(steps_with(found, "lambda_max")) >= 2
    assert_like_one(found, single)


@pytest.mark.parametrize("wrap", ["fsdp2", "tp"])
def test_training_ends_in_the_same_bits(pair: RankPool, wrap: str) -> None:
    measured = pair.run(train_with_closure, wrap, patience=1e9)
    bare = pair.run(train_with_closure, wrap, has_closure=no_rank_has_one)

    assert len(steps_with(measured[0], "lambda_max")) >= 4
    assert names_of(bare[0]) == set()
    for ours, theirs in zip(measured, bare, strict=True):
        assert all(np.array_equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)


@pytest.mark.parametrize("loop", get_args(Loop))
def test_fsdp_goes_on_as_it_was(pair: RankPool, loop: Loop) -> None:
    measured = pair.run(fully_sharded_loop, loop, has_closure=True)
    bare = pair.run(fully_sharded_loop, loop, has_closure=False)

    assert [outcome.warnings for outcome in measured] == [[], []]
    assert len(steps_with(measured[0], "lambda_grad")) >= 2
    for ours, theirs in zip(measured, bare, strict=True):
        assert all(np.array_equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)


def test_layers_that_are_not_sharded_count_once(pair: RankPool, usual: Outcome) -> None:
    found = pair.run(fully_sharded_loop, "partly", has_closure=True)[0]

    compared = steps_with(found, "lambda_max")
    assert len(compared) >= 2
    for step in compared:
        ours, theirs = found.scalars[step], usual.scalars[step]
        for name in ("lambda_grad", "lambda_step"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6)
        # The first random vector is another one, and each search may miss a little of the direction.
        assert ours["lambda_max"] == pytest.approx(theirs["lambda_max"], rel=5e-3)


def test_a_process_may_shard_for_itself_alone(usual: Outcome) -> None:
    pool = RankPool(1)
    try:
        found = pool.run(fully_sharded_loop, "kept-gathered", has_closure=True)[0]
    finally:
        pool.close()

    assert found.warnings == []
    assert len(steps_with(found, "lambda_max")) >= 4
    for step in steps_with(usual, "lambda_grad"):
        assert found.scalars[step]["lambda_grad"] == pytest.approx(usual.scalars[step]["lambda_grad"], rel=1e-6)


@pytest.mark.parametrize("returns_dtensor", [False, True])
def test_gradients_that_are_partial_sums_are_added(pair: RankPool, returns_dtensor: bool) -> None:
    found = pair.run(replicated_loop, returns_dtensor=returns_dtensor)[0]

    single = alone_with_closure(8, optimizer=slow_adam, batches=1)
    assert len(steps_with(found, "lambda_max")) >= 2
    assert_like_one(found, single)


def test_gradients_that_are_summed_are_those_of_the_summed_loss(pair: RankPool, usual: Outcome) -> None:
    found = pair.run(fully_sharded_loop, "summed", has_closure=True)[0]

    compared = steps_with(found, "lambda_max")
    assert len(compared) >= 2
    for step in compared:
        for name in ("lambda_max", "lambda_grad", "lambda_step"):
            assert found.scalars[step][name] == pytest.approx(usual.scalars[step][name], rel=1e-6)


def test_without_a_closure_on_every_rank_nothing_is_measured_and_nobody_waits(pair: RankPool) -> None:
    found = pair.run(train_with_closure, "fsdp2", patience=1e9, has_closure=rank_0_has_one)

    assert [names_of(outcome) for outcome in found] == [set(), set()]
    (warning,) = found[0].warnings
    assert "log() has a closure on rank 0 and none on rank 1" in warning
    assert len(found[0].steps) == 16


def test_a_rank_that_loses_its_closure_is_not_waited_for_again(pair: RankPool) -> None:
    found = pair.run(train_with_closure, "fsdp2", has_closure=rank_1_has_none_later, patience=0.05)

    assert len(found[0].steps) == 16
    assert all(step < 8 for step in steps_with(found[0], "lambda_max"))


@pytest.mark.parametrize(("wrap", "after_forwards"), [("fsdp2", 0), ("fsdp2", 1), ("fsdp2", 2), ("tp", 1)])
def test_a_closure_that_raises_on_one_rank_stops_that_measurement_alone(
    pair: RankPool, wrap: str, after_forwards: int, single: Outcome
) -> None:
    found = pair.run(
        train_with_closure,
        wrap,
        disturb=raise_on_rank_1,
        disturb_after=after_forwards,
        micro_batches=2,
        patience=1e9,
    )

    measured = steps_with(found[0], "lambda_max")
    assert min(measured) < 4
    assert max(measured) > 8
    assert not [step for step in measured if 4 <= step < 8]
    assert found[0].warnings == []
    (warning,) = found[1].warnings
    assert "the closure raised ValueError: no batch" in warning
    assert_like_one(found[0], single)


@pytest.mark.parametrize("layer", ["wide", "out"])
def test_a_layer_that_raises_on_one_rank_stops_that_measurement_alone(
    pair: RankPool, layer: str, single: Outcome
) -> None:
    found = pair.run(train_with_closure, "fsdp2", disturb=raise_on_rank_1, disturb_in=layer, patience=1e9)

    bare = pair.run(train_with_closure, "fsdp2", has_closure=no_rank_has_one)
    measured = steps_with(found[0], "lambda_max")
    assert min(measured) < 4
    assert max(measured) > 8
    assert not [step for step in measured if 4 <= step < 8]
    assert [len(outcome.warnings) for outcome in found] == [0, 1]
    assert_like_one(found[0], single)
    for ours, theirs in zip(found, bare, strict=True):
        assert all(np.array_equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)


def test_a_closure_that_raises_on_every_rank_stops_that_measurement_alone(pair: RankPool) -> None:
    found = pair.run(train_with_closure, "fsdp2", disturb=raise_on_every_rank, patience=1e9)

    assert max(steps_with(found[0], "lambda_max")) > 8
    assert [len(outcome.warnings) for outcome in found] == [1, 1]


def test_a_rank_that_leaves_is_not_waited_for(pair: RankPool) -> None:
    found = pair.run(train_with_closure, "fsdp2", leaves_at=7, patience=1e9)

    measured = steps_with(found[0], "lambda_max")
    assert measured
    assert max(measured) < 7
    assert found[0].warnings == []


def test_without_a_known_limit_the_step_alone_is_measured(pair: RankPool) -> None:
    found = pair.run(train_with_closure, "fsdp2", optimizer=signs, steps=12, patience=1e9)[0]

    measured = steps_with(found, "lambda_step")
    assert len(measured) >= 2
    assert "lambda_max" not in names_of(found)
    assert_like_one(found, alone_with_closure(12, optimizer=signs, budget=1e9))


def test_double_backward_is_refused_with_words(pair: RankPool) -> None:
    found = pair.run(train_with_closure, "fsdp2", curvature="exact", steps=8, patience=1e9)

    assert names_of(found[0]) == set()
    assert "double backward does not reach parameters that are DTensors" in found[0].warnings[0]
