"""Evaluation of a closure whose forward and backward passes are made by several ranks together, as those of FSDP2.

Owns the points at which the ranks make sure of each other: before every forward pass of the model, and after the
closure. A rank whose closure raises, or has another number of forward passes, makes all of them abandon the measurement
there, instead of waiting for collectives that never come. A rank that fails within a forward pass of FSDP2 gathers what
is left of it first, as the others wait inside. An error within a pass of tensor parallelism, or within a backward pass,
on one rank alone cannot be made good; it ends training itself too. Too little memory is therefore found before a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from client_sdk.curvature.exchange import Exchange
from client_sdk.curvature.pass_memory import PassMemory
from client_sdk.curvature.preconditioner import UnsupportedError, is_dtensor
from client_sdk.curvature.sandbox import Derivatives, Sandbox, gradients, held


class SharedSandbox(Sandbox):
    """Sandbox of one rank among those of an exchange.

    Losses are those of this rank's batch; `whole_loss` and `gradients` are those of all ranks.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: Sequence[Tensor],
        exchange: Exchange,
        *,
        counts: Callable[[Tensor], bool] | None,
    ) -> None:
        """Protect the same as `Sandbox`. Inside it all ranks of ``exchange`` make the same calls.

        ``counts`` tells of which parameters this rank's part is added to those of the others; with None every rank
        holds all of them, and evaluates closures without the others.
        """
        super().__init__(model, parameters)
        self._exchange = exchange
        self._counts = counts
        self._entrances = [] if counts is None else self._fully_sharded.roots or [model]
        self._hooks = ExitStack()
        scale = self._fully_sharded.scale
        if scale is None:
            raise UnsupportedError(
                "curvature is not measured where set_gradient_divide_factor() gave FSDP modules different factors"
            )
        self._scale = scale
        self._whole_loss: Tensor | None = None
        self._is_in_pass = False
        grads = {id(p): p.grad for p in (*model.parameters(), *parameters) if p.grad is not None}
        self._memory = PassMemory(next(model.parameters()).device, list(map(held, grads.values())))

    def __enter__(self) -> Self:
        super().__enter__()
        for module in self._entrances:
            handle = module.register_forward_pre_hook(self._before_forward, prepend=True)  # before FSDP2's own
            self._hooks.callback(handle.remove)
            self._hooks.callback(module.register_forward_hook(self._after_forward).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()
        super().__exit__(kind, error, trace)

    def evaluate(self, closure: Callable[[], Any], *, derivatives: Derivatives | None = None) -> Tensor:
        """Return the loss of this rank's batch, as `Sandbox.evaluate` does, once all ranks have theirs.

        Raises `AbandonedError` if another rank has failed.
        """
        if derivatives is None:
            derivatives = 1
        self._is_in_pass = False
        try:
            loss = super().evaluate(closure, derivatives=derivatives)
        except Exception:
            if self._is_in_pass:
                self._fully_sharded.complete_pass()
            raise
        self._whole_loss = (self._exchange.add("loss", loss) * (self._scale / self._exchange.size)).to(loss.dtype)
        return loss

    def whole_loss(self, loss: Tensor) -> Tensor:
        """Return the loss whose gradient the optimizer receives, of the last evaluation: the mean of all ranks.

        Where FSDP2 divides gradients by another number than that of the ranks, it is scaled like them.
        """
        assert self._whole_loss is not None
        return self._whole_loss

    def counts(self, parameter: Tensor) -> bool:
        """Return whether this rank's part of ``parameter`` is added to those of the others."""
        return self._counts is None or self._counts(parameter)

    def add_parts(self, value: Tensor) -> Tensor:
        """Return the sum of a 0-d ``value``, which came from parts that count, over all ranks."""
        return value if self._counts is None else self._exchange.add("inner product", value)

    def gradients(
        self, loss: Tensor, parameters: Sequence[Tensor], *, by_backward: bool | None = None
    ) -> Sequence[Tensor | None]:
        """Return this rank's parts of the gradient of the loss of all ranks, as `gradients` does."""
        found = list(gradients(loss, parameters, by_backward=None if self._counts is None else True))
        plain = [at for at, parameter in enumerate(parameters) if not is_dtensor(parameter)]
        if plain:
            # They are copies, whose gradients training averages.
            own = [found[at] for at in plain]
            packed = torch.cat([
                torch.zeros_like(parameters[at]).reshape(-1) if grad is None else grad.reshape(-1)
                for at, grad in zip(plain, own, strict=True)
            ])  # fmt: skip
            self._exchange.meet("gradient")
            torch.distributed.all_reduce(packed)
            packed *= self._scale / self._exchange.size
            for at, piece in zip(plain, packed.split([parameters[at].numel() for at in plain]), strict=True):
                found[at] = piece.view_as(parameters[at])
        return found

    def _before_forward(self, module: torch.nn.Module, arguments: Any) -> None:
        self._memory.check()
        self._exchange.meet("forward")
        self._is_in_pass = True
        self._fully_sharded.begin_pass()

    def _after_forward(self, module: torch.nn.Module, arguments: Any, output: Any) -> None:
        self._is_in_pass = False
        self._fully_sharded.end_pass()
