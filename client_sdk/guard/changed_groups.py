"""Changes of an optimizer's settings that hold during a step alone.

Learning rates, β2 and ε are changed right before a step and restored right after it. So schedulers, checkpoints and
the user's code never see a changed value, whatever they do between two steps, and everything returns by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from client_sdk.guard.policy import ClipUpdate, LowerBeta2, ReduceRate, ScaleEps, steps_of
from client_sdk.optimizers import TERM, Kind, read_steps, read_update_rule, second_moment, term_table

LastingAction = ReduceRate | ClipUpdate | LowerBeta2 | ScaleEps


@dataclass
class _Episode:
    action: LastingAction
    done: int = 0  # steps


class ChangedGroups:
    """The lasting actions of one optimizer. Used on the training thread."""

    def __init__(self, optimizer: torch.optim.Optimizer, kind: Kind) -> None:
        """Begin with nothing changed; ``kind`` is the family of ``optimizer``."""
        self._optimizer, self._kind = optimizer, kind
        self._episodes: list[_Episode] = []
        self._before: list[tuple[dict[str, Any], str, Any]] = []  # group, key, value

    @property
    def is_active(self) -> bool:
        """Whether the next step is changed."""
        return bool(self._episodes)

    def begin(self, action: LastingAction) -> None:
        """Change the next steps, unless the same action is under way."""
        if all(type(one.action) is not type(action) for one in self._episodes):
            self._episodes.append(_Episode(action))

    def end(self) -> None:
        """Change no further step."""
        self._episodes.clear()

    def before_step(self) -> None:
        """Change the settings for the step that begins. A step that raised an exception is restored first."""
        self.after_step()
        for episode in self._episodes:
            for group in self._optimizer.param_groups:
                self._change(group, episode)
            episode.done += 1
        self._episodes = [one for one in self._episodes if one.done < steps_of(one.action)]

    def after_step(self) -> None:
        """Restore the settings as they were before the step."""
        while self._before:
            group, key, value = self._before.pop()
            held = group.get(key)
            if isinstance(held, Tensor) and isinstance(value, Tensor):
                held.copy_(value)
            else:
                group[key] = value

    def _change(self, group: dict[str, Any], episode: _Episode) -> None:
        action = episode.action
        if isinstance(action, ReduceRate):
            self._scale(group, "lr", _rate_factor(action, episode.done))
        elif isinstance(action, ClipUpdate):
            self._scale(group, "lr", 1.0 / max(1.0, self._update_rms(group)))
        elif isinstance(action, LowerBeta2):
            first, second, *others = group["betas"]
            self._set(group, "betas", (first, min(float(second), action.beta2), *others))
        else:
            self._scale(group, "eps", action.factor)

    def _scale(self, group: dict[str, Any], key: str, factor: float) -> None:
        value = group[key]
        if isinstance(value, Tensor):
            self._before.append((group, key, value.clone()))
            value.mul_(factor)
        else:
            self._set(group, key, value * factor)

    def _set(self, group: dict[str, Any], key: str, value: object) -> None:
        self._before.append((group, key, group[key]))
        group[key] = value

    @torch.no_grad()
    def _update_rms(self, group: Mapping[str, Any]) -> float:
        """Return √mean(g²/max(v̂, ε²)) of a group before its step; 1 if it is not known. Waits for the device."""
        rule = read_update_rule(self._kind, self._optimizer, group)
        total, count = 0.0, 0
        for parameter in group["params"]:
            state = self._optimizer.state.get(parameter, {})
            second = second_moment(rule, state, parameter)
            if parameter.grad is None or not isinstance(second, Tensor):
                continue
            root = float(term_table(rule, read_steps(rule, [state]), [state])[0][TERM["root"]])
            denominators = second.mul(root**2).clamp_(min=max(rule.eps, 1e-30) ** 2)
            total += float(parameter.grad.square().div_(denominators).sum())
            count += second.numel()
        rms = math.sqrt(total / count) if count else 1.0
        return rms if math.isfinite(rms) else 1.0


def _rate_factor(action: ReduceRate, done: int) -> float:
    """Return the factor on the learning rates after ``done`` steps of an episode."""
    beyond = done - action.steps + 1
    return action.factor if beyond <= 0 else action.factor + (1.0 - action.factor) * beyond / (action.ramp + 1)
