"""A decoder-only transformer in the shape of GPT-2, with random tokens, for benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Size:
    """Dimensions of a model, and the batch of a step."""

    blocks: int
    width: int
    heads: int
    vocabulary: int
    context: int
    tokens: int
    """Tokens of a step on a CPU."""
    tokens_cuda: int
    """Tokens of a step on a GPU."""


SIZES: Final = {
    "10M": Size(blocks=6, width=384, heads=6, vocabulary=96, context=256, tokens=1024, tokens_cuda=65_536),
    "124M": Size(blocks=12, width=768, heads=12, vocabulary=50_304, context=1024, tokens=256, tokens_cuda=32_768),
    "1.3B": Size(blocks=24, width=2048, heads=16, vocabulary=50_304, context=2048, tokens=64, tokens_cuda=16_384),
}
"""Sizes by their number of parameters."""


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.before_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(mixed)
        after: Tensor = x + self.down(F.gelu(self.up(self.before_mlp(x))))
        return after


class GPT(nn.Module):
    """The model; its output layer shares the weights of the token embedding."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(size.vocabulary, size.width), nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList([_Block(size.width, size.heads) for _ in range(size.blocks)])
        self.norm = nn.LayerNorm(size.width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token, [batch, length, vocabulary]."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


def batch(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random tokens and their successors, [batch, length] each."""
    count = size.tokens if device.type == "cpu" else size.tokens_cuda
    length = min(size.context, count)
    tokens = torch.randint(size.vocabulary, (count // length, length + 1), device=device)
    return tokens[:, :-1], tokens[:, 1:]
