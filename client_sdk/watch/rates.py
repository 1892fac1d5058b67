"""The learning rate of an optimizer's step."""

from __future__ import annotations

import torch
from torch import Tensor


def largest_rate(optimizer: torch.optim.Optimizer) -> float | Tensor | None:
    """Return the largest learning rate of the groups, as a tensor without waiting if any is kept on a device."""
    rates = [group["lr"] for group in optimizer.param_groups if "lr" in group]
    on_device = [rate for rate in rates if isinstance(rate, Tensor) and rate.device.type != "cpu"]
    if on_device:
        return torch.stack([torch.as_tensor(rate, device=on_device[0].device) for rate in rates]).max()
    return max((float(rate) for rate in rates), default=None)
