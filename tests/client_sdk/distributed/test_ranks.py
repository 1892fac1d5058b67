"""Ranks that measure together agree on who takes part and when, and survive each other."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from tests.client_sdk.distributed.disturbances import (
    accumulate,
    break_measuring,
    cannot_connect,
    die,
    flip_a_bit,
    forget_to_reduce,
    partial_gradients,
    partly_sharded,
    pipeline,
    unused_parameters,
    watch_twice,
)
from tests.client_sdk.distributed.test_one_and_many import assert_same
from tests.client_sdk.distributed.trainings import Outcome, alone, train
from tests.support.rank_pool import RankPool


@pytest.fixture
def mortal() -> Iterator[RankPool]:
    """Ranks that a test may end."""
    pool = RankPool(3)
    yield pool
    pool.close()


def test_training_ends_in_the_same_bits(pair: RankPool) -> None:
    for wrap in ("ddp", "fsdp2"):
        watched = pair.run(train, wrap)
        bare = pair.run(train, wrap, watchers=())
        for ours, theirs in zip(watched, bare, strict=True):
            assert ours.weights.keys() == theirs.weights.keys()
            assert all(np.array_equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)


def test_a_rank_that_watches_a_shard_alone_records_no_layer(pair: RankPool) -> None:
    found = pair.run(train, "fsdp2", watchers=(0,))

    assert found[0].blocks == []
    assert [sorted(scalars) for scalars in found[0].scalars][-1] == ["loss", "lr", "stability_limit", "step_time"]
    (warning,) = found[0].warnings
    assert "holds only a part of the model, and the other ranks did not call watch()" in warning


def test_a_rank_that_watches_a_copy_alone_records_its_layers(pair: RankPool) -> None:
    found = pair.run(train, "ddp", watchers=(0,))

    assert [outcome.warnings for outcome in found] == [[], []]
    assert_same(found[0], alone())
    assert "replicas_differ" not in found[0].scalars[0]


def test_sharding_across_ranks_of_which_one_does_not_watch_is_not_measured(four: RankPool) -> None:
    found = four.run(train, "hsdp", watchers=(0, 2, 3))

    # Ranks 2 and 3 hold a complete copy; that of ranks 0 and 1 has no second half.
    assert_same(found[0], alone())
    assert "replicas_differ" not in found[0].scalars[0]

    found = four.run(train, "fsdp2", watchers=(0, 2, 3))

    assert found[0].blocks == []
    assert "not every rank that holds a part of it called watch()" in found[0].warnings[0]


def test_every_rank_may_log_and_one_sends_the_layers(pair: RankPool) -> None:
    found = pair.run(train, "fsdp2", loggers=(0, 1))

    assert_same(found[0], alone())
    assert found[1].blocks == []
    assert all("grad_norm" not in scalars for scalars in found[1].scalars)


def test_another_rank_may_be_the_one_that_logs(pair: RankPool) -> None:
    found = pair.run(train, "fsdp2", loggers=(1,))

    expected = alone()
    assert found[1].steps == [1, 2, 3]  # at the first step nobody had logged
    assert np.allclose(found[1].blocks, expected.blocks[1:], rtol=2e-5, equal_nan=True)


def test_the_rank_that_logs_decides_what_is_measured(pair: RankPool) -> None:
    found = pair.run(train, "fsdp2", steps=8, every=3)

    expected = alone(steps=8, every=3)
    assert found[0].steps == expected.steps == [0, 3, 6]
    assert_same_blocks(found[0], expected)


@pytest.mark.parametrize("every", [1, 3])
def test_sparse_records_have_layers(pair: RankPool, every: int) -> None:
    found = pair.run(train, "fsdp2", steps=30, log_every=10, every=every)[0]

    expected = alone(steps=30, log_every=10, every=every)
    assert found.steps == expected.steps == [9, 19, 29]
    assert_same_blocks(found, expected)


def test_an_adapting_rhythm_is_that_of_all_ranks(pair: RankPool) -> None:
    found = pair.run(train, "fsdp2", steps=50, every="auto", budget=math.inf)

    assert [outcome.warnings for outcome in found] == [[], []]
    assert found[0].steps[:16] == list(range(16))
    assert found[0].steps[-1] >= 50 - 16  # at least every 16th step is measured
    expected = alone(steps=50)
    norms = found[0].column("thin.weight", "grad_norm")
    every_step = expected.column("thin.weight", "grad_norm")
    assert norms == pytest.approx([every_step[step] for step in found[0].steps], rel=1e-5)


def test_scalars_of_the_gradient_are_those_of_the_whole_model(pair: RankPool) -> None:
    for wrap, is_whole in (("ddp", True), ("fsdp2", False)):
        found = pair.run(train, wrap, steps=16)[0]
        assert any("period_two" in scalars for scalars in found.scalars) == is_whole


def test_histograms_of_copies_are_complete(pair: RankPool) -> None:
    expected = alone().histograms
    found = pair.run(train, "ddp")[0].histograms

    assert found.keys() == expected.keys()
    for which, counts in expected.items():
        assert np.array_equal(found[which], counts)


def test_layers_of_shards_have_no_histogram(pair: RankPool) -> None:
    found = pair.run(partly_sharded)[0]

    assert_same(found, alone())
    counted = {layer: bool(row.any()) for layer, row in zip(found.layers, found.histograms["update"], strict=True)}
    assert [layer for layer, is_counted in counted.items() if not is_counted] == ["wide.weight", "wide.bias"]


@pytest.mark.parametrize("disturb", [flip_a_bit, forget_to_reduce])
def test_a_rank_that_differs_is_named(four: RankPool, disturb: object) -> None:
    found = four.run(train, "ddp", steps=20, disturb=disturb)[0]

    differ = [scalars.get("replicas_differ") for scalars in found.scalars]
    if disturb is flip_a_bit:
        assert differ[:10] == [0] * 10
        assert differ[10] is not None
        assert differ[10] >= 1  # every 10th measurement compares all weights
        assert any("the weights of" in warning and "on rank 1 differ" in warning for warning in found.warnings)
        assert "since step 10" in found.warnings[0]
    else:
        assert differ[:3] == [0, 0, 8]
        assert "the gradients of wide.weight" in found.warnings[0]
        assert "on rank 1 differ from those of the other ranks since step 2" in found.warnings[0]


def test_two_ranks_cannot_say_which_of_them_is_wrong(pair: RankPool) -> None:
    found = pair.run(train, "ddp", disturb=forget_to_reduce)[0]

    assert "differ between the ranks" in found.warnings[0]


def test_a_rank_that_dies_does_not_hang_the_others(mortal: RankPool) -> None:
    found = mortal.run(die, dead=(1,))

    assert found[0].steps in ([0], [0, 1])  # the sum of the last step may have been under way
    assert len(found[0].scalars) == 6
    (warning,) = found[0].warnings
    assert "layer statistics of the distributed training end" in warning
    assert len(found[2].warnings) == 1


def test_shards_that_cannot_be_summed_are_not_measured(pair: RankPool) -> None:
    found = pair.run(cannot_connect)[0]

    assert found.blocks == []
    assert len(found.scalars) == 4
    assert "no route to host" in found.warnings[0]


def test_a_step_that_one_rank_cannot_measure_is_lost_and_no_other(pair: RankPool) -> None:
    found = pair.run(break_measuring)

    assert found[0].steps == [0, 2, 3]
    assert found[0].warnings == []
    assert len(found[1].warnings) == 1


def test_accumulated_gradients_are_measured_once_a_step(pair: RankPool) -> None:
    found = pair.run(accumulate)[0]

    expected = alone(steps=3)
    assert found.warnings == []
    assert found.steps == [0, 1, 2]
    assert_same_blocks(found, expected)


def test_stages_of_a_pipeline_are_one_model(four: RankPool) -> None:
    found = four.run(pipeline)[3]

    assert found.layers == tuple(f"stage{rank}.{name}" for rank in range(4) for name in ("weight", "bias"))
    assert found.sizes == (6, 2, 8, 2, 10, 2, 12, 2)
    for rank in range(4):
        norms = found.column(f"stage{rank}.weight", "grad_norm")
        assert norms == pytest.approx([(rank + 1) * (2 * (3 + rank)) ** 0.5] * 2)
    total = sum((rank + 1) ** 2 * (2 * (3 + rank) + 2) for rank in range(4)) ** 0.5
    assert found.scalars[-1]["grad_norm"] == pytest.approx(total)


def test_different_tensors_under_one_name_are_left_out(pair: RankPool) -> None:
    found = pair.run(pipeline, share_names=True)

    assert found[1].blocks == [] or np.isnan(found[1].blocks).all()
    assert "the ranks hold different values under this name" in found[1].warnings[0]


def test_parameters_without_gradient_are_absent(pair: RankPool) -> None:
    found = pair.run(unused_parameters)[0]

    assert found.steps == [0, 1, 2]
    assert np.isnan(found.column("norm.weight", "grad_norm")).tolist() == [False, True, False]
    assert np.isfinite(found.column("wide.weight", "grad_norm")).all()


def test_partial_gradients_are_left_out_with_a_word(pair: RankPool) -> None:
    found = pair.run(partial_gradients)[0]

    assert np.isnan(found.column("partial", "grad_norm")).all()
    assert found.column("whole", "grad_norm") == [1.0, 1.0]
    assert "partial sums over the ranks of tensor parallelism" in found.warnings[0]


def test_a_training_may_be_watched_again(pair: RankPool) -> None:
    found = pair.run(watch_twice)

    expected = alone(steps=3)
    for outcome in found[0]:
        assert outcome.warnings == []
        assert_same(outcome, expected)


def assert_same_blocks(found: Outcome, expected: Outcome) -> None:
    """Compare the blocks of two runs up to rounding to float32.

    Whether `period_two` is known between measured steps depends on what following a step cost, so it is compared where
    both runs know it.
    """
    assert found.layers == expected.layers
    at = expected.statistics.index("period_two")
    blocks, others = np.array(found.blocks), np.array(expected.blocks)
    is_unknown = np.isnan(blocks[..., at]) | np.isnan(others[..., at])
    blocks[..., at][is_unknown] = others[..., at][is_unknown] = np.nan
    np.testing.assert_allclose(blocks, others, rtol=2e-5, atol=1e-9, equal_nan=True)
