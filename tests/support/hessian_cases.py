"""Models of several kinds with their losses, and products with their Hessians by each method and in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from client_sdk.curvature.hessian import DifferenceHessian, ExactHessian
from client_sdk.curvature.preconditioner import Preconditioner
from client_sdk.curvature.sandbox import Sandbox

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
