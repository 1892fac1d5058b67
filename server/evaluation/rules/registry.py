"""The list of all plain rules, in the order in which they are printed."""

from __future__ import annotations

from typing import Final

from server.evaluation.rules import (
    bare_curvature,
    combination,
    gradient_norm,
    lightning,
    llm_foundry,
    megatron,
    olmo_core,
    olmo_spike_score,
    trainpulse,
    wandb_z_score,
    wortsman,
    zclip,
)
from server.evaluation.rules.rule import PlainRule

RULES: Final[tuple[PlainRule, ...]] = (
    wandb_z_score.RULE,
    olmo_core.RULE,
    olmo_spike_score.RULE,
    lightning.RULE,
    llm_foundry.RULE,
    megatron.RULE,
    trainpulse.RULE,
    zclip.RULE,
    gradient_norm.RULE,
    wortsman.RULE,
    bare_curvature.LAMBDA_MAX,
    bare_curvature.LAMBDA_GRAD,
    combination.WITHOUT,
    combination.WITH,
)
