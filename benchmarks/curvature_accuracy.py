"""Errors of the curvature probes that take no second derivative: finite differences, and critical sharpness.

    python -m benchmarks.curvature_accuracy

Trains a tanh network, a small GPT and a convolutional network in float32. The first table has the relative error of
finite-difference products for several step lengths, against double backward of a copy in float64: of xᵀAx along the
leading eigenvector x of A = D^½·H·D^½, and of the whole product A·x. The second has the evaluations that a reading of
the critical sharpness takes, and how often the reading was possible.
"""

from __future__ import annotations

import argparse
import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from client_sdk.curvature.critical_sharpness import CriticalSharpness
from client_sdk.curvature.hessian import DifferenceHessian
from client_sdk.curvature.preconditioner import Preconditioner
from client_sdk.curvature.sandbox import Sandbox
from client_sdk.curvature.step_probe import StepSnapshot

STEPS = (2, 100, 400)  # at which products are compared
LENGTHS = (1e-5, 5e-5, 2e-4, 1e-3)  # of finite-difference steps, relative to the weights in the optimizer's coordinates
READINGS = 200  # of the critical sharpness


@dataclass(frozen=True, kw_only=True)
class Training:
    """A model with its loss and learning rate."""

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]
    lr: float


class SmallGpt(nn.Module):
    """Two causal transformer layers with a width of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(32, 32), nn.Linear(32, 32)
        self.layers = nn.ModuleList([
            nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True, activation="gelu")
            for _ in range(2)
        ])  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next tokens."""
        x = self.embedding(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=x.dtype)
        for layer in self.layers:
            x = layer(x, src_mask=mask)
        logits: Tensor = self.head(x)
        return logits


def tanh_net() -> Training:
    """Return the full-batch regression net at whose limit Adam spikes."""
    x = torch.randn(200, 50)
    y = torch.sin(x.sum(1, keepdim=True) / 3)
    model = nn.Sequential(nn.Linear(50, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    return Training(model=model, loss=lambda m: F.mse_loss(m(_like(x, m)), _like(y, m)), lr=0.01)


def small_gpt() -> Training:
    """Return a GPT on sequences in which every second token follows from the one before."""
    tokens = torch.randint(0, 32, (16, 17))
    tokens[:, 1::2] = (3 * tokens[:, :-1:2] + 1) % 32

    def loss(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    return Training(model=SmallGpt(), loss=loss, lr=1e-3)


def convolutional_net() -> Training:
    """Return a classifier of images by their brightness."""
    images = torch.randn(64, 1, 12, 12)
    labels = (images.mean((1, 2, 3)) > 0).long() + 2 * (images[:, 0, :6].mean((1, 2)) > 0).long()
    first, second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, stride=2)
    model = nn.Sequential(first, nn.BatchNorm2d(8), nn.GELU(), second, nn.GELU(), nn.Flatten(), nn.Linear(128, 4))
    return Training(model=model, loss=lambda m: F.cross_entropy(m(_like(images, m)), labels), lr=3e-3)


CASES = {"tanh-net": tanh_net, "small-gpt": small_gpt, "convolutional-net": convolutional_net}


def _like(tensor: Tensor, model: nn.Module) -> Tensor:
    return tensor.to(next(model.parameters()).dtype)


def exact_product(training: Training) -> Callable[[Tensor], Tensor]:
    """Return the product with the Hessian by double backward in float64."""
    model = copy.deepcopy(training.model).double()
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        grads = torch.autograd.grad(training.loss(model), parameters, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        pieces = [piece.view(p.shape) for piece, p in zip(_split(vector, parameters), parameters, strict=True)]
        products = torch.autograd.grad(grads, parameters, pieces, retain_graph=True, materialize_grads=True)
        return torch.cat([each.reshape(-1) for each in products])

    return product


def _split(vector: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
    pieces: tuple[Tensor, ...] = vector.split([parameter.numel() for parameter in parameters])
    return pieces


def difference_errors(training: Training, optimizer: torch.optim.Optimizer) -> dict[float, tuple[float, float]]:
    """Return the relative errors of xᵀAx and of A·x for the leading eigenvector x, by step length."""
    preconditioner = Preconditioner.read(optimizer, "adam")
    assert preconditioner is not None
    root = preconditioner.diagonal.sqrt().double()
    product = exact_product(training)
    operator = LinearOperator(
        (len(root), len(root)), lambda x: (root * product(root * torch.from_numpy(x.ravel()))).numpy(), dtype=np.float64
    )
    leading = torch.from_numpy(eigsh(operator, k=1, which="LA", tol=1e-6)[1][:, 0].copy())
    expected = root * product(root * leading)
    errors = {}
    for length in LENGTHS:
        with Sandbox(training.model, preconditioner.parameters) as sandbox:
            differences = DifferenceHessian(
                sandbox, lambda: training.loss(training.model), preconditioner, relative_step=length
            )
            found = root * differences.product((root * leading).float()).double()
        along = abs(float(leading @ found / (leading @ expected)) - 1)
        errors[length] = along, float((found - expected).norm() / expected.norm())
    return errors


def train(name: str) -> tuple[list[dict[float, tuple[float, float]]], list[int], Counter[str]]:
    """Return the errors at `STEPS`, and the evaluations and outcomes of the readings of the critical sharpness."""
    torch.manual_seed(0)
    training = CASES[name]()
    parameters = list(training.model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=training.lr)
    critical = CriticalSharpness()
    errors, forwards, outcomes = [], [], Counter[str]()
    for step in range(1, max(*STEPS, READINGS) + 1):
        snapshot = StepSnapshot(parameters, training.lr)
        optimizer.zero_grad()
        training.loss(training.model).backward()
        optimizer.step()
        if step in STEPS:
            errors.append(difference_errors(training, optimizer))
        if step <= READINGS:
            with Sandbox(training.model, []) as sandbox:
                reading = critical.measure(sandbox, lambda: training.loss(training.model), snapshot)
            forwards.append(reading.forwards)
            outcomes[reading.outcome] += 1
    return errors, forwards, outcomes


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    found = {name: train(name) for name in CASES}
    print("| model | step | " + " | ".join(f"h = {length:g}" for length in LENGTHS) + " |")
    print("|---|---|" + "---|" * len(LENGTHS))
    for name, (errors, _, _) in found.items():
        for step, by_length in zip(STEPS, errors, strict=True):
            cells = [f"{along:.1e} / {whole:.1e}" for along, whole in by_length.values()]
            print(f"| {name} | {step} | " + " | ".join(cells) + " |")
    print("\n| model | first reading | later readings, median (90 % at most) | outcomes |")
    print("|---|---|---|---|")
    for name, (_, forwards, outcomes) in found.items():
        later = sorted(forwards[1:])
        named = ", ".join(f"{outcome} {count}" for outcome, count in outcomes.most_common())
        most = later[int(0.9 * len(later))]
        print(f"| {name} | {forwards[0]} forwards | {median(later):g} ({most}) | {named} |")


if __name__ == "__main__":
    main()
