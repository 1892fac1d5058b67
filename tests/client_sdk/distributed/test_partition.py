"""An optimizer that steps flat tensors one after the other has the layers of the model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client_sdk.errors import ConfigurationError
from client_sdk.watch import watch
from tests.client_sdk.distributed.test_zero import assert_same
from tests.client_sdk.distributed.trainings import Net, Outcome, alone, batch, recorded
from tests.client_sdk.distributed.zero_trainings import adamw_in_groups
from tests.support.flat_optimizer import DeepSpeedZeroOptimizer
from tests.support.logged import MakeRun


@pytest.fixture(scope="module", autouse=True)
def _one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("ranks") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def single() -> Outcome:
    """Record of the training with an ordinary optimizer."""
    return alone(optimizer=adamw_in_groups, dtype=torch.float32)


def train(
    dtype: torch.dtype = torch.float32,
    disturb: Callable[[int, DeepSpeedZeroOptimizer], dict[str, Any]] = lambda step, zero: {},
    **options: Any,
) -> Outcome:
    """Train `Net`; ``disturb`` is called before each step and returns arguments for it."""
    outcome = Outcome()
    with recorded(0, outcome) as run:
        model = Net().to(dtype)
        zero = DeepSpeedZeroOptimizer(adamw_in_groups(model.parameters()))
        watch(run, model, zero, precision="exact", **{"every": 1, **options})
        for step in range(4):
            x, y = (each.to(dtype) for each in batch(step))
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            zero.step(**disturb(step, zero))
            run.log({"loss": float(loss.detach())}, step=step)
    return outcome


def test_every_statistic_is_that_of_an_ordinary_optimizer(single: Outcome) -> None:
    found = train()

    assert found.warnings == []
    assert_same(found, single)


def test_weights_in_bfloat16_are_those_that_the_optimizer_keeps() -> None:
    found = train(torch.bfloat16)

    assert found.warnings == []
    moved = np.array(found.column("wide.weight", "update_norm"))
    assert (moved > 0).all()
    assert "swallowed" not in found.statistics  # float32 weights lose no update


def test_a_step_that_ends_early_is_left_out(single: Outcome) -> None:
    found = train(disturb=lambda step, zero: {"leaves_out": 1} if step == 1 else {})

    assert found.warnings == []
    assert found.steps == [0, 2, 3]
    assert found.column("wide.weight", "grad_norm")[0] == pytest.approx(single.column("wide.weight", "grad_norm")[0])


def test_flat_tensors_that_move_in_memory_are_followed(single: Outcome) -> None:
    def disturb(step: int, zero: DeepSpeedZeroOptimizer) -> dict[str, Any]:
        if step == 2:
            zero.move()
        return {}

    found = train(disturb=disturb)

    assert found.warnings == []
    assert_same(found, single)


def test_a_loaded_state_is_followed(single: Outcome) -> None:
    def disturb(step: int, zero: DeepSpeedZeroOptimizer) -> dict[str, Any]:
        zero.optimizer.load_state_dict(zero.optimizer.state_dict())
        return {}

    found = train(disturb=disturb)

    assert found.warnings == []
    assert_same(found, single)


def test_steps_that_are_not_measured_cost_no_gradient() -> None:
    seen = []

    def disturb(step: int, zero: DeepSpeedZeroOptimizer) -> dict[str, Any]:
        seen.append([flat.grad for group in zero.optimizer.param_groups for flat in group["params"]])
        return {}

    found = train(every=2, disturb=disturb)

    assert found.steps == [0, 2]
    assert seen == [[None, None]] * 4


def test_an_unknown_layout_is_refused_with_words(make_run: MakeRun) -> None:
    class FP16_Optimizer:  # noqa: N801 - the name of DeepSpeed's class
        optimizer = torch.optim.SGD([torch.zeros(1)])

    FP16_Optimizer.__module__ = "deepspeed.runtime.fp16.fused_optimizer"
    wrapper: Any = torch.optim.SGD([torch.zeros(1)])
    wrapper.optimizer = FP16_Optimizer()

    for optimizer in (wrapper.optimizer, wrapper):
        with pytest.raises(ConfigurationError, match="cannot measure FP16_Optimizer of DeepSpeed"):
            watch(make_run(), nn.Linear(1, 1), optimizer)


def test_another_model_is_refused_with_words(make_run: MakeRun) -> None:
    zero = DeepSpeedZeroOptimizer(adamw_in_groups(Net().float().parameters()))

    with pytest.raises(ConfigurationError, match="shares no parameter with the model: pass the engine"):
        watch(make_run(), Net(), zero)
