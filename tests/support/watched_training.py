"""Small networks in training with Adam, and the columns of what `watch` recorded of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from client_sdk.protocol import Layout, Record
from client_sdk.run import Run

torch.set_num_threads(1)  # more threads would spend minutes waiting for each other on tiny networks


Make = Callable[[Iterable[Any]], torch.optim.Optimizer]


class Net(nn.Module):
    """A network with all that a probe could disturb: embedding, BatchNorm, dropout, attention, unused parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 12)
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.attend(self.embed(tokens)).mean(1)
        logits: Tensor = self.out(F.dropout(self.norm(hidden), 0.1, self.training))
        return logits


def is_attached(handle: RemovableHandle) -> bool:
    """Return whether the hook of ``handle`` has not been removed."""
    return handle.id in (handle.hooks_dict_ref() or {})


def columns_of(record: Record, layout: Layout) -> dict[str, np.ndarray[Any, Any]]:
    """Return the columns of the record's block, [layers] each, keyed by statistic."""
    assert record.block is not None
    block = np.frombuffer(record.block, "<f4").reshape(len(layout.layers), len(layout.statistics))
    return {name: block[:, column] for column, name in enumerate(layout.statistics)}


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, run: Run | None, steps: Sequence[int]) -> None:
    """Train ``model``, which has 4 inputs, on random data, logging without a closure."""
    for step in steps:
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).pow(2).mean()
        loss.backward()
        optimizer.step()
        if run is not None:
            run.log({"loss": loss}, step=step)


def small() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)
