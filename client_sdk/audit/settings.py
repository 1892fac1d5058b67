"""Checks of the settings of an optimizer. Pure: they read update rules and the configuration of the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from client_sdk.audit.fault import Fault
from client_sdk.optimizers import UpdateRule
from client_sdk.run_settings import flat

ADAM: Final = frozenset({"adam", "fused_adam", "bitsandbytes_adam", "nadam", "radam"})
"""Kinds of optimizers with Adam's two moments and betas."""
NEAR: Final = 0.99  # of √β2, above which β1 leaves no gap
MAX_DECAY: Final = 0.1  # share of the weights that decay may take at a step
MIN_RUN: Final = 1_000  # steps of a run that is no trial
SMALLEST_HALF: Final = 2.0**-24  # the smallest positive number of float16; half of it rounds to zero
TOTALS: Final = frozenset({
    "max_steps", "total_steps", "num_steps", "max_iters", "train_steps", "training_steps", "num_training_steps",
    "max_train_steps", "total_iters",
})  # fmt: skip
"""Names of settings that hold the number of steps of a run."""
NORMS: Final = frozenset({"max_grad_norm", "grad_clip", "grad_clip_norm", "clip_grad_norm", "gradient_clip_norm"})
"""Names of settings that hold the norm to which all gradients together are clipped."""
ACCUMULATION: Final = frozenset({
    "gradient_accumulation_steps", "accumulation_steps", "accumulate_grad_batches", "grad_accum_steps", "grad_accum",
})  # fmt: skip
"""Names of settings that hold the number of micro-batches of a step."""


def number_among(config: Mapping[str, Any], names: frozenset[str]) -> float | None:
    """Return the positive number that a configuration has under one of these names, None if there are none or several.

    >>> number_among({"trainer": {"max_steps": 500}, "lr": 0.1}, TOTALS)
    500.0
    """
    found = {
        float(value)
        for name, value in flat(config).items()
        if name.rpartition(".")[2] in names and isinstance(value, int | float) and not isinstance(value, bool)
    }
    found = {value for value in found if value > 0 and math.isfinite(value)}
    return found.pop() if len(found) == 1 else None


def settings_faults(rules: Sequence[UpdateRule], total_steps: float | None) -> Iterator[Fault]:
    """Yield what is wrong with the settings of the parameter groups, before the first step.

    ``total_steps`` is the length of the run if it is known.

    >>> from client_sdk.optimizers import UpdateRule
    >>> [fault.check for fault in settings_faults([UpdateRule(kind="adam", lr=0.1, decay=0.9, beta2=0.8)], None)]
    ['betas-coupled']
    """
    for rule in rules:
        if rule.kind in ADAM and rule.decay > 0 and rule.beta2 > 0:
            yield from _betas(rule, total_steps)
    for rule in rules:
        if isinstance(rule.lr, float) and rule.lr * rule.decoupled >= MAX_DECAY:
            yield Fault(
                "weight-decay-rate",
                f"a learning rate of {rule.lr:g} with a weight decay of {rule.decoupled:g} takes "
                f"{100 * rule.lr * rule.decoupled:.0f} % of the weights at each step",
                evidence={"lr": rule.lr, "weight_decay": rule.decoupled},
            )


def _betas(rule: UpdateRule, total_steps: float | None) -> Iterator[Fault]:
    beta1, beta2 = rule.decay, rule.beta2
    evidence = {"beta1": beta1, "beta2": beta2}
    if beta1**2 >= beta2:
        message = f"β1² = {beta1**2:.4g} is not below β2 = {beta2:g}: the size of the update has no bound"
        yield Fault("betas-coupled", message, evidence=evidence)
    elif beta1 > NEAR * math.sqrt(beta2):
        message = f"β1 = {beta1:g} leaves no gap to √β2 = {math.sqrt(beta2):.4g}, at which the update has no bound"
        yield Fault("betas-coupled", message, evidence=evidence)
    memory = math.inf if beta2 >= 1 else 1 / (1 - beta2)
    if total_steps is not None and total_steps >= MIN_RUN and memory > 1.000001 * total_steps:
        yield Fault(
            "second-moment-too-long",
            f"with β2 = {beta2:g} the second moment averages over about {memory:,.0f} steps, and the run has "
            f"{total_steps:,.0f}",
            evidence={"beta2": beta2, "steps": total_steps},
        )


def lost_eps(rule: UpdateRule, state_type: str) -> Fault | None:
    """Return the fault of an ε that rounds to zero in the type of the second moment, such as "torch.float16"."""
    if state_type != "torch.float16" or rule.kind not in ADAM or not 0 < rule.eps <= SMALLEST_HALF / 2:
        return None
    return Fault(
        "eps-lost",
        f"ε = {rule.eps:g} is zero in float16, in which the second moment is kept",
        evidence={"eps": rule.eps, "state": state_type},
    )


def uncorrected(rule: UpdateRule, first_rate: float, rate: float) -> Fault | None:
    """Return the fault of moments without bias correction whose learning rate has not risen over ten steps."""
    if rule.kind not in ADAM or rule.is_corrected or rate > first_rate or rule.beta2 >= 1:
        return None
    factor = (1 - rule.decay) / math.sqrt(1 - rule.beta2)
    if factor <= 1:
        return None
    return Fault(
        "no-bias-correction",
        f"without bias correction the first update is {factor:.2g} times the learning rate, which did not warm up",
        evidence={"beta1": rule.decay, "beta2": rule.beta2, "lr": rate},
    )
