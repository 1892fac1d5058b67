"""The learning rate of an optimizer's step."""

from __future__ import annotations

import torch
from torch import Tensor


def largest_rate(optimizer: torch.optim.Optimizer) -> float | Tensor | None:
    """Return the largest learning rate of the groups at this moment; None if no group has one.

    It is a number, or a tensor of its own if any rate is kept on a device, which is not waited for.
    """
    rates = [group["lr"] for group in optimizer.param_groups if group.get("lr") is not None]
    on_device = [rate for rate in rates if isinstance(rate, Tensor) and rate.device.type != "cpu"]
    if on_device:  # a scheduler may change them in place before they are read
        return torch.stack([torch.as_tensor(rate, device=on_device[0].device) for rate in rates]).max()
    return max((float(rate) for rate in rates), default=None)
