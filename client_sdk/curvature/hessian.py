"""Hessian-vector products of the closure's loss: exact by double backward, or by central differences of gradients.

Owns the products and the length of a finite-difference step. `sandbox` evaluates the closure, `preconditioner` defines
the vector layout of the parameter space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from client_sdk.curvature.preconditioner import Preconditioner, from_vector, to_vector
from client_sdk.curvature.sandbox import Sandbox, gradients

RELATIVE_STEP: Final = 1e-3
"""Length of a finite-difference step relative to the length of the weights.

On float32 networks the error is then about 1 %: larger steps leave the quadratic region, and smaller ones are lost in
the rounding of gradients.
"""


class Hessian(Protocol):
    """The Hessian H of the loss at the current parameters, as an operator."""

    @property
    def loss(self) -> Tensor:
        """Loss at the current parameters, 0-d, detached."""
        ...

    @property
    def gradient(self) -> Tensor:
        """Gradient of the loss, [N], detached."""
        ...

    def product(self, vector: Tensor) -> Tensor:
        """Return H·vector for a vector [N]."""
        ...


class NoSecondDerivativeError(Exception):
    """An operation of the model cannot be differentiated twice."""


class ExactHessian:
    """Hessian by double backward, which costs about three gradients for the graph and about two for each product."""

    def __init__(
        self, sandbox: Sandbox, closure: Callable[[], Any], preconditioner: Preconditioner, *, verify: bool = True
    ) -> None:
        """Evaluate the closure in ``sandbox`` and keep the graph of its gradient.

        With ``verify``, search the graph for operations whose missing second derivative torch would ignore silently.
        Raises `ClosureError` if the closure is unusable, and `NoSecondDerivativeError` if ``verify`` finds such an
        operation.
        """
        self._preconditioner = preconditioner
        loss = sandbox.evaluate(closure)
        grads = gradients(loss, preconditioner.parameters, create_graph=True)
        self.loss = loss.detach()
        self.gradient = to_vector([None if grad is None else grad.detach() for grad in grads], preconditioner)
        self._curved = [(at, grad) for at, grad in enumerate(grads) if grad is not None and grad.requires_grad]
        if verify and _has_dead_end([grad for _, grad in self._curved]):
            raise NoSecondDerivativeError("an autograd.Function is once_differentiable")

    def product(self, vector: Tensor) -> Tensor:
        """Return H·vector for a vector [N]. Raises `NoSecondDerivativeError` if autograd cannot compute it."""
        if not self._curved:
            return torch.zeros_like(vector)
        pieces = from_vector(vector, self._preconditioner)
        try:
            products = torch.autograd.grad(
                [grad for _, grad in self._curved],
                self._preconditioner.parameters,
                [pieces[at] for at, _ in self._curved],
                retain_graph=True,
                allow_unused=True,
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NoSecondDerivativeError(str(error).partition("\n")[0]) from error
        return to_vector(products, self._preconditioner)


class DifferenceHessian:
    """Hessian by central differences, H·x ≈ (∇L(θ + h·x) − ∇L(θ − h·x)) / 2h, at two gradients for each product.

    No second derivative is needed. The parameters are moved and restored, bit for bit, through `.data`, so that no
    version counter changes.
    """

    def __init__(self, sandbox: Sandbox, closure: Callable[[], Any], preconditioner: Preconditioner) -> None:
        """Evaluate the closure's loss and gradient in ``sandbox``. Raises `ClosureError` if the closure is unusable."""
        self._sandbox, self._closure, self._preconditioner = sandbox, closure, preconditioner
        self.loss, self.gradient = self._evaluate()
        self._length = torch.linalg.vector_norm(
            to_vector([p.detach() for p in preconditioner.parameters], preconditioner)
        )

    def product(self, vector: Tensor) -> Tensor:
        """Return H·vector for a vector [N], with an error of about 1 % in float32."""
        smallest = torch.finfo(vector.dtype).tiny
        step = RELATIVE_STEP * self._length.clamp_min(smallest) / torch.linalg.vector_norm(vector).clamp_min(smallest)
        pieces = from_vector(step * vector, self._preconditioner)
        saved = [parameter.detach().clone() for parameter in self._preconditioner.parameters]
        try:
            self._move(saved, pieces, 1.0)
            ahead = self._evaluate()[1]
            self._move(saved, pieces, -1.0)
            behind = self._evaluate()[1]
        finally:
            for parameter, value in zip(self._preconditioner.parameters, saved, strict=True):
                parameter.data.copy_(value)
        product: Tensor = (ahead - behind) / (2.0 * step)
        return product

    def _move(self, origin: Sequence[Tensor], pieces: Sequence[Tensor], sign: float) -> None:
        for parameter, start, piece in zip(self._preconditioner.parameters, origin, pieces, strict=True):
            parameter.data.copy_(torch.add(start, piece, alpha=sign))

    def _evaluate(self) -> tuple[Tensor, Tensor]:
        loss = self._sandbox.evaluate(self._closure)
        grads = gradients(loss, self._preconditioner.parameters)
        return loss.detach(), to_vector(grads, self._preconditioner)


def _has_dead_end(tensors: Sequence[Tensor]) -> bool:
    """Return whether the graph of ``tensors`` has a node that stands for an error.

    Such a node raises only when it is reached. `autograd.grad` prunes it, and the product would silently lack a part.
    """
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False
