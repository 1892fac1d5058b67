"""A model that DeepSpeed's ZeRO divides among ranks has the same statistics as on one process."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from tests.client_sdk.distributed.trainings import Outcome, alone
from tests.client_sdk.distributed.zero_trainings import CLIP, adamw_in_groups, gathered, refused, train_zero
from tests.support.rank_pool import PRELOADED, RankPool

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]
STAGES = pytest.mark.parametrize("stage", [1, 2, 3])


@pytest.fixture(scope="session", autouse=True)
def _preloaded() -> None:
    """Import DeepSpeed once for all ranks, if no pool of the session has started yet."""
    if "deepspeed" not in PRELOADED:
        PRELOADED.append("deepspeed")


@pytest.fixture(scope="module")
def single() -> Outcome:
    """Record of the same training on one process, in float32, which is what DeepSpeed keeps."""
    return alone(optimizer=adamw_in_groups, dtype=torch.float32)


@pytest.fixture(scope="module")
def one() -> Iterator[RankPool]:
    """Process group of a single rank."""
    pool = RankPool(1)
    yield pool
    pool.close()


def assert_same(found: Outcome, expected: Outcome) -> None:
    """Compare every statistic of every layer at every step, up to the rounding of a training in float32."""
    assert found.layers == expected.layers
    assert found.sizes == expected.sizes
    assert found.statistics == expected.statistics
    assert found.steps == expected.steps
    for ours, theirs in zip(found.blocks, expected.blocks, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-6, equal_nan=True)
    norms = [[scalars["grad_norm"] for scalars in outcome.scalars] for outcome in (found, expected)]
    np.testing.assert_allclose(norms[0], norms[1], rtol=2e-5)
    rates = [[scalars["lr"] for scalars in outcome.scalars] for outcome in (found, expected)]
    assert rates[0] == rates[1]


@STAGES
def test_every_statistic_is_that_of_one_process(ranks: RankPool, stage: int, single: Outcome) -> None:
    found = ranks.run(train_zero, stage)

    assert [outcome.warnings for outcome in found] == [[]] * ranks.size
    assert_same(found[0], single)
    assert found[0].histograms == {}


@pytest.mark.parametrize("given", ["engine", "module", "inner"])
@pytest.mark.parametrize("stage", [2, 3])
def test_watch_takes_what_a_user_has_in_hand(pair: RankPool, stage: int, given: str, single: Outcome) -> None:
    found = pair.run(train_zero, stage, given=given)

    assert [outcome.warnings for outcome in found] == [[], []]
    assert_same(found[0], single)


@pytest.mark.parametrize(
    ("stage", "zero"),
    [
        (1, {"round_robin_gradients": True}),
        (2, {"offload_optimizer": {"device": "cpu"}}),
        (3, {"sub_group_size": 30}),
        (3, {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}),
        (3, {"stage3_param_persistence_threshold": 0}),
    ],
)
def test_options_of_zero_change_nothing(pair: RankPool, stage: int, zero: dict[str, Any], single: Outcome) -> None:
    found = pair.run(train_zero, stage, configuration={"zero": zero})

    assert [outcome.warnings for outcome in found] == [[], []]
    assert_same(found[0], single)


@STAGES
def test_accumulated_gradients_are_measured_once_a_step(pair: RankPool, stage: int, single: Outcome) -> None:
    found = pair.run(train_zero, stage, accumulate=2)[0]

    assert_same(found, single)


@STAGES
def test_gradients_are_those_that_the_optimizer_received(pair: RankPool, stage: int, single: Outcome) -> None:
    found = pair.run(train_zero, stage, configuration={"gradient_clipping": CLIP})[0]

    norms = [scalars["grad_norm"] for scalars in found.scalars]
    assert all(scalars["grad_norm"] > CLIP for scalars in single.scalars)
    np.testing.assert_allclose(norms, CLIP, rtol=1e-4)


@STAGES
def test_weights_in_bfloat16_are_measured_in_float32(pair: RankPool, stage: int) -> None:
    found, truths = pair.run(gathered, stage)[0]

    assert found.warnings == []
    for at, name in enumerate(("weight_norm", "update_norm")):
        for layer in found.layers:
            expected = [truth[layer][at] for truth in truths]
            np.testing.assert_allclose(found.column(layer, name), expected, rtol=2e-4)


@STAGES
def test_training_ends_in_the_same_bits(pair: RankPool, stage: int) -> None:
    watched, bare = (pair.run(train_zero, stage, watchers=watchers)[0].weights for watchers in ((0, 1), ()))

    assert watched.keys() == bare.keys()
    for name, value in watched.items():
        np.testing.assert_array_equal(value, bare[name])


@STAGES
def test_a_rank_that_watches_its_part_alone_records_no_layer(pair: RankPool, stage: int) -> None:
    found = pair.run(train_zero, stage, watchers=(0,))[0]

    assert found.blocks == []
    assert "this rank holds only a part of the model, and the other ranks did not call watch()" in found.warnings[0]


@STAGES
def test_a_single_process_is_measured_alone(one: RankPool, stage: int, single: Outcome) -> None:
    found = one.run(train_zero, stage, has_closure=True)[0]

    assert_same(found, single)
    assert found.warnings == [
        "spikewatch: curvature is not measured with DeepSpeed, whose weights and state are divided"
    ]


@pytest.mark.parametrize("stage", [1, 3])
def test_weights_that_are_not_the_optimizers_are_refused(pair: RankPool, stage: int) -> None:
    for words in pair.run(refused, stage):
        assert "wide.weight has other values than its part of the optimizer" in words


def test_layers_may_be_grouped_across_the_groups_of_the_optimizer(pair: RankPool) -> None:
    found = pair.run(train_zero, 3, group="module")[0]
    expected = alone(optimizer=adamw_in_groups, dtype=torch.float32, group="module")

    assert found.layers == ("wide", "thin", "norm", "out")
    assert_same(found, expected)
