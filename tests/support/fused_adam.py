"""Stand-ins for the fused Adams of Apex, Transformer Engine and DeepSpeed, which need CUDA or a compiler.

They have the same groups, state and update.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class _FusedAdam(torch.optim.Optimizer):
    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, adam_w_mode: bool = True):
        defaults: dict[str, Any] = {
            "lr": lr, "bias_correction": True, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)
        self.adam_w_mode = 1 if adam_w_mode else 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            self._count(group)
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                step = self._step_of(group, state)
                grad = parameter.grad
                if not self.adam_w_mode:
                    grad = grad + group["weight_decay"] * parameter
                state["exp_avg"].lerp_(grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                update = state["exp_avg"] / (1 - beta1**step)
                update = update / ((state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + group["eps"])
                if self.adam_w_mode:
                    update = update + group["weight_decay"] * parameter
                parameter.sub_(group["lr"] * update)

    def _count(self, group: dict[str, Any]) -> None:
        group["step"] = group.get("step", 0) + 1

    def _step_of(self, group: dict[str, Any], state: dict[str, Any]) -> int:
        step: int = group["step"]
        return step


class ApexFusedAdam(_FusedAdam):
    """Stand-in for apex.optimizers.FusedAdam."""


class TransformerEngineFusedAdam(_FusedAdam):
    """Stand-in for transformer_engine.pytorch.optimizers.FusedAdam."""


class DeepSpeedFusedAdam(_FusedAdam):
    """Stand-in for deepspeed.ops.adam.FusedAdam, which counts each tensor's steps; the groups' counter stays at 0."""

    def _count(self, group: dict[str, Any]) -> None:
        group["step"] = 0

    def _step_of(self, group: dict[str, Any], state: dict[str, Any]) -> int:
        step: int = state.get("step", 0) + 1
        state["step"] = step
        return step


DeepSpeedFusedAdam.__name__ = "FusedAdam"
DeepSpeedFusedAdam.__module__ = "deepspeed.ops.adam.fused_adam"
ApexFusedAdam.__name__ = TransformerEngineFusedAdam.__name__ = "FusedAdam"
ApexFusedAdam.__module__ = "apex.optimizers.fused_adam"
TransformerEngineFusedAdam.__module__ = "transformer_engine.pytorch.optimizers.fused_adam"
