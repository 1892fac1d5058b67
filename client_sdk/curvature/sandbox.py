"""Evaluation of the user's closure without side effects on training: everything that it may change is restored.

Owns saving and restoring, and does not depend on curvature. Restored bit for bit: random number generators (Python,
NumPy, CPU, the devices of the parameters), gradients, `requires_grad`, module modes, buffers (including BatchNorm's)
and the values of trainable parameters. Steps of an optimizer are refused before they change anything. Not covered:
state that the closure keeps outside the model, such as a data iterator.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from client_sdk.curvature.graph import Graph
from client_sdk.distributed import FullySharded, is_divided_alike, local

Derivatives = Literal[0, 1, 2]
"""Number of times that a loss will be differentiated.

0 keeps no graph, which saves the memory of the activations. 0 and 1 run the model as training runs it, with fused
attention and compiled graphs. 2 replaces both, because neither has a second derivative.
"""


class ClosureError(Exception):
    """The closure's result cannot be measured; the text says what to change."""


class IndependentError(ClosureError):
    """The closure's loss is valid but does not depend on the watched parameters."""


class Sandbox:
    """Context in which `evaluate` may be called any number of times. Used on the training thread.

    It holds a copy of the trainable parameters. Inside it, `place` gives them other values for the next evaluation.
    """

    def __init__(self, model: torch.nn.Module, parameters: Sequence[Tensor]) -> None:
        """Prepare to protect the parameters and buffers of ``model`` and the additional ``parameters``."""
        self._model = model
        self._modules = list(model.modules())  # a walk over the modules takes long beside a step of a small model
        own = list(
            {id(p): p for module in self._modules for p in module._parameters.values() if p is not None}.values()
        )
        seen = {id(parameter) for parameter in own}
        self._parameters: list[Tensor] = [*own, *(p for p in parameters if id(p) not in seen)]
        self._devices = {p.device for p in self._parameters if p.device.type not in ("cpu", "meta")}
        self._fully_sharded = FullySharded(model)
        self._contexts = ExitStack()
        self._kernels = ExitStack()
        self._derivatives: Derivatives | None = None
        self._evaluations = 0

    @property
    def is_coarse(self) -> bool:
        """Whether FSDP2 rounds weights or gradients to 16 bits, which the graph of a loss does not show."""
        return self._fully_sharded.is_coarse

    def __enter__(self) -> Self:
        # The copy comes first: if there is no memory for it, nothing has been changed yet.
        self._weights = {id(p): (p, held(p).clone()) for p in self._parameters if p.requires_grad}
        self._random = random.getstate()
        self._numpy = np.random.get_state()
        self._cpu = torch.get_rng_state()
        self._device_states = [(device, _device_state(device)) for device in self._devices]
        self._modes = [(module, module.training) for module in self._modules]
        self._buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in self._modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._flags = [(parameter, parameter.requires_grad) for parameter in self._parameters]
        # Gradients are detached from their parameters instead of copied, so that a closure that calls backward() or
        # zero_grad() cannot reach them.
        self._grads = [(parameter, parameter.grad) for parameter in self._parameters]
        self._drop_gradients()
        self._fully_sharded.__enter__()
        self._contexts.callback(register_optimizer_step_pre_hook(self._refuse_step).remove)
        self._contexts.enter_context(torch.inference_mode(False))
        # The autocast cache may hold weights from before the optimizer's step, and must not keep the sandbox's.
        self._cache_enabled = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        # `log` may be called inside an autocast region. It applies to the closure, not to the curvature's own algebra.
        kinds = {"cpu", *(parameter.device.type for parameter in self._parameters)} - {"meta"}
        self._autocasts = {
            kind: torch.get_autocast_dtype(kind) for kind in sorted(kinds) if torch.is_autocast_enabled(kind)
        }
        for kind in self._autocasts:
            self._contexts.enter_context(torch.autocast(kind, enabled=False))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kernels.close()
        self._derivatives = None
        self._contexts.close()
        torch.set_autocast_cache_enabled(self._cache_enabled)
        self._fully_sharded.__exit__(kind, error, trace)
        self.restore_weights()
        self._weights.clear()
        for parameter, grad in self._grads:
            parameter.grad = grad
        self._restore_modules()
        self._restore_randomness()

    def evaluate(self, closure: Callable[[], Any], *, derivatives: Derivatives | None = None) -> Tensor:
        """Return the closure's loss as a 0-d tensor, with its graph if ``derivatives`` is 1 or 2.

        Without ``derivatives`` the loss has a graph and comes from the kernels of the evaluation before, so that both
        losses can be compared, and from those of 2 in a new sandbox. Every evaluation draws the same random numbers and
        starts from the same buffers and modes. Raises `ClosureError` if the closure raises or returns anything else,
        and `torch.OutOfMemoryError` if the memory is too small.
        """
        if derivatives is None:
            derivatives = 2 if self._derivatives in (None, 2) else 1
        self.prepare(derivatives)
        if self._evaluations:
            self._restore_modules()
        self._evaluations += 1
        self._restore_randomness()
        self._reshard()
        try:
            with ExitStack() as contexts:
                contexts.enter_context(torch.set_grad_enabled(derivatives > 0))
                for kind, dtype in self._autocasts.items():
                    contexts.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=False))
                loss = _plain(closure())
                loss = loss.reshape(()) if isinstance(loss, Tensor) and loss.numel() == 1 else loss
        except (ClosureError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ClosureError(
                f"the closure raised {type(error).__name__}: {error}. It must compute the loss of the batch again and "
                "return it"
            ) from error
        if not isinstance(loss, Tensor):
            raise ClosureError(f"the closure returned {type(loss).__name__}; it must return the loss tensor")
        if loss.numel() != 1 or not loss.is_floating_point():
            raise ClosureError(
                f"the closure returned a tensor of shape {tuple(loss.shape)} and type {loss.dtype}; it must return the "
                "loss, one real number"
            )
        if derivatives and not loss.requires_grad:
            raise ClosureError(
                "the closure's loss has no graph; it must compute the loss anew, without no_grad(), detach() or item()"
            )
        return loss

    def gradients(
        self, loss: Tensor, parameters: Sequence[Tensor], *, by_backward: bool | None = None
    ) -> Sequence[Tensor | None]:
        """Return what `gradients` does; where several ranks train the model, the gradient of all of them."""
        return gradients(loss, parameters, by_backward=by_backward)

    def counts(self, parameter: Tensor) -> bool:
        """Return whether this process adds its part of ``parameter`` to those of the others."""
        return True

    def add_parts(self, value: Tensor) -> Tensor:
        """Return the sum of a 0-d ``value``, which came from parts that count, over all processes that hold some."""
        return value

    def whole_loss(self, loss: Tensor) -> Tensor:
        """Return the loss whose gradient `gradients` returns for ``loss``, which came from `evaluate`; detached."""
        return loss.detach()

    def prepare(self, derivatives: Derivatives) -> None:
        """Select the kernels for a loss that is differentiated ``derivatives`` times, until the next call.

        They apply to backward passes too, in which activation checkpointing computes parts of the model again.
        """
        if derivatives == self._derivatives:
            return
        self._kernels.close()
        self._derivatives = derivatives
        if derivatives == 2:
            # Fused attention has no second derivative (https://github.com/pytorch/pytorch/issues/116350).
            self._kernels.enter_context(sdpa_kernel(SDPBackend.MATH))
        if hasattr(torch.compiler, "set_stance"):  # torch ≥ 2.6
            # Compiled graphs have no second derivative either. A probe never compiles, which may take minutes: where
            # there is no graph for this call yet, the model runs as it was written.
            stance = "force_eager" if derivatives == 2 else "eager_on_recompile"
            self._kernels.enter_context(torch.compiler.set_stance(stance))

    def saved(self, parameter: Tensor) -> Tensor:
        """Return the value of a trainable parameter at the start; the local part where it is sharded."""
        return self._weights[id(parameter)][1]

    @torch.no_grad()
    def place(self, parameters: Iterable[Tensor], values: Iterable[Tensor]) -> None:
        """Give trainable ``parameters`` other ``values``, rounded to their types, until `restore_weights` or the end.

        No version counter changes. A sharded parameter takes the value of its local part.
        """
        self._reshard()
        for parameter, value in zip(parameters, values, strict=True):
            held(parameter).copy_(value)

    def restore_weights(self) -> None:
        """Give every trainable parameter the bits that it had at the start."""
        self.place(
            [parameter for parameter, _ in self._weights.values()], [saved for _, saved in self._weights.values()]
        )

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _refuse_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Raise `ClosureError` if ``optimizer`` moves a protected parameter. Other trainings may go on meanwhile."""
        own = {id(parameter) for parameter in self._parameters}
        if any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise ClosureError(
                "the closure makes a step of the optimizer; it must only compute the loss of the batch and return it"
            )

    def _reshard(self) -> None:
        """Free the gathered weights of FSDP2, which would hide the values that the shards have been given."""
        for module in self._fully_sharded.modules:
            module.reshard()

    def _restore_modules(self) -> None:
        for parameter, flag in self._flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
        for module, name, buffer, saved in self._buffers:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
            buffer.data.copy_(saved)  # always, because BatchNorm updates its running mean without a new version
        for module, mode in self._modes:
            module.training = mode

    def _restore_randomness(self) -> None:
        random.setstate(self._random)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        for device, state in self._device_states:
            module = torch.get_device_module(device)
            module.set_rng_state(state, *([] if device.type == "mps" else [device]))


def needs_backward(graph: Graph, parameters: Sequence[Tensor]) -> bool:
    """Return whether only `backward()` reaches the parameters: inside reentrant checkpointing, and shards of FSDP2."""
    return graph.recomputes_by_backward or any(hasattr(parameter, "to_local") for parameter in parameters)


def gradients(
    loss: Tensor, parameters: Sequence[Tensor], *, create_graph: bool = False, by_backward: bool | None = None
) -> Sequence[Tensor | None]:
    """Return the gradient of a closure's ``loss`` for each parameter, None where the loss does not depend on it.

    Must be called inside the sandbox of the loss. ``by_backward`` is the answer of `needs_backward`, if it is known.
    The gradient of a sharded parameter is its local part, which the model has summed over the processes. Raises
    `ClosureError` if the loss cannot be differentiated, and `IndependentError` if it depends on no parameter.
    """
    graph = None
    if not create_graph and by_backward is not False:
        graph = Graph.read(loss)
        by_backward = needs_backward(graph, parameters)
    try:
        with torch.enable_grad():
            if graph is not None and by_backward:
                grads = _gradients_by_backward(loss, parameters, graph.leaves)
            else:
                grads = torch.autograd.grad(loss, list(parameters), create_graph=create_graph, allow_unused=True)
    except (ClosureError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ClosureError(
            f"the closure's loss cannot be differentiated ({reason:.120}). The closure must compute the loss anew and "
            "must not call backward()"
        ) from error
    if all(grad is None for grad in grads):
        raise IndependentError("the closure's loss does not depend on the watched parameters")
    return grads


def _gradients_by_backward(
    loss: Tensor, parameters: Sequence[Tensor], leaves: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Return the gradients that `backward()` leaves in the parameters.

    Those that the parameters and other ``leaves``, such as inputs, had before stay as they are.
    """
    kept = [(tensor, tensor.grad) for tensor in {id(tensor): tensor for tensor in (*parameters, *leaves)}.values()]
    for tensor, _ in kept:
        tensor.grad = None
    try:
        loss.backward()
        return tuple(None if parameter.grad is None else _part_of_grad(parameter) for parameter in parameters)
    finally:
        for tensor, grad in kept:
            tensor.grad = grad


def _plain(loss: Any) -> Any:
    """Return the values of a loss that is a DTensor, and anything else as it is."""
    if not isinstance(loss, Tensor) or not hasattr(loss, "to_local"):
        return loss
    placements: Any = getattr(loss, "placements", ())
    if not all(placement.is_replicate() for placement in placements):
        raise ClosureError("the closure returned a part of the loss; it must return loss.full_tensor()")
    return loss.to_local()


@torch.no_grad()
def _part_of_grad(parameter: Any) -> Tensor:
    """Return the part of the gradient that belongs to the part of the parameter that this process holds."""
    grad = parameter.grad
    if not is_divided_alike(parameter, grad):  # a partial sum of tensor parallelism
        grad = grad.redistribute(placements=parameter.placements)
    return held(grad)


@torch.no_grad()
def held(parameter: Tensor) -> Tensor:
    """Return the values of a parameter that this process holds, outside autograd and its version counter."""
    return local(parameter.detach()).data


def _device_state(device: torch.device) -> Tensor:
    module = torch.get_device_module(device)
    state: Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state
