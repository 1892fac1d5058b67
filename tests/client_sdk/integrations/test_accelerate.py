"""The tracker of Accelerate, with what a real server has stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from client_sdk.integrations.accelerate import SpikewatchTracker
from client_sdk.read import Run

Read = Callable[[], Run]


class Training:
    """A small training whose loop is the user's, with gradients of two batches accumulated."""

    def __init__(self, tracker: Any) -> None:
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True, log_with=tracker, gradient_accumulation_steps=2)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.losses: list[float] = []

    def run(self, steps: range) -> None:
        for step in steps:
            losses: list[Tensor] = []
            for half in range(2):
                inputs = torch.randn(4, 4, generator=torch.Generator().manual_seed(2 * step + half))
                with self.accelerator.accumulate(self.model):
                    loss = ((self.model(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean()
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    losses.append(loss.detach())
            mean = sum(losses[1:], losses[0]) / 2
            self.losses.append(mean.item())
            self.accelerator.log({"loss": mean}, step=step)


def test_losses_layers_and_configuration_are_stored(stored: Read, project: str) -> None:
    bare = Training(None)
    bare.run(range(6))
    tracker = SpikewatchTracker(project, watch={"every": 1})
    watched = Training(tracker)
    watched.accelerator.init_trackers(project, config={"lr": 0.01})
    tracker.watch(watched.model, watched.optimizer)
    watched.run(range(6))
    watched.accelerator.end_training()
    assert all(map(torch.equal, bare.model.parameters(), watched.model.parameters()))
    run = stored()
    loss = run.series("loss")
    assert loss.step.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(loss.value, watched.losses)
    assert run.layers("update_norm").step.tolist() == [0, 1, 2, 3, 4, 5]
    assert (run.summary.config, run.summary.state) == ({"lr": 0.01}, "finished")


def test_tracker_is_found_by_name(stored: Read, project: str) -> None:
    training = Training("spikewatch")
    training.accelerator.init_trackers(project, init_kwargs={"spikewatch": {"name": "by name"}})
    training.accelerator.get_tracker("spikewatch").watch(training.model, training.optimizer)
    training.run(range(3))
    training.accelerator.end_training()
    run = stored()
    assert run.name == "by name"
    assert run.layers("grad_norm").step.tolist() == [0, 1, 2]


def test_a_checkpoint_continues_the_run(stored: Read, project: str) -> None:
    def begin() -> tuple[Training, SpikewatchTracker]:
        tracker = SpikewatchTracker(project)
        training = Training(tracker)
        training.accelerator.init_trackers(project)
        training.accelerator.register_for_checkpointing(tracker)
        return training, tracker

    first, tracker = begin()
    tracker.watch(first.model, first.optimizer)
    first.run(range(4))
    first.accelerator.save_state("state")
    first.accelerator.end_training()
    second, tracker = begin()
    second.accelerator.load_state("state")
    tracker.watch(second.model, second.optimizer)
    second.run(range(4, 6))
    second.accelerator.end_training()
    run = stored()
    assert run.series("loss").step.tolist() == [0, 1, 2, 3, 4, 5]
