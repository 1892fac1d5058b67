"""Computing the same batch twice, which tells a hardware error. On request, for one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.audit.fault import Fault, listed
from client_sdk.curvature.sandbox import Sandbox

TOLERANCE: Final = 1e-3  # relative difference that another order of sums cannot explain in float32
COARSE_TOLERANCE: Final = 0.05  # the same where some arithmetic has 8 or 11 significant bits
TIMES: Final = 2  # comparisons with the first computation


def recompute(
    model: torch.nn.Module, parameters: Sequence[Tensor], names: Sequence[str], closure: Callable[[], Any]
) -> Fault | None:
    """Compute loss and gradients of ``closure`` several times from the same state, and return the fault of a "
    "difference.

    Restores everything that the closure may change: random numbers, buffers, modes, gradients and weights. Waits for
    the device. Raises `ClosureError` if the closure gives no loss.
    """
    kept = [(name, parameter) for name, parameter in zip(names, parameters, strict=True) if parameter.requires_grad]
    results = [_computed(model, [parameter for _, parameter in kept], closure) for _ in range(1 + TIMES)]
    loss, gradients, is_coarse = results[0]
    tolerance = COARSE_TOLERANCE if is_coarse else TOLERANCE
    for other, others, _ in results[1:]:
        wrong = tuple(
            name
            for (name, _), one, two in zip(kept, gradients, others, strict=True)
            if not _is_same(one, two, tolerance)
        )
        same_loss = math.isclose(loss, other, rel_tol=tolerance) or (math.isnan(loss) and math.isnan(other))
        if wrong or not same_loss:
            where = f", and the gradients of {listed(list(wrong))} differ" if wrong else ""
            return Fault(
                "hardware-error",
                f"the same batch gave the losses {loss!r} and {other!r}{where}",
                wrong,
                {"loss": loss, "again": other, "parameters": len(wrong)},
            )
    return None


def _computed(
    model: torch.nn.Module, parameters: Sequence[Tensor], closure: Callable[[], Any]
) -> tuple[float, list[Tensor | None], bool]:
    with Sandbox(model, parameters) as sandbox:
        loss = sandbox.evaluate(closure, derivatives=1)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        is_coarse = sandbox.is_coarse or any(p.dtype in (torch.bfloat16, torch.float16) for p in parameters)
        is_coarse = is_coarse or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        return float(loss.detach()), [None if grad is None else grad.detach().clone() for grad in found], is_coarse


def _is_same(one: Tensor | None, two: Tensor | None, tolerance: float) -> bool:
    if one is None or two is None:
        return one is two
    if torch.equal(one, two):
        return True
    one, two = one.detach().to(torch.float64), two.detach().to(torch.float64)
    if not bool(torch.isfinite(one).all()) or not bool(torch.isfinite(two).all()):
        return bool(torch.equal(torch.isfinite(one), torch.isfinite(two)))
    return float((one - two).norm()) <= tolerance * max(float(one.norm()), float(two.norm()))
