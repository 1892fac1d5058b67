"""A small decoder-only transformer on Python's own sources: AdamW, warm-up, cosine decay, mini-batch noise.

This is the healthy control of the demo: the loss is noisy and nothing is wrong, so no alert above "watch" may open.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import client_sdk
from server.demo.cases import CHAR_TRANSFORMER, CHAR_TRANSFORMER_STEPS
from server.demo.pace import Pace

WARMUP = 60  # steps
PEAK_LR = 2e-3
CONTEXT = 48  # characters
BATCH = 12
WIDTH = 64
HEADS = 4
SOURCES = ("argparse", "ast", "calendar", "datetime", "doctest", "inspect", "tarfile", "typing", "zipfile")


class Block(nn.Module):
    """A transformer block with pre-norm attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:  # (batch, time, width) -> (batch, time, width)
        batch, time, _ = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(batch, time, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, WIDTH))
        fed: Tensor = self.down(F.gelu(self.up(self.norm_mlp(x))))
        return x + fed


class Decoder(nn.Module):
    """A decoder from characters to the logits of the next character."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, WIDTH)
        self.position = nn.Parameter(torch.randn(CONTEXT, WIDTH) * 0.02)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary)
        nn.init.normal_(self.token.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:  # (batch, time) -> (batch, time, vocabulary)
        logits: Tensor = self.head(self.norm(self.blocks(self.token(ids) + self.position[: ids.shape[1]])))
        return logits


def standard_library_text() -> Tensor:
    """Return the character ids of a few modules of the standard library, which every machine has."""
    library = Path(argparse.__file__).parent
    text = "".join((library / f"{name}.py").read_text(encoding="utf-8") for name in SOURCES)
    return torch.tensor(list(text.encode("ascii", "replace")), dtype=torch.long)


def main() -> None:
    """Train and log to the server that the environment names."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text = standard_library_text()
    model = Decoder(vocabulary=128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda done: min((done + 1) / WARMUP, 0.55 + 0.45 * math.cos(math.pi * done / CHAR_TRANSFORMER_STEPS)),
    )

    client_sdk.init(
        project="demo", name=CHAR_TRANSFORMER, config={"layers": 2, "width": WIDTH, "batch": BATCH, "warmup": WARMUP}
    )
    client_sdk.watch(model, optimizer, every=1, budget=1.0)  # its steps are short, and mostly waiting
    pace = Pace(steps_per_second=9)
    for step in range(1, CHAR_TRANSFORMER_STEPS + 1):
        start = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1))
        window = text[start + torch.arange(CONTEXT + 1)]

        def batch_loss(x: Tensor = window[:, :-1], y: Tensor = window[:, 1:]) -> Tensor:
            return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

        optimizer.zero_grad()
        loss = batch_loss()
        loss.backward()
        optimizer.step()
        schedule.step()
        client_sdk.log({"loss": loss}, step=step, closure=batch_loss)
        pace.wait()
    client_sdk.finish()


if __name__ == "__main__":
    main()
