"""Ownership of the parameters: dead tensors of an optimizer, and gradients that move nothing or never come.

Called on the training thread at the first steps alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from client_sdk.audit.fault import Fault, listed
from client_sdk.audit.samples import ValueSample
from client_sdk.layers import named_parameters

STEPS = 20
"""Steps of the optimizer that are looked at."""


class Ownership:
    """Parameters of a model and of an optimizer during the first `STEPS` steps."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Begin before the first step."""
        self._model = model
        self._steps = 0
        self._without: dict[int, tuple[str, Tensor, int]] = {}  # owned ones: name, parameter, steps without a gradient
        self._unowned: dict[int, tuple[str, Tensor, int]] = {}  # name, parameter, steps with a gradient
        self._sample: ValueSample | None = None

    @property
    def is_done(self) -> bool:
        """Whether everything has been looked at."""
        return self._steps >= STEPS

    def dead(self, optimizer: torch.optim.Optimizer, owned: set[int]) -> Fault | None:
        """Return the fault of tensors that were parameters of the model once. Called before a step.

        ``owned`` are the ids of the parameters of all optimizers of the run.
        """
        named = list(named_parameters(self._model))
        held = {id(parameter) for _, parameter in named}
        dead = [
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if id(parameter) not in held and parameter.requires_grad and parameter.grad is None
        ]
        if not dead:
            return None
        left = Counter(parameter.shape for parameter in dead)
        replaced = []
        for name, parameter in named:
            if id(parameter) not in owned and parameter.grad is not None and left[parameter.shape] > 0:
                left[parameter.shape] -= 1
                replaced.append(name)
        if not replaced:
            return None
        return Fault(
            "dead-parameters",
            f"{len(dead)} parameters of the optimizer are not part of the model and have no gradient, while "
            f"{listed(replaced)} of the same shape have one and no optimizer",
            tuple(replaced),
            {"dead": len(dead), "replaced": len(replaced)},
        )

    def observe(self, optimizer: torch.optim.Optimizer, owned: set[int]) -> Iterator[Fault]:
        """Look at the gradients before a step, and yield faults after the last one of the `STEPS`."""
        own = {id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}
        if not any(parameter.grad is not None for parameter in own.values()):
            return
        self._steps += 1
        named = {id(parameter): (name, parameter) for name, parameter in named_parameters(self._model)}
        if self._steps == 1:
            self._without = {key: (*named[key], 0) for key in own if key in named}
            self._unowned = {key: (*found, 0) for key, found in named.items() if key not in owned}
            self._sample = ValueSample([parameter for _, parameter, _ in self._unowned.values()])
            self._sample.take()
        for key, (name, parameter, count) in list(self._without.items()):
            if parameter.requires_grad and parameter.grad is None and key in own:
                self._without[key] = (name, parameter, count + 1)
            else:
                del self._without[key]
        for key, (name, parameter, count) in list(self._unowned.items()):
            if key in owned or not parameter.requires_grad or key not in named:
                del self._unowned[key]
            else:
                self._unowned[key] = (name, parameter, count + (parameter.grad is not None))
        if self._steps == STEPS:
            yield from self._conclude()

    def _conclude(self) -> Iterator[Fault]:
        unused = tuple(name for name, _, count in self._without.values() if count == STEPS)
        if unused:
            yield Fault(
                "unused-parameters",
                f"{listed(list(unused))} had no gradient at any of the first {STEPS} steps",
                unused,
                {"parameters": len(unused), "steps": STEPS},
            )
        still = set() if self._sample is None else self._sample.unchanged()
        names = tuple(name for key, (name, _, count) in self._unowned.items() if count == STEPS and key in still)
        if names:
            yield Fault(
                "unowned-parameters",
                f"{listed(list(names))} had a gradient at each of the first {STEPS} steps, but belong to no optimizer "
                "and did not move",
                names,
                {"parameters": len(names), "steps": STEPS},
            )
        self._without, self._unowned, self._sample = {}, {}, None
