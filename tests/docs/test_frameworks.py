"""The lines for a Trainer and for Lightning in the README do what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

import client_sdk
from client_sdk.read import Server
from tests.support.server import RunningServer, running_server

ROOT = Path(client_sdk.__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    """A server that the lines find as on its own machine."""
    with running_server(tmp_path / "server") as started:
        monkeypatch.setenv("SPIKEWATCH_URL", started.url)
        monkeypatch.setenv("SPIKEWATCH_TOKEN", started.token)
        monkeypatch.chdir(tmp_path)
        yield started
        client_sdk.finish(0.0)


class Model(nn.Module):
    """A model as the Trainer takes it: it returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.layer(inputs) ** 2).mean()}


class Module(pl.LightningModule):  # type: ignore[misc]  # the library is not type-checked
    """A module of Lightning."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Any) -> Any:
        return (self.layer(batch[0]) ** 2).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _losses(server: RunningServer) -> list[int]:
    """Return the steps of the losses of the only run."""
    reader = Server(server.url, server.token)
    (run,) = reader.runs(project="gpt-small")
    return [int(step) for step in reader.run(run.id).series("loss").step]


def test_the_lines_for_a_trainer_record_every_step(server: RunningServer, tmp_path: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=3, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    data = [{"inputs": torch.randn(2)} for _ in range(8)]
    (lines,) = (block for block in BLOCKS if "integrations.huggingface" in block)
    exec(lines, {"Trainer": Trainer, "model": Model(), "arguments": arguments, "data": data})
    assert _losses(server) == [1, 2, 3]


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # Lightning's own calls of torch
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval")
def test_the_lines_for_lightning_record_every_step(server: RunningServer) -> None:
    loader = DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=4)
    (lines,) = (block for block in BLOCKS if "integrations.lightning" in block)
    exec(lines, {"L": pl, "module": Module(), "loader": loader})
    assert _losses(server) == [0, 1, 2, 3]
