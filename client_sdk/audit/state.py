"""Changes of weights and moments between two steps of an optimizer. Called on the training thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from client_sdk.audit.fault import Fault, listed
from client_sdk.audit.samples import ValueSample, is_plain
from client_sdk.layers import Layers

QUIET: Final = 8  # intervals without a write before a change counts: what happens from the start is meant
USUAL: Final = 4  # intervals in a row in which weights are written to, as by a constraint
LATE: Final = 100  # steps of the run, by which one that has lost its moments is ahead of its optimizer


class WeightChanges:
    """Changes of the weights between steps."""

    def __init__(self, model: torch.nn.Module, layers: Layers) -> None:
        """Follow the plain parameters of ``layers``, but those of embeddings that limit their own norms."""
        own = {
            id(module.weight)
            for module in model.modules()
            if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag) and module.max_norm is not None
        }
        found = [
            (parameter, name)
            for parameter, name in zip(layers.parameters, layers.parameter_names, strict=True)
            if is_plain(parameter) and id(parameter) not in own
        ]
        self._parameters = [parameter for parameter, _ in found]
        self._names = [name for _, name in found]
        self._sample = ValueSample(self._parameters)
        self._versions: list[int] | None = None
        self._state = 0
        self._quiet = self._written = 0
        self.is_usual = False
        """Whether weights are written to at most steps, as by a constraint, so that it means nothing."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Begin an interval."""
        if self.is_usual:
            return
        self._versions = [parameter._version for parameter in self._parameters]
        self._sample.take()
        self._state = _state_id(optimizer, self._parameters)

    def before_step(self, optimizer: torch.optim.Optimizer, step: int) -> Fault | None:
        """End an interval, and return the fault of weights that changed in it."""
        versions, self._versions = self._versions, None
        if versions is None or self.is_usual:
            return None
        now = [parameter._version for parameter in self._parameters]
        if now == versions:
            self._quiet += 1
            self._written = 0
            return None
        written = [name for name, one, other in zip(self._names, now, versions, strict=True) if one != other]
        quiet, self._quiet = self._quiet, 0
        self._written += 1
        self.is_usual = self._written >= USUAL
        if quiet < QUIET or not self._sample.has_changed():
            return None
        if _state_id(optimizer, self._parameters) != self._state:
            return None  # a checkpoint with the optimizer's state was loaded
        return Fault(
            "weights-changed",
            f"between step {step - 1} and step {step} of the optimizer something else changed {listed(written)}, for "
            f"the first time in {quiet + 1} steps",
            tuple(written),
            {"parameters": len(written), "optimizer_step": step},
        )


def _state_id(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> int:
    """Return the identity of a moment of the first parameter, which is another one after `load_state_dict`."""
    state = optimizer.state.get(parameters[0]) if parameters else None
    for value in state.values() if state else ():
        if isinstance(value, Tensor) and value.dim():
            return id(value)
    return 0


class MomentLoss:
    """The step counter of an optimizer's state, against the steps of the run."""

    def __init__(self) -> None:
        self._known: int | None = None  # counter after the last step
        self._had_state = False
        self._began_empty: bool | None = None
        self._suspected: Fault | None = None
        self._logged: int | None = None
        self._first: tuple[int, int] | None = None  # step of the first record, and the steps made by then
        self._is_compared = False
        self._made = 0

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Look for a state that was lost since the last step."""
        count = len(optimizer.state)
        if self._began_empty is None:
            self._began_empty = count == 0 and _keeps_state(optimizer)
        counter = _counter(optimizer)
        if self._had_state and (count == 0 or (counter is not None and self._known is not None and counter < 1)):
            reached = self._made if self._known is None else self._known
            self._suspected = Fault(
                "moments-lost",
                f"the optimizer's state was lost after {reached:,} steps: its moments begin anew while training goes "
                "on",
                evidence={"steps": reached},
            )

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the counter after a step."""
        self._made += 1
        counter = _counter(optimizer)
        known = self._known
        self._had_state = self._had_state or len(optimizer.state) > 0
        if known is not None and counter is not None and counter <= 1 and known >= 2 and self._suspected is None:
            self._suspected = Fault(
                "moments-lost",
                f"the step counter of the optimizer's state fell from {known:,} to {counter:,}: its moments begin anew "
                "while training goes on",
                evidence={"steps": known},
            )
        self._known = counter

    def note_log(self, step: int) -> Fault | None:
        """Take in the step of a record, and return the fault of moments that were lost."""
        before, self._logged = self._logged, step
        suspected, self._suspected = self._suspected, None
        if suspected is not None and before is not None and step > before:
            return suspected._replace(evidence={**suspected.evidence, "step": step})
        if self._is_compared or self._began_empty is None:
            return None
        if self._first is None:
            self._first = (step, self._made)
            return None
        first, made = self._first
        if self._made <= made or step <= first:
            return None
        self._is_compared = True
        rate = (step - first) / (self._made - made)
        ahead = first - rate * made
        if not self._began_empty or ahead < max(LATE, 10 * rate):
            return None
        return Fault(
            "moments-lost",
            f"training continues at step {first:,}, but the state of the optimizer was empty",
            evidence={"step": first, "optimizer_step": made},
        )


def _keeps_state(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer keeps moments, as SGD without momentum does not."""
    return any("betas" in group or group.get("momentum") for group in optimizer.param_groups)


def _counter(optimizer: torch.optim.Optimizer) -> int | None:
    """Return the step counter of the first parameter with a state, None if it has none on the host."""
    for state in optimizer.state.values():
        return _number(state)
    return None


def _number(state: Mapping[str, Any]) -> int | None:
    value = state.get("step") if isinstance(state, Mapping) else None
    if isinstance(value, Tensor):
        return int(value.item()) if value.device.type == "cpu" and value.numel() == 1 else None
    return int(value) if isinstance(value, int | float) else None
