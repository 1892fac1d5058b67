"""Hessian-vector products of the closure's loss: exact by double backward, or by central differences of gradients.

Owns the products and the length of a finite-difference step. `sandbox` evaluates the closure, `preconditioner` defines
the vector layout of the parameter space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from client_sdk.curvature.graph import CustomFunctions, Graph, has_dead_end
from client_sdk.curvature.inner_product import WHOLE, InnerProduct
from client_sdk.curvature.preconditioner import Preconditioner, UnsupportedError, from_vector, to_vector
from client_sdk.curvature.sandbox import ClosureError, Sandbox, gradients, held, needs_backward

RELATIVE_STEPS: Final = {torch.float64: 1e-6, torch.float32: 5e-5}
"""Length of a finite-difference step relative to that of the weights, by the precision of the weights.

Both lengths are in the coordinates D^-½·θ of the optimizer, so that coordinates that hardly matter and in which it
therefore moves far, such as biases in front of a normalisation, do not use the step up. Larger steps leave the
quadratic region, shorter ones are lost in the rounding of gradients; benchmarks/results/curvature_accuracy.md has the
errors of several lengths on three models.
"""

COARSE_STEP: Final = 3e-4
"""The same where the gradients of float32 weights pass through float16 or bfloat16, as under autocast. Errors are then
about 10 %.
"""

COARSE_UNITS: Final = 2.5
"""Relative error of xᵀHx by double backward, in units of rounding of the 16-bit type that gradients pass through.

In 46 trials on 23 models against float64, with bfloat16 weights and with autocast, it was 2.2 of such units at most.
"""

DIFFERENCE_ERROR: Final = 0.005
"""Relative error of xᵀHx by finite differences in float32.

Of the nine errors in benchmarks/results/curvature_accuracy.md one is larger: 0.0061.
"""

COARSE_DIFFERENCE_ERROR: Final = 0.1
"""The same where gradients pass through 16 bits."""

JOINED: Final = 2**20  # coordinates up to which the gradients are joined in one vector

SMALL_WEIGHT: Final = 1e-2  # size as which smaller weights count, so that a model that begins with zeros has a step
DISAGREEMENT: Final = 0.5  # relative difference from a finite difference above which an exact product lacks a part


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

    @property
    def error(self) -> float:
        """Relative error of xᵀHx that the arithmetic of the products is expected to cause at most."""
        ...

    def product(self, vector: Tensor) -> Tensor:
        """Return H·vector for a vector [N]."""
        ...


class NoSecondDerivativeError(Exception):
    """An operation of the model cannot be differentiated twice."""


class CoarseWeightsError(UnsupportedError):
    """The weights are too coarse for finite differences; the text says what to do instead."""


class ExactHessian:
    """Hessian by double backward, which costs about three gradients for the graph and about two for each product."""

    def __init__(
        self, sandbox: Sandbox, closure: Callable[[], Any], preconditioner: Preconditioner, *, verify: bool = True
    ) -> None:
        """Evaluate the closure in ``sandbox`` and keep the graph of its gradient.

        With ``verify``, search for operations whose missing second derivative torch would ignore silently. This costs a
        search of the graph and, where it has custom functions that it cannot judge otherwise, a finite difference.
        Raises `ClosureError` if the closure is unusable, and `NoSecondDerivativeError` if an operation is known to have
        no second derivative.
        """
        self._sandbox, self._preconditioner = sandbox, preconditioner
        loss = sandbox.evaluate(closure, derivatives=2)
        graph = Graph.read(loss)
        self.error = 0.0 if graph.coarse is None else COARSE_UNITS * torch.finfo(graph.coarse).eps
        if graph.recomputes_by_backward:
            raise NoSecondDerivativeError(
                "reentrant activation checkpointing has no second derivative; use_reentrant=False has one"
            )
        if graph.is_compiled:
            raise NoSecondDerivativeError("a compiled graph has no second derivative")
        observed = CustomFunctions(graph.custom if verify else ())
        with observed:
            grads = _differentiable_gradients(sandbox, closure, loss, preconditioner)
        self.loss = loss.detach()
        self.gradient = to_vector([None if grad is None else grad.detach() for grad in grads], preconditioner)
        self._curved = [(at, grad) for at, grad in enumerate(grads) if grad is not None and grad.requires_grad]
        self._joined = self._join()
        if verify and has_dead_end([grad for _, grad in self._curved]):
            raise NoSecondDerivativeError("an autograd.Function is once_differentiable")
        if observed.cut:
            raise NoSecondDerivativeError(f"the backward pass of {observed.cut[0]} is not differentiable")
        if observed.constant:
            self._compare_with_differences(closure, observed.constant[0])

    def product(self, vector: Tensor) -> Tensor:
        """Return H·vector for a vector [N]. Raises `NoSecondDerivativeError` if autograd cannot compute it."""
        if not self._curved:
            return torch.zeros_like(vector)
        self._sandbox.prepare(2)
        outputs: list[Tensor]
        if self._joined is not None:
            outputs, weights = [self._joined], [vector.to(self._joined.dtype)]
        else:
            pieces = from_vector(vector, self._preconditioner)
            outputs, weights = [grad for _, grad in self._curved], [pieces[at] for at, _ in self._curved]
        try:
            products = torch.autograd.grad(
                outputs,
                self._preconditioner.parameters,
                weights,
                retain_graph=True,
                allow_unused=True,
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NoSecondDerivativeError(_first_line(error)) from error
        return to_vector(products, self._preconditioner)

    def _join(self) -> Tensor | None:
        """Return the gradients of a small model as one vector [N] with its graph, for which autograd is called faster.

        None if the model is large, so that its memory counts more, or if a part of the gradient is constant.
        """
        parameters = self._preconditioner.parameters
        is_whole = len(self._curved) == len(parameters) and len({parameter.dtype for parameter in parameters}) == 1
        if not is_whole or len(self._preconditioner.diagonal) > JOINED:
            return None
        with torch.enable_grad():
            return torch.cat([grad.reshape(-1) for _, grad in self._curved])

    def _compare_with_differences(self, closure: Callable[[], Any], name: str) -> None:
        """Raise `NoSecondDerivativeError` if the curvature along the gradient is not what finite differences give.

        Waits for the device, once.
        """
        try:
            differences = DifferenceHessian(self._sandbox, closure, self._preconditioner).product(self.gradient)
        except CoarseWeightsError:
            return
        exact = torch.dot(self.gradient, self.product(self.gradient))
        expected = torch.dot(self.gradient, differences)
        if bool((exact - expected).abs() > DISAGREEMENT * torch.maximum(exact.abs(), expected.abs())):
            raise NoSecondDerivativeError(f"the backward pass of {name} lacks a part of the second derivative")


class DifferenceHessian:
    """Hessian by central differences, H·x ≈ (∇L(θ + h·x) − ∇L(θ − h·x)) / 2h, at two gradients for each product.

    No second derivative is needed: fused attention, compiled models and reentrant checkpointing run as in training. The
    weights have their own bits again after each product, also if the closure raises, and no version counter changes.

    Piecewise linear models, such as those of ReLU, have no better answer than a rough one: the difference counts the
    kinks within the step, which double backward ignores.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        closure: Callable[[], Any],
        preconditioner: Preconditioner,
        *,
        relative_step: float | None = None,
        inner: InnerProduct = WHOLE,
    ) -> None:
        """Prepare products; nothing is evaluated before one of them, or `loss` or `gradient`, is asked for.

        ``inner`` is the inner product of vectors of which this rank holds a part. ``relative_step`` takes the place of
        the length that `RELATIVE_STEPS` or `COARSE_STEP` has for the precision of the model. Raises
        `CoarseWeightsError` if a parameter is kept in 16 bits.
        """
        coarse = {p.dtype for p in preconditioner.parameters} & {torch.float16, torch.bfloat16}
        if coarse:
            raise CoarseWeightsError(
                f"finite differences cannot resolve weights in {str(coarse.pop()).removeprefix('torch.')}. Keep the "
                "weights in float32, for example with autocast, or use curvature='forward'"
            )
        self._sandbox, self._closure, self._preconditioner = sandbox, closure, preconditioner
        self._inner = inner
        diagonal = preconditioner.diagonal
        self._inverse_root = torch.where(diagonal > 0, diagonal.rsqrt(), 0.0)  # [N]; 0 where η is 0
        weights = to_vector([held(p) for p in preconditioner.parameters], preconditioner)
        (self._length,) = inner.lengths(self._inverse_root * weights.abs().clamp_min(SMALL_WEIGHT))
        usual = (
            COARSE_STEP
            if sandbox.is_coarse
            else max(RELATIVE_STEPS[parameter.dtype] for parameter in preconditioner.parameters)
        )
        self._relative_step = relative_step or usual
        self._is_chosen = relative_step is not None
        self._by_backward: bool | None = None  # None until a graph has been seen
        self._here: tuple[Tensor, Tensor] | None = None

    @property
    def error(self) -> float:
        """Relative error of xᵀHx that the differences are expected to cause at most."""
        if self._preconditioner.diagonal.dtype == torch.float64:
            return 0.0
        return COARSE_DIFFERENCE_ERROR if self._relative_step == COARSE_STEP else DIFFERENCE_ERROR

    @property
    def loss(self) -> Tensor:
        """Loss at the current parameters, 0-d, detached. Evaluated once, with the gradient, when asked for."""
        return self._evaluated()[0]

    @property
    def gradient(self) -> Tensor:
        """Gradient of the loss at the current parameters, [N], detached. Evaluated once, when asked for."""
        return self._evaluated()[1]

    def product(self, vector: Tensor) -> Tensor:
        """Return H·vector for a vector [N]; the error is about 1 % in float32 and 10 % under autocast.

        Raises `ClosureError` if the closure is unusable.
        """
        step, ahead = self._ahead(vector)
        try:
            behind = self._evaluate(vector, -step)
        finally:
            self._sandbox.restore_weights()
        return (ahead[1] - behind[1]) / (2.0 * step)

    def _ahead(self, vector: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the step length h, and loss and gradient at θ + h·vector."""
        smallest = torch.finfo(vector.dtype).tiny ** 0.5  # keeps the step finite for a vector of zeros
        (length,) = self._inner.lengths(self._inverse_root * vector)
        unit = self._length.clamp_min(smallest) / length.clamp_min(smallest)
        try:
            relative = self._relative_step
            found = self._evaluate(vector, relative * unit)
            if self._relative_step != relative:  # the first graph was found to be coarse
                found = self._evaluate(vector, self._relative_step * unit)
        except BaseException:
            self._sandbox.restore_weights()
            raise
        return self._relative_step * unit, found

    def _evaluated(self) -> tuple[Tensor, Tensor]:
        if self._here is None:
            self._here = self._differentiate()
        return self._here

    def _evaluate(self, vector: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and gradient at θ + step·vector, and leave the weights there."""
        parameters = self._preconditioner.parameters
        pieces = zip(parameters, from_vector(step * vector, self._preconditioner), strict=True)
        self._sandbox.place(parameters, (self._sandbox.saved(parameter) + piece for parameter, piece in pieces))
        return self._differentiate()

    def _differentiate(self) -> tuple[Tensor, Tensor]:
        loss = self._sandbox.evaluate(self._closure, derivatives=1)
        parameters = self._preconditioner.parameters
        if self._by_backward is None:
            graph = Graph.read(loss)
            self._by_backward = needs_backward(graph, parameters)
            if graph.coarse is not None and not self._is_chosen:
                self._relative_step = COARSE_STEP
        grads = self._sandbox.gradients(loss, parameters, by_backward=self._by_backward)
        return self._sandbox.whole_loss(loss), to_vector(grads, self._preconditioner)


def _differentiable_gradients(
    sandbox: Sandbox, closure: Callable[[], Any], loss: Tensor, preconditioner: Preconditioner
) -> Any:
    """Return the gradients of ``loss`` with their graph.

    If they fail, an evaluation without a graph of the gradient tells a model without second derivative from an unusable
    closure, whose error is raised.
    """
    try:
        return gradients(loss, preconditioner.parameters, create_graph=True)
    except ClosureError as error:
        cause = error.__cause__
        if cause is None or "second time" in str(cause):  # the closure itself called backward()
            raise
        gradients(sandbox.evaluate(closure, derivatives=1), preconditioner.parameters)
        raise NoSecondDerivativeError(_first_line(cause)) from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
