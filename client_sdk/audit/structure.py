"""The structure of a model at each step: tied weights, and the mode that it is in. Called on the training thread."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from client_sdk.audit.fault import Fault, listed

_DROPOUTS: Final = (
    torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.Dropout3d, torch.nn.AlphaDropout,
    torch.nn.FeatureAlphaDropout,
)  # fmt: skip


class _Place(NamedTuple):
    name: str
    module: torch.nn.Module
    key: str

    def tensor(self) -> Tensor | None:
        return self.module._parameters.get(self.key)


class TiedWeights:
    """Parameters that a model has under several names."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Find the parameters that are tied now."""
        places: dict[int, list[_Place]] = {}
        for prefix, module in model.named_modules():
            for key, parameter in module._parameters.items():
                if parameter is not None and type(parameter) is torch.nn.Parameter:
                    name = f"{prefix}.{key}" if prefix else key
                    places.setdefault(id(parameter), []).append(_Place(name, module, key))
        self._ties = [found for found in places.values() if len(found) > 1]
        self._configured = _apart_by_config(model)

    def __bool__(self) -> bool:
        return bool(self._ties) or self._configured is not None

    def fault(self) -> Fault | None:
        """Return the fault of weights that are no longer one tensor."""
        if self._configured is not None:
            return self._configured
        for tie in self._ties:
            present = [(place, tensor) for place in tie if (tensor := place.tensor()) is not None]
            if len({id(tensor) for _, tensor in present}) > 1 and all(
                type(tensor) is torch.nn.Parameter for _, tensor in present
            ):
                names = tuple(place.name for place, _ in present)
                message = f"{listed(list(names))} were one parameter and are {len({id(t) for _, t in present})} now"
                return Fault("tied-weights", message, names, {"names": len(names)})
        return None


def _apart_by_config(model: torch.nn.Module) -> Fault | None:
    """Return the fault of a Transformers model whose configuration ties embeddings that are two parameters."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "tie_word_embeddings", False) is not True:
        return None
    try:
        way_in, way_out = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    except Exception:
        return None
    first, second = (getattr(module, "weight", None) for module in (way_in, way_out))
    if not all(type(weight) is torch.nn.Parameter and weight.requires_grad for weight in (first, second)):
        return None
    if first is second or first.shape != second.shape:  # type: ignore[union-attr]
        return None
    names = tuple(f"{name}.weight" for name, module in model.named_modules() if module is way_in or module is way_out)
    return Fault(
        "tied-weights",
        f"{listed(list(names))} are two parameters, but the configuration of the model ties them",
        names,
        {"tie_word_embeddings": "true"},
    )


class TrainingMode:
    """The mode of a model whose dropout or batch normalisation depends on it."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Find the modules that the mode matters to."""
        self._model = model
        modules = list(model.modules())
        self._dropouts = [module for module in modules if isinstance(module, _DROPOUTS) and module.p > 0]
        norms = [module for module in modules if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
        self._modules = [*self._dropouts, *(norm for norm in norms if norm.track_running_stats)]
        self._in_backward: bool | None = None  # whether it was in evaluation mode when gradients arrived

    def __bool__(self) -> bool:
        return bool(self._modules)

    @property
    def is_off(self) -> bool:
        """Whether the model and all of these modules are in evaluation mode now."""
        return not self._model.training and not any(module.training for module in self._modules)

    def note_arrival(self) -> None:
        """Note the mode during the backward pass, which is that of the forward pass."""
        if self._modules:
            self._in_backward = self.is_off and self._in_backward is not False

    def fault(self) -> Fault | None:
        """Return the fault of a step whose gradients were computed in evaluation mode. Called before each step.

        At the step itself a loop may have begun to evaluate, so the mode counts when gradients arrive.
        """
        in_backward, self._in_backward = self._in_backward, None
        # A model that only has batch normalisation may be kept in evaluation mode, to freeze its statistics.
        if not in_backward or not self.is_off or not self._dropouts:
            return None
        return Fault(
            "evaluation-mode",
            f"model.training is False in the backward pass of a step, so that {len(self._modules)} layers of dropout "
            "or batch normalisation work as in evaluation",
            evidence={"modules": len(self._modules)},
        )
