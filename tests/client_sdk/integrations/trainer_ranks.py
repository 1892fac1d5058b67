"""A training of the Trainer on several processes, as a case of `RankPool`."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from client_sdk.integrations.huggingface import SpikewatchCallback
from tests.client_sdk.distributed.trainings import Outcome, recorded


class Regression(nn.Module):
    """A model that returns its loss, as those of transformers do."""

    def __init__(self) -> None:
        """Create the layers in float64."""
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss of a batch."""
        out = self.net(x)
        return {"loss": nn.functional.mse_loss(out, labels), "logits": out}


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Sixty-four rows of three numbers and a target."""

    def __len__(self) -> int:
        """Return their number."""
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one of them."""
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(3, generator=generator, dtype=torch.float64)
        return {"x": x, "labels": torch.sin(2 * x.sum(0, keepdim=True))}


class InOrder(Trainer):  # type: ignore[misc]  # the library is not type-checked
    """A Trainer that does not shuffle, so that the ranks share the batches of one process."""

    def _get_train_sampler(self, *arguments: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def train_by_trainer(rank: int, size: int, *, accumulate: int = 1, curvature: bool = True) -> Outcome:
    """Train for twelve steps of eight rows, which the ranks share, and return what this rank recorded."""
    outcome = Outcome()
    environment = {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "localhost"}
    with (
        tempfile.TemporaryDirectory() as directory,
        recorded(rank, outcome) as run,
        patch.dict("os.environ", environment),
        patch("client_sdk.active_run", lambda: run),
    ):
        callback = SpikewatchCallback(curvature=curvature, watch={"every": 1, "curvature_every": 1, "budget": math.inf})
        arguments = TrainingArguments(
            output_dir=str(Path(directory)), use_cpu=True, max_steps=12, learning_rate=1e-2, max_grad_norm=0.0,
            lr_scheduler_type="constant", per_device_train_batch_size=8 // size // accumulate, disable_tqdm=True,
            gradient_accumulation_steps=accumulate, save_strategy="no", logging_steps=100, report_to="none",
            remove_unused_columns=False,
        )  # fmt: skip
        model = Regression()
        InOrder(model, arguments, train_dataset=Rows(), callbacks=[callback]).train()
        outcome.weights = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    return outcome
