"""Products with the Hessian agree with float64 double backward, on models of every kind, and say where they cannot."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from client_sdk.curvature.hessian import CoarseWeightsError, DifferenceHessian, ExactHessian, NoSecondDerivativeError
from client_sdk.curvature.preconditioner import Preconditioner
from client_sdk.curvature.sandbox import ClosureError, Sandbox

torch.set_num_threads(1)


class Block(nn.Module):
    """Causal attention and a feed-forward layer, each with normalisation and a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.mix(self.first(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(-2))
        result: Tensor = x + self.feed(self.second(x))
        return result


class SmallGpt(nn.Module):
    def __init__(self, *, reentrant: bool | None = None) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 16), nn.Linear(16, 11)
        self.blocks = nn.ModuleList([Block(16), Block(16)])
        self.reentrant = reentrant

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        logits: Tensor = self.head(x)
        return logits


class Case:
    """A model, its loss, and the preconditioner of Adam after some steps."""

    def __init__(self, model: nn.Module, loss_of: Callable[[nn.Module], Tensor], *, steps: int = 20) -> None:
        self.model, self.loss_of = model, loss_of
        self.optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.closure().backward()
            self.optimizer.step()
        preconditioner = Preconditioner.read(self.optimizer, "adam")
        assert preconditioner is not None
        self.preconditioner = preconditioner

    def closure(self) -> Tensor:
        return self.loss_of(self.model)

    def direction(self) -> Tensor:
        """Return the preconditioned gradient, a direction of large curvature."""
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(self.closure(), list(self.parameters))])
        return self.preconditioner.diagonal * gradient.to(self.preconditioner.diagonal)

    @property
    def parameters(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()

    def expected(self, vector: Tensor) -> Tensor:
        """Return H·vector in float64, by double backward through torch's plain attention."""
        model = copy.deepcopy(self.model).double()
        for module in model.modules():
            if isinstance(module, SmallGpt):
                module.reentrant = None
        with sdpa_kernel(SDPBackend.MATH):
            grads = torch.autograd.grad(self.loss_of(model), list(model.parameters()), create_graph=True)
        pieces = vector.double().split([p.numel() for p in model.parameters()])
        dot = sum((g.reshape(-1) @ piece for g, piece in zip(grads, pieces, strict=True)), torch.zeros(()))
        products = torch.autograd.grad(dot, list(model.parameters()), materialize_grads=True)
        return torch.cat([product.reshape(-1) for product in products])

    @contextmanager
    def sandbox(self) -> Iterator[Sandbox]:
        """Enter a sandbox and check at its end that the weights are what they were, in value and version."""
        before = [(p.detach().clone(), p._version) for p in self.parameters]
        with Sandbox(self.model, self.preconditioner.parameters) as sandbox:
            yield sandbox
            for parameter, (value, _) in zip(self.parameters, before, strict=True):
                assert torch.equal(parameter, value)
        for parameter, (value, version) in zip(self.parameters, before, strict=True):
            assert torch.equal(parameter, value)
            assert parameter._version == version

    def exact(self, vector: Tensor) -> Tensor:
        with self.sandbox() as sandbox:
            return ExactHessian(sandbox, self.closure, self.preconditioner).product(vector)

    def difference(self, vector: Tensor) -> Tensor:
        with self.sandbox() as sandbox:
            return DifferenceHessian(sandbox, self.closure, self.preconditioner).product(vector)

    def error(self, product: Tensor, vector: Tensor) -> float:
        """Return the relative error of a product in the coordinates of the optimizer."""
        root = self.preconditioner.diagonal.sqrt().double()
        expected = root * self.expected(vector)
        return float((root * product.double() - expected).norm() / expected.norm())


def tanh_net(**options: int) -> Case:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    x = torch.randn(64, 8)
    y = torch.sin(x.sum(1, keepdim=True))
    return Case(model, lambda m: F.mse_loss(m(like(x, m)), like(y, m)), **options)


def gpt(*, reentrant: bool | None = None, steps: int = 20) -> Case:
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (8, 13))
    tokens[:, 1::2] = (3 * tokens[:, :-1:2] + 1) % 11

    def loss_of(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    return Case(SmallGpt(reentrant=reentrant), loss_of, steps=steps)


def convolutional_net(**options: int) -> Case:
    torch.manual_seed(0)
    images = torch.randn(32, 1, 10, 10)
    labels = (images.mean((1, 2, 3)) > 0).long()
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.GELU(),
        nn.Conv2d(6, 6, 3, 2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(54, 2),
    )
    return Case(model, lambda m: F.cross_entropy(m(like(images, m)), labels), **options)


def like(tensor: Tensor, model: nn.Module) -> Tensor:
    return tensor.to(next(model.parameters()).dtype)


@pytest.mark.parametrize("steps", [2, 150])
@pytest.mark.parametrize("make", [tanh_net, gpt, convolutional_net])
def test_products_agree_with_float64(make: Callable[..., Case], steps: int) -> None:
    case = make(steps=steps)
    vector = case.direction()
    assert case.error(case.exact(vector), vector) < 1e-4
    difference = case.difference(vector)
    assert case.error(difference, vector) < 0.1, "rounding of the gradients, in all directions"
    assert float(vector @ difference) == pytest.approx(float(vector.double() @ case.expected(vector)), rel=0.01)


def test_differences_at_weights_of_zero() -> None:
    case = tanh_net(steps=1)
    for parameter in case.parameters:
        parameter.data.zero_()
    vector = case.direction()
    assert case.error(case.difference(vector), vector) < 0.02


def test_differences_of_float64_are_nearly_exact() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 4, dtype=torch.float64)
    case = Case(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double(), lambda m: m(x).square().mean())
    vector = case.direction()
    assert case.error(case.difference(vector), vector) < 1e-7


@pytest.mark.parametrize("reentrant", [False, True])
def test_differences_work_through_checkpointing(reentrant: bool) -> None:
    case = gpt(reentrant=reentrant)
    vector = gpt().direction()
    assert case.error(case.difference(vector), vector) < 0.02


def test_double_backward_works_through_checkpointing_that_is_not_reentrant() -> None:
    case = gpt(reentrant=False)
    vector = case.direction()
    assert case.error(case.exact(vector), vector) < 1e-4


def test_reentrant_checkpointing_has_no_second_derivative() -> None:
    case = gpt(reentrant=True)
    with case.sandbox() as sandbox, pytest.raises(NoSecondDerivativeError, match="use_reentrant=False"):
        ExactHessian(sandbox, case.closure, case.preconditioner)


def test_backward_leaves_no_gradient_anywhere() -> None:
    case = gpt(reentrant=True)
    own = [parameter.grad for parameter in case.parameters]
    scale = torch.ones((), requires_grad=True)
    scale.grad = torch.full((), 7.0)
    vector = torch.ones_like(case.preconditioner.diagonal)
    with case.sandbox() as sandbox:
        DifferenceHessian(sandbox, lambda: case.closure() * scale, case.preconditioner).product(vector)
    assert float(scale.grad) == 7.0
    assert all(parameter.grad is grad for parameter, grad in zip(case.parameters, own, strict=True))


def test_fused_attention_is_differenced_as_it_is_and_replaced_for_double_backward() -> None:
    case = gpt()
    vector = case.direction()
    plain = case.closure

    def fused() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return plain()

    case.closure = fused  # type: ignore[method-assign]
    assert case.error(case.difference(vector), vector) < 0.02
    with case.sandbox() as sandbox, pytest.raises(NoSecondDerivativeError, match="derivative"):
        ExactHessian(sandbox, case.closure, case.preconditioner).product(vector)


@pytest.fixture(scope="module")
def products_of_compiled_models() -> Any:
    """Errors of products with compiled models by backend, from a process in which nothing else was compiled."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.client_sdk.compiled_products"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_are_measured_without_a_compilation(products_of_compiled_models: Any, backend: str) -> None:
    found = products_of_compiled_models[backend]
    assert found["difference"] < 0.02
    assert found["exact"] < 1e-4


def test_a_model_that_was_not_compiled_yet_is_not_compiled_by_a_probe() -> None:
    case = tanh_net()
    compilations = []

    def count(graph: Any, inputs: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(case.model, backend=count)
    vector = case.direction()
    x = torch.randn(64, 8)
    case.loss_of = lambda m: (compiled if m is case.model else m)(like(x, m)).square().mean()
    assert case.error(case.difference(vector), vector) < 0.02
    assert compilations == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [tanh_net, gpt])
def test_curvature_under_autocast(make: Callable[[], Case], dtype: torch.dtype) -> None:
    case = make()
    vector = case.direction()
    expected = float(vector.double() @ case.expected(vector))
    plain = case.closure

    def coarse() -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return plain().float()

    case.closure = coarse  # type: ignore[method-assign]
    assert float(vector @ case.exact(vector)) == pytest.approx(expected, rel=0.1)
    assert float(vector @ case.difference(vector)) == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_differences_refuse_weights_of_16_bits(dtype: torch.dtype) -> None:
    case = tanh_net()
    case.model.to(dtype)
    with case.sandbox() as sandbox, pytest.raises(CoarseWeightsError, match="cannot resolve weights in"):
        DifferenceHessian(sandbox, case.closure, case.preconditioner)


class Tanh(torch.autograd.Function):
    """Tanh whose derivative is computed in a way that has no derivative itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            slope: Tensor = grad * (1 - x.tanh() ** 2)
        return slope


class SmoothTanh(torch.autograd.Function):
    """Tanh whose derivative can be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = grad * (1 - x.tanh() ** 2)
        return slope


class FusedMeanSquare(torch.autograd.Function):
    """A loss that computes its gradient in the forward pass, as fused cross-entropies do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(2 * x / x.numel())
        return x.square().mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (kept,) = ctx.saved_tensors
        slope: Tensor = grad * kept
        return slope


class Double(torch.autograd.Function):
    """A linear function, whose gradient is constant by right."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


def custom_net(activation: type[torch.autograd.Function], end: Callable[[Tensor], Tensor]) -> Case:
    torch.manual_seed(0)
    x = torch.randn(30, 4)

    def loss_of(model: nn.Module) -> Tensor:
        assert isinstance(model, nn.Sequential)
        hidden: Tensor = activation.apply(model[0](like(x, model)))
        return end(model[1](hidden) - like(x[:, :1], model))

    return Case(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)), loss_of)


def _mean_square(x: Tensor) -> Tensor:
    return x.square().mean()


def _fused_mean_square(x: Tensor) -> Tensor:
    loss: Tensor = FusedMeanSquare.apply(x)  # type: ignore[no-untyped-call]
    return loss


def _doubled(x: Tensor) -> Tensor:
    loss: Tensor = Double.apply(x.square().mean())  # type: ignore[no-untyped-call]
    return loss


@pytest.mark.parametrize("end", [_mean_square, _doubled])
def test_custom_functions_that_can_be_differentiated_are_exact(end: Callable[[Tensor], Tensor]) -> None:
    case = custom_net(SmoothTanh, end)
    vector = case.direction()
    assert case.error(case.exact(vector), vector) < 1e-4


@pytest.mark.parametrize(
    ("activation", "end", "name"),
    [(Tanh, _mean_square, "Tanh"), (SmoothTanh, _fused_mean_square, "FusedMeanSquare")],
)
def test_custom_functions_that_cut_the_second_derivative_are_named(
    activation: type[torch.autograd.Function], end: Callable[[Tensor], Tensor], name: str
) -> None:
    case = custom_net(activation, end)
    with case.sandbox() as sandbox, pytest.raises(NoSecondDerivativeError, match=name):
        ExactHessian(sandbox, case.closure, case.preconditioner)
    reference = custom_net(SmoothTanh, _mean_square)
    vector = reference.direction()
    assert reference.error(case.difference(vector), vector) < 0.02


def test_a_loss_with_gradients_of_its_inputs() -> None:
    case = tanh_net()
    x = torch.randn(16, 8)

    def loss_of(model: nn.Module) -> Tensor:
        points = like(x, model).clone().requires_grad_()
        output = model(points)
        (slope,) = torch.autograd.grad(output.sum(), points, create_graph=True)
        loss: Tensor = output.square().mean() + (slope.norm(dim=1) - 1).square().mean()
        return loss

    case.loss_of = loss_of
    vector = case.direction()
    assert case.error(case.exact(vector), vector) < 1e-4
    assert case.error(case.difference(vector), vector) < 0.02


def test_loss_and_gradient_at_the_point_are_one_evaluation() -> None:
    case = tanh_net(steps=100)
    calls = 0

    def counted() -> Tensor:
        nonlocal calls
        calls += 1
        return case.loss_of(case.model)

    vector = case.direction()
    with case.sandbox() as sandbox:
        hessian = DifferenceHessian(sandbox, counted, case.preconditioner)
        hessian.product(vector)
        assert calls == 2
        assert hessian.gradient.shape == vector.shape
        assert calls == 3, "loss and gradient at the point are one evaluation"
        assert float(hessian.loss) == pytest.approx(case.closure().item(), rel=1e-6)


@pytest.mark.parametrize("failing", [1, 2])
def test_weights_are_restored_when_the_closure_raises(failing: int) -> None:
    case = tanh_net()
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise KeyError("no batch left")
        return case.loss_of(case.model)

    with case.sandbox() as sandbox:
        hessian = DifferenceHessian(sandbox, closure, case.preconditioner)
        with pytest.raises(ClosureError, match="KeyError"):
            hessian.product(torch.ones_like(case.preconditioner.diagonal))


def test_a_zero_vector_has_a_zero_product() -> None:
    case = tanh_net()
    zero = torch.zeros_like(case.preconditioner.diagonal)
    assert not case.difference(zero).any()
    assert not case.exact(zero).any()
