"""Curvature of a model that several ranks train is that of one process, and no rank waits for another in vain."""

from __future__ import annotations

from typing import Any

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
from tests.client_sdk.distributed.trainings import Outcome
from tests.support.rank_pool import RankPool

MEASURED = ("lambda_grad", "lambda_max", "lambda_step", "mode_loss", "stability_ratio", "lambda_max_age")


@pytest.fixture(scope="module")
def single() -> Outcome:
    """Record of the same training on one process, which measures at every step."""
    return alone_with_closure(40)


def names_of(outcome: Outcome) -> set[str]:
    """Return the names of the curvature's scalars that were recorded."""
    return {name for scalars in outcome.scalars for name in scalars if name in MEASURED}


def steps_with(outcome: Outcome, name: str) -> list[int]:
    """Return the steps whose record has a scalar."""
    return [step for step, scalars in enumerate(outcome.scalars) if name in scalars]


def assert_like_one(found: Outcome, single: Outcome) -> None:
    """Compare every value with that of one process, which may have another error of λ_max."""
    for step, (ours, theirs) in enumerate(zip(found.scalars, single.scalars, strict=False)):
        for name in ("lambda_grad", "lambda_step"):
            if name in ours and name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-6), (step, name)
        if "lambda_max" in ours and "lambda_max" in theirs:
            error = 2 * (ours["lambda_max_error"] + theirs["lambda_max_error"]) + 1e-6
            assert ours["lambda_max"] == pytest.approx(theirs["lambda_max"], rel=error), step


@pytest.mark.parametrize("wrap", ["ddp", "ddp-compiled"])
def test_curvature_is_that_of_one_process(pair: RankPool, wrap: str, single: Outcome) -> None:
    # Ranks that all have the whole batch make the same measurements as those that share it.
    whole = pair.run(train_with_closure, "plain")
    found = pair.run(train_with_closure, wrap)

    assert [outcome.warnings for outcome in found] == [[], []]
    assert names_of(found[0]) == set(MEASURED)
    assert names_of(found[1]) == set()  # the run has every value once
    for ours, theirs in zip(found[0].scalars, whole[0].scalars, strict=True):
        assert {name: ours[name] for name in MEASURED if name in ours} == pytest.approx(
            {name: theirs[name] for name in MEASURED if name in theirs}, rel=1e-6
        )
    assert len(steps_with(found[0], "lambda_max")) >= 4
    assert_like_one(found[0], single)


def test_single_products_lead_to_the_eigenvalue_of_one_process(pair: RankPool) -> None:
    found = pair.run(train_with_closure, steps=60, budget=1e6, large_budget=1e9, batches=1, optimizer=slow_adam)

    single = alone_with_closure(60, batches=1, optimizer=slow_adam)
    assert [outcome.warnings for outcome in found] == [[], []]
    assert len(steps_with(found[0], "lambda_max")) >= 3
    assert len(steps_with(found[0], "lambda_grad")) >= 3
    assert_like_one(found[0], single)


def test_a_closure_may_compute_micro_batches(pair: RankPool, single: Outcome) -> None:
    found = pair.run(train_with_closure, micro_batches=2)[0]

    assert len(steps_with(found, "lambda_max")) >= 4
    assert_like_one(found, single)


def test_a_watched_module_may_be_inside_the_wrapper(pair: RankPool, single: Outcome) -> None:
    found = pair.run(train_with_closure, is_inner_watched=True)

    assert [outcome.warnings for outcome in found] == [[], []]
    assert len(steps_with(found[0], "lambda_max")) >= 4
    assert_like_one(found[0], single)


def test_the_wrapper_exchanges_nothing_within_a_closure(pair: RankPool) -> None:
    # Otherwise its buffers and unused parameters would be, which waits for a rank whose closure raises.
    measured = pair.run(train_with_closure, "ddp-normalised", disturb=raise_on_rank_1)
    bare = pair.run(train_with_closure, "ddp-normalised", has_closure=no_rank_has_one)

    assert max(steps_with(measured[0], "lambda_max")) > 8
    for ours, theirs in zip(measured, bare, strict=True):
        assert all(np.array_equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)


def test_four_ranks_measure_together(four: RankPool, single: Outcome) -> None:
    found = four.run(train_with_closure, loggers=(0, 1, 2, 3), steps=10)

    assert [outcome.warnings for outcome in found] == [[]] * 4
    assert len(steps_with(found[0], "lambda_max")) >= 2
    assert_like_one(found[0], single)


def test_training_ends_in_the_same_bits(pair: RankPool) -> None:
    for method in ("exact", "finite-difference"):
        measured = pair.run(train_with_closure, curvature=method)
        bare = pair.run(train_with_closure, has_closure=no_rank_has_one)
        assert len(steps_with(measured[0], "lambda_max")) >= 4
        assert names_of(bare[0]) == set()
        for ours, theirs in zip(measured, bare, strict=True):
            assert all(np.array_equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)


def test_without_a_closure_on_every_rank_nothing_is_measured_and_nobody_waits(pair: RankPool) -> None:
    for loggers in ((0,), (0, 1)):
        found = pair.run(train_with_closure, patience=1e9, loggers=loggers, has_closure=rank_0_has_one)

        assert [names_of(outcome) for outcome in found] == [set(), set()]
        (warning,) = found[0].warnings
        assert "log() has a closure on rank 0 and none on rank 1" in warning
        assert found[1].warnings == []
        assert len(found[0].steps) == 16  # layers as usual


def test_a_rank_that_loses_its_closure_is_not_waited_for_again(pair: RankPool) -> None:
    found = pair.run(train_with_closure, has_closure=rank_1_has_none_later, patience=0.05)

    assert steps_with(found[0], "lambda_max")
    assert max(steps_with(found[0], "lambda_max")) < 8
    assert len(found[0].steps) == 16


def test_a_closure_that_raises_on_one_rank_stops_that_measurement_alone(pair: RankPool, single: Outcome) -> None:
    found = pair.run(train_with_closure, disturb=raise_on_rank_1, steps=24, patience=1e9)

    measured = steps_with(found[0], "lambda_max")
    assert min(measured) < 4
    assert max(measured) > 8
    assert not [step for step in measured if 4 <= step < 8]
    assert found[0].warnings == []
    (warning,) = found[1].warnings
    assert "the closure raised ValueError: no batch" in warning
    assert_like_one(found[0], single)


def test_a_closure_that_raises_on_every_rank_stops_that_measurement_alone(pair: RankPool) -> None:
    found = pair.run(train_with_closure, disturb=raise_on_every_rank, steps=24, patience=1e9)

    assert max(steps_with(found[0], "lambda_max")) > 8
    assert [len(outcome.warnings) for outcome in found] == [1, 1]


@pytest.mark.parametrize("leaves_at", [6, 7, 8])
def test_a_rank_that_leaves_is_not_waited_for(pair: RankPool, leaves_at: int) -> None:
    found = pair.run(train_with_closure, leaves_at=leaves_at, patience=1e9)

    measured = steps_with(found[0], "lambda_max")
    assert measured
    assert max(measured) < leaves_at
    assert found[0].warnings == []


@pytest.mark.parametrize("wrap", ["zero1", "fsdp1", "fsdp1-flat"])
def test_a_divided_model_is_refused_with_words(pair: RankPool, wrap: str) -> None:
    found = pair.run(train_with_closure, wrap, patience=1e9)

    assert names_of(found[0]) == set()
    assert len(found[0].steps) == 16
    (warning,) = found[0].warnings
    assert "this model is divided among the ranks" in warning


def test_processes_with_a_model_each_measure_by_themselves(pair: RankPool, single: Outcome) -> None:
    found = pair.run(train_with_closure, "plain", distributed=False)

    for outcome in found:
        assert outcome.warnings == []
        assert len(steps_with(outcome, "lambda_max")) >= 14
        assert_like_one(outcome, single)


@pytest.mark.parametrize("wrap", ["ddp", "fsdp2"])
def test_losses_alone_give_the_critical_sharpness_of_the_whole_batch(pair: RankPool, wrap: str) -> None:
    options: dict[str, Any] = {
        "curvature": "forward",
        "optimizer": slow_adam,
        "batches": 1,
        "steps": 22,
        "patience": 1e9,
    }
    found = pair.run(train_with_closure, wrap, **options)

    # Ranks that all have the whole batch make the same measurements as those that share it.
    whole = pair.run(train_with_closure, "plain", **options)[0]
    assert [outcome.warnings for outcome in found] == [[], []]
    assert steps_with(found[0], "critical_sharpness")
    assert steps_with(found[1], "critical_sharpness") == []
    for ours, theirs in zip(found[0].scalars, whole.scalars, strict=True):
        for name in ("critical_sharpness", "critical_sharpness_error", "lambda_step"):
            assert (name in ours) == (name in theirs)
            assert ours.get(name, 0.0) == pytest.approx(theirs.get(name, 0.0), rel=1e-6)


@pytest.mark.parametrize("wrap", ["ddp", "fsdp2"])
def test_the_search_for_it_begins_anew_after_a_closure_has_raised_on_one_rank(pair: RankPool, wrap: str) -> None:
    options: dict[str, Any] = {
        "curvature": "forward",
        "optimizer": slow_adam,
        "batches": 1,
        "steps": 28,
        "patience": 1e9,
    }
    found = pair.run(train_with_closure, wrap, disturb=raise_on_rank_1, **options)

    assert found[0].warnings == []
    (warning,) = found[1].warnings
    assert "the closure raised ValueError: no batch" in warning
    assert steps_with(found[0], "critical_sharpness")


def test_without_a_known_limit_the_step_alone_is_measured(pair: RankPool) -> None:
    found = pair.run(train_with_closure, optimizer=signs)[0]

    single = alone_with_closure(optimizer=signs, budget=1e9)
    measured = steps_with(found, "lambda_step")
    assert len(measured) >= 4
    assert "lambda_max" not in names_of(found)
    assert_like_one(found, single)
