"""Random perceptrons and convolutional networks in training on one batch, for the measurements of curvature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Training:
    """A model on one batch of random data."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Tensor
    targets: Tensor
    criterion: Callable[[Tensor, Tensor], Tensor]

    def loss(self) -> Tensor:
        """Return the loss of the batch."""
        return self.criterion(self.model(self.inputs), self.targets)

    def step(self) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


def random_training(seed: int, *, sgd: bool = False, scale: int = 1) -> Training:
    """Return a random model: a perceptron or a small convolutional network, of random depth, width and activation."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    activation = [nn.Tanh, nn.GELU, nn.SiLU, nn.ReLU][int(rng.integers(4))]
    width, depth, count = int(rng.integers(16, 97)) * scale, int(rng.integers(1, 4)), int(rng.integers(64, 385))
    if rng.random() < 0.3:
        layers: list[nn.Module] = [nn.Conv2d(1, width // 4, 3, padding=1), activation()]
        for _ in range(depth):
            layers += [nn.Conv2d(width // 4, width // 4, 3, padding=1), activation()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(width // 4 * 4, 10))
        inputs, kind = torch.randn(count // 4, 1, 8, 8), "cnn"
    else:
        layers = [nn.Linear(20, width), activation()]
        for _ in range(depth):
            layers += [nn.Linear(width, width), activation()]
        model, inputs, kind = nn.Sequential(*layers, nn.Linear(width, 10)), torch.randn(count, 20), "mlp"
    is_classifier = rng.random() < 0.5
    signal = inputs.flatten(1)[:, :10]
    targets = signal.argmax(1) if is_classifier else torch.sin(2 * signal)
    criterion = F.cross_entropy if is_classifier else F.mse_loss
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), 0.05)
        if sgd
        else torch.optim.Adam(model.parameters(), 10 ** rng.uniform(-3.3, -2.0), betas=(0.9, 0.999))
    )
    name = f"{kind} {activation.__name__} {'cross-entropy' if is_classifier else 'squared error'} {width}x{depth}"
    return Training(name=name, model=model, optimizer=optimizer, inputs=inputs, targets=targets, criterion=criterion)
