"""Trainings of a small network through the SDK, which take a second or two: real runs for the tests of pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import client_sdk
from tests.support.embedded import Embedded

KICK = 100.0
"""Factor on the learning rate of one step that throws the weights off, after which the loss spikes."""


class SmallTraining:
    """One training with Adam on a regression of 64 points, step by step. Only one exists at a time."""

    def __init__(
        self,
        server: Embedded,
        directory: Path,
        *,
        name: str,
        run_id: str | None = None,
        lr: float = 0.003,
        seed: int = 0,
        width: int = 16,
        project: str = "nets",
        tags: tuple[str, ...] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin the run. Its configuration has the learning rate, the seed, the width, and what ``config`` adds."""
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self._inputs, self._targets = torch.randn(64, 8), torch.randn(64, 1)
        self._model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 1))
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=lr)
        known = {"lr": lr, "seed": seed, "model": {"width": width}, **(config or {})}
        run = client_sdk.init(
            project=project, name=name, run_id=run_id, config=known, tags=tags, url=server.url, token=server.token,
            directory=directory,
        )  # fmt: skip
        client_sdk.watch(self._model, self._optimizer, every=1, budget=1.0)
        self.run_id = run.id
        self.steps = 0

    def advance(self, steps: int, *, kick_at: int | None = None) -> SmallTraining:
        """Train on, and wait until the server has everything. ``kick_at``: step with a huge learning rate."""
        group = self._optimizer.param_groups[0]
        for step in range(self.steps, self.steps + steps):
            usual = group["lr"]
            group["lr"] = usual * KICK if step == kick_at else usual
            self._optimizer.zero_grad()
            loss = self._loss()
            loss.backward()
            self._optimizer.step()
            group["lr"] = usual
            client_sdk.log({"loss": loss, "tokens": 64.0 * (step + 1)}, step=step, closure=self._loss)
        self.steps += steps
        assert client_sdk.flush(20)
        return self

    def finish(self) -> str:
        """End the run and return its id."""
        client_sdk.finish(20)
        return self.run_id

    def _loss(self) -> torch.Tensor:
        return F.mse_loss(self._model(self._inputs), self._targets)
