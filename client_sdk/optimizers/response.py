"""The response of an optimizer's updates to gradients that alternate, read from its groups and state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from client_sdk.optimizers.recognition import read_steps, read_update_rule, term_table
from client_sdk.optimizers.stability import GradientResponse
from client_sdk.optimizers.update_rule import TERM, Kind, UpdateRule


def gradient_response(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], rule: UpdateRule
) -> GradientResponse | None:
    """Return the response of a ``group`` of the optimizer with the update ``rule``, or None if it is not known."""
    if rule.kind.startswith("schedule_free"):
        return None  # whose average of the iterates takes part in the oscillation
    if not rule.uses_gradient:
        return GradientResponse(direct=0.0, momentum=1.0, intake=rule.intake, decay=rule.decay)
    if rule.first is None:
        return GradientResponse(direct=1.0, momentum=0.0, intake=1.0, decay=0.0)
    state = next((optimizer.state[one] for one in group["params"] if optimizer.state.get(one)), None)
    if state is None:
        return None
    (terms,) = term_table(rule, read_steps(rule, [state]), [state])
    if isinstance(terms, Tensor):
        return None
    direct, momentum = float(terms[TERM["direct"]]), float(terms[TERM["momentum"]])
    return GradientResponse(direct=direct, momentum=momentum, intake=rule.intake, decay=rule.decay)


def response_of_all(optimizer: torch.optim.Optimizer, kind: Kind) -> GradientResponse | None:
    """Return the response that all groups of the optimizer have in common, or None if there is no such."""
    responses = {
        gradient_response(optimizer, group, read_update_rule(kind, optimizer, group))
        for group in optimizer.param_groups
    }
    return responses.pop() if len(responses) == 1 else None
