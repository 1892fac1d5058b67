"""A stand-in for DeepSpeed's ZeRO 1 on one process: one flat tensor for each group, stepped one after the other.

The flat tensors hold float32 copies of the weights; gradients exist while their own group is stepped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class DeepSpeedZeroOptimizer:
    """Stand-in for deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer, with its public attributes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Join the parameters of each group of ``optimizer``, which steps the flat tensors from now on."""
        self.optimizer = optimizer
        self.real_dp_process_group: list[Any] = [None] * len(optimizer.param_groups)
        self.bit16_groups: list[list[nn.Parameter]] = [list(group["params"]) for group in optimizer.param_groups]
        self.bit16_groups_flat: list[Tensor] = []
        for group, parameters in zip(optimizer.param_groups, self.bit16_groups, strict=True):
            joined = torch.cat([each.detach().reshape(-1) for each in parameters])
            for parameter, piece in zip(parameters, self._pieces(joined, parameters), strict=True):
                parameter.data = piece
            self.bit16_groups_flat.append(joined)
            group["params"] = [joined.to(torch.float32, copy=True).requires_grad_()]

    def step(self, *, leaves_out: int | None = None) -> None:
        """Step the flat tensors, except the one that is left out."""
        groups = self.optimizer.param_groups
        for at, (group, parameters) in enumerate(zip(groups, self.bit16_groups, strict=True)):
            (flat,) = group["params"]
            flat.grad = torch.cat([each.grad.reshape(-1).float() for each in parameters if each.grad is not None])
            if at != leaves_out:
                self.optimizer.param_groups = [group]
                self.optimizer.step()
                self.optimizer.param_groups = groups
            flat.grad = None
            self.bit16_groups_flat[at].copy_(flat.detach())
        for parameter in (each for parameters in self.bit16_groups for each in parameters):
            parameter.grad = None

    def move(self) -> None:
        """Put the flat tensors somewhere else in memory, as loading a checkpoint does."""
        for group in self.optimizer.param_groups:
            for flat in group["params"]:
                flat.data = flat.detach().clone()

    @staticmethod
    def _pieces(joined: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
        pieces = joined.split([each.numel() for each in parameters])
        return [piece.view(each.shape) for piece, each in zip(pieces, parameters, strict=True)]


DeepSpeedZeroOptimizer.__module__ = "deepspeed.runtime.zero.stage_1_and_2"
