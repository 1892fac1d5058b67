"""The remedies of the study: nothing, the guard, or one of the fixed remedies that people use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from benchmarks.spike_trainings import Case
from client_sdk.guard import ClipUpdate, LowerBeta2, Policy, RaiseSecondMoment, ReduceRate
from client_sdk.vocabulary import Cause

Hook = Callable[[], None]
CLIP_NORM = 1.0
ZCLIP_DECAY, ZCLIP_LIMIT, ZCLIP_WARMUP = 0.97, 2.5, 25


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """One column of the study."""

    label: str
    policy: Policy | None = None
    """Policy of the guard; None without a guard."""
    mode: Literal["advise", "act"] = "act"
    beta2: float | None = None
    """β2 in place of the case's own."""
    before_step: Callable[[torch.optim.Optimizer], Hook] | None = None
    """Function from the optimizer to a hook that is called before each step, when the gradients are there."""
    has_own_groups: bool = False
    """Whether every tensor has a group of its own, so that each may have its own learning rate."""

    def applied_to(self, case: Case) -> Case:
        """Return the case with this remedy's β2."""
        return case if self.beta2 is None else replace(case, beta2=self.beta2)


def _clip(optimizer: torch.optim.Optimizer) -> Hook:
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    return lambda: (torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM), None)[1]


def _clip_updates(optimizer: torch.optim.Optimizer) -> Hook:
    """Return the update clipping of StableAdamW: η/max(1, RMS_t) for each tensor (arXiv 2304.13013)."""

    def clip() -> None:
        for group in optimizer.param_groups:
            (parameter,) = group["params"]
            state = optimizer.state.get(parameter)
            if state and parameter.grad is not None:
                corrected = state["exp_avg_sq"] / (1.0 - group["betas"][1] ** float(state["step"]))
                rms = float((parameter.grad.square() / corrected.clamp(min=group["eps"] ** 2)).mean().sqrt())
                group["lr"] /= max(1.0, rms) if math.isfinite(rms) else 1.0

    return clip


def _zclip(optimizer: torch.optim.Optimizer) -> Hook:
    """Return ZClip: the gradient is clipped where its norm has a z-score above 2.5 (Kumar et al., arXiv 2504.02507)."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    first: list[float] = []
    state = {"mean": 0.0, "variance": 0.0}

    def clip() -> None:
        norms: list[Tensor] = [one.grad.norm() for one in parameters if one.grad is not None]
        norm = float(torch.stack(norms).norm())
        if len(first) < ZCLIP_WARMUP:
            first.append(norm)
            state["mean"] = sum(first) / len(first)
            state["variance"] = sum((one - state["mean"]) ** 2 for one in first) / len(first)
            return
        deviation = math.sqrt(state["variance"]) + 1e-12
        score = (norm - state["mean"]) / deviation
        if score > ZCLIP_LIMIT:
            wanted = state["mean"] + ZCLIP_LIMIT**2 / score * deviation
            for one in parameters:
                if one.grad is not None:
                    one.grad.mul_(wanted / norm)
            norm = wanted
        state["mean"] = ZCLIP_DECAY * state["mean"] + (1.0 - ZCLIP_DECAY) * norm
        state["variance"] = ZCLIP_DECAY * state["variance"] + (1.0 - ZCLIP_DECAY) * (norm - state["mean"]) ** 2

    return clip


REMEDIES: Mapping[str, Remedy] = {
    "none": Remedy(label="nothing"),
    "advise": Remedy(label='guard, mode "advise"', policy=Policy(), mode="advise"),
    "act": Remedy(label='guard, mode "act"', policy=Policy()),
    "clip": Remedy(label=f"global clipping at {CLIP_NORM:g}", before_step=_clip),
    "update-clip": Remedy(label="update clipping of StableAdamW", before_step=_clip_updates, has_own_groups=True),
    "beta2": Remedy(label="β2 = 0.95", beta2=0.95),
    "zclip": Remedy(label="ZClip", before_step=_zclip),
    **{
        name: Remedy(
            label=label, policy=Policy(actions={Cause.STALE_SECOND_MOMENT: (action,)}, whole_share=0.05, in_a_row=50)
        )
        for name, label, action in (
            ("act-rate", "guard: learning rate × 0.5 for 6 steps", ReduceRate()),
            ("act-clip", "guard: update clipping for 10 steps", ClipUpdate()),
            ("act-beta2", "guard: β2 = 0.9 for 10 steps", LowerBeta2()),
            ("act-wide", "guard: second moment raised twice as far", RaiseSecondMoment(margin=1.5)),
        )
    },
}
"""The remedies by name. The last ones are other actions at the same sign, within five per cent of the steps."""
