"""The promise of the README: an alert reaches the training loop before the spike comes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import client_sdk
from tests.support.embedded import Embedded, embedded

STEPS = 860
"""Number of training steps; without an intervention this network spikes around step 740."""
JUMP = 1e3
"""Ratio of a loss to the median of the hundred before it that is a spike; this one has ten orders of magnitude."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with embedded(tmp_path_factory.mktemp("server")) as started:
        yield started


class Training:
    """The tanh network of the demo, trained as fast as the server commits its records."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(1)
        inputs = torch.randn(200, 50)
        direction = torch.randn(50, 1) / 50**0.5
        targets = torch.sin(3 * inputs @ direction) + inputs @ direction
        self.model = nn.Sequential(nn.Linear(50, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01, betas=(0.9, 0.999))
        self.step = 0
        self.batch_loss: Callable[[], torch.Tensor] = lambda: F.mse_loss(self.model(inputs), targets)

    def run(self, server: Embedded, spool: Path, rescue: Callable[[client_sdk.TrainingAlert], None]) -> int | None:
        """Train until the loss jumps. Return the step of the jump, None if the loss never jumps."""
        client_sdk.init(project="rescue", url=server.url, token=server.token, directory=spool)
        client_sdk.watch(self.model, self.optimizer, budget=math.inf)  # on a machine of any speed
        client_sdk.on_alert(rescue)
        losses: list[float] = []
        try:
            for self.step in range(1, STEPS + 1):
                self.optimizer.zero_grad()
                loss = self.batch_loss()
                loss.backward()
                self.optimizer.step()
                client_sdk.log({"loss": loss}, step=self.step, closure=self.batch_loss)
                if self.step % 10 == 0:
                    assert client_sdk.flush()  # keeps pace with the server, as a training of realistic speed does
                before = sorted(losses[-100:])
                losses.append(loss.item())
                if len(before) == 100 and losses[-1] > JUMP * before[50]:
                    return self.step
            return None
        finally:
            client_sdk.finish()


@pytest.mark.timeout(180)
def test_a_callback_saves_a_checkpoint_before_the_spike(
    server: Embedded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training, path = Training(), tmp_path / "checkpoint.pt"

    def rescue(alert: client_sdk.TrainingAlert) -> None:
        if alert.kind == "spike-predicted" and alert.change == "opened":
            torch.save({"step": training.step, "model": training.model.state_dict()}, path)

    spike = training.run(server, tmp_path / "spool", rescue)
    assert spike is not None, "the network did not spike, so the test proves nothing"
    saved = torch.load(path)
    assert saved["step"] < spike - 10
    restored = Training()
    restored.model.load_state_dict(saved["model"])
    assert restored.batch_loss().item() < 1e-9, "the checkpoint must be from before the spike"
    with capsys.disabled():
        print(f"\ncheckpoint at step {saved['step']}, spike at step {spike}: lead {spike - saved['step']} steps\n")


@pytest.mark.timeout(180)
def test_a_callback_that_lowers_the_learning_rate_prevents_the_spike(server: Embedded, tmp_path: Path) -> None:
    training = Training()
    received: list[str] = []

    def rescue(alert: client_sdk.TrainingAlert) -> None:
        received.append(alert.change)
        if alert.kind == "spike-predicted" and alert.change == "opened":
            for group in training.optimizer.param_groups:
                group["lr"] *= 0.3

    assert training.run(server, tmp_path / "spool", rescue) is None
    assert received[0] == "opened"
    assert received.count("opened") == received.count("resolved") == 1
