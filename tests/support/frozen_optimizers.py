"""Optimizers whose second moment stands still, and what they do to gradients that are given to them.

The decay of v is so slow, and v so large, that a few hundred tiny gradients do not change it. The optimizer is then a
linear recursion, and its preconditioner D and its stability limit can be measured without any formula: by the response
of the weights to a gradient that changes its sign at every step, and on a quadratic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

BETA2 = 1 - 1e-9
STEPS_BEFORE = 1e9
"""Step counter of a frozen optimizer, at which corrections for the start change no more."""
SHAPES = ((3, 4), (5,))
"""Shapes of the weights; Adafactor factors the second moment of the first."""

Weights = list[nn.Parameter]
Make = Callable[[Weights], torch.optim.Optimizer]
Torch = torch.optim

OPTIMIZERS: Mapping[str, Make] = {
    "sgd": lambda p: Torch.SGD(p, lr=0.1),
    "sgd-heavy-ball": lambda p: Torch.SGD(p, lr=0.1, momentum=0.9),
    "sgd-average": lambda p: Torch.SGD(p, lr=0.1, momentum=0.9, dampening=0.9),
    "sgd-dampened": lambda p: Torch.SGD(p, lr=0.1, momentum=0.8, dampening=0.3),
    "sgd-nesterov": lambda p: Torch.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: Torch.Adam(p, lr=0.01, betas=(0.9, BETA2)),
    "adam-no-momentum": lambda p: Torch.Adam(p, lr=0.01, betas=(0.0, BETA2)),
    "adam-large-eps": lambda p: Torch.Adam(p, lr=0.01, betas=(0.9, BETA2), eps=0.5),
    "adam-coupled-decay": lambda p: Torch.Adam(p, lr=0.01, betas=(0.9, BETA2), weight_decay=0.3),
    "adamw": lambda p: Torch.AdamW(p, lr=0.01, betas=(0.95, BETA2), weight_decay=0.0),
    "amsgrad": lambda p: Torch.Adam(p, lr=0.01, betas=(0.9, BETA2), amsgrad=True),
    "nadam": lambda p: Torch.NAdam(p, lr=0.01, betas=(0.9, BETA2)),
    "nadam-early": lambda p: Torch.NAdam(p, lr=0.01, betas=(0.9, BETA2), momentum_decay=0.0),  # μ stays at β1/2
    "radam": lambda p: Torch.RAdam(p, lr=0.01, betas=(0.9, BETA2)),
    "adamax": lambda p: Torch.Adamax(p, lr=0.01, betas=(0.9, BETA2)),
    "rmsprop": lambda p: Torch.RMSprop(p, lr=0.01, alpha=BETA2),
    "rmsprop-momentum": lambda p: Torch.RMSprop(p, lr=0.01, alpha=BETA2, momentum=0.9),
    "rmsprop-centred": lambda p: Torch.RMSprop(p, lr=0.01, alpha=BETA2, centered=True, eps=0.1),
    "rmsprop-centred-momentum": lambda p: Torch.RMSprop(p, lr=0.01, alpha=BETA2, centered=True, momentum=0.5),
    "adagrad": lambda p: Torch.Adagrad(p, lr=0.01),
    "adagrad-slowing": lambda p: Torch.Adagrad(p, lr=0.01, lr_decay=1e-9),
    "adadelta": lambda p: Torch.Adadelta(p, lr=0.5, rho=BETA2),
    "adadelta-large-eps": lambda p: Torch.Adadelta(p, lr=0.5, rho=BETA2, eps=0.5),
    "adafactor": lambda p: Torch.Adafactor(p, lr=1e-5, beta2_decay=-1.0),
    "adafactor-slowing": lambda p: Torch.Adafactor(p, lr=0.01, beta2_decay=-1.0),  # the rate is 1/√t
    "transformers-adafactor": lambda p: _transformers_adafactor(p, scale_parameter=True),
    "transformers-adafactor-momentum": lambda p: _transformers_adafactor(p, scale_parameter=False, beta1=0.9),
}
"""Every optimizer whose limit is known, besides those of `test_stability_limits`."""

SECOND_MOMENTS = (
    "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum", "variance", "row_var", "col_var",
    "exp_avg_sq_row", "exp_avg_sq_col",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """An optimizer of weights near ``target`` whose second moment does not move."""

    weights: Weights
    target: list[Tensor]
    optimizer: torch.optim.Optimizer

    def give(self, gradient: Tensor) -> Tensor:
        """Make one step with a gradient [n] and return the movement of the weights, [n]."""
        before = self.offset()
        for weight, piece in zip(self.weights, gradient.split([w.numel() for w in self.weights]), strict=True):
            weight.grad = piece.view_as(weight).clone()
        self.optimizer.step()
        return self.offset() - before

    def offset(self) -> Tensor:
        """Return the distance of the weights from the target, [n]."""
        pieces = [(w.detach() - t).reshape(-1) for w, t in zip(self.weights, self.target, strict=True)]
        return torch.cat(pieces)

    def move_to(self, offset: Tensor) -> None:
        """Set the weights to the target plus ``offset`` [n]."""
        pieces = offset.split([weight.numel() for weight in self.weights])
        for weight, target, piece in zip(self.weights, self.target, pieces, strict=True):
            weight.data.copy_(target + piece.view_as(weight))


def frozen(make: Make, seed: int = 0) -> Frozen:
    """Return an optimizer with random second moments, no momentum, and a step counter of `STEPS_BEFORE`."""
    generator = torch.Generator().manual_seed(seed)
    target = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    weights = [nn.Parameter(values.clone()) for values in target]
    optimizer = make(weights)
    if any(group.get("weight_decay") for group in optimizer.param_groups):
        target = [torch.zeros_like(values) for values in target]  # where the decay has its minimum too
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()  # makes the state
    for weight, values in zip(weights, target, strict=True):
        weight.data.copy_(values)
        state = optimizer.state[weight]
        for name, value in state.items():
            if name in SECOND_MOMENTS and isinstance(value, Tensor):
                value.copy_(torch.rand(value.shape, generator=generator, dtype=value.dtype) * 3 + 0.5)
            elif name == "step":
                state[name] = torch.full_like(value, STEPS_BEFORE) if isinstance(value, Tensor) else int(STEPS_BEFORE)
            elif name in ("mu_product", "exp_avg"):
                value.zero_()
        if "max_exp_avg_sq" in state:
            state["max_exp_avg_sq"].add_(state["exp_avg_sq"])
        if isinstance(state.get("grad_avg"), Tensor):
            state["grad_avg"].copy_(0.8 * state["square_avg"].sqrt())
    return Frozen(weights=weights, target=target, optimizer=optimizer)


def response(subject: Frozen, lr: float, steps: int = 300) -> Tensor:
    """Return −Δw/(lr·g) of each coordinate for a gradient g that changes its sign at every step, [n].

    This is the diagonal of the preconditioner D with the gain of the momentum, measured.
    """
    generator = torch.Generator().manual_seed(1)
    pattern = torch.randn(subject.offset().numel(), generator=generator, dtype=torch.float64) * 1e-4
    for step in range(steps):
        subject.give(pattern if step % 2 == 0 else -pattern)
    ahead, back = subject.give(pattern), subject.give(-pattern)
    return (back - ahead) / (2.0 * lr * pattern)  # what does not change its sign cancels


def descend(subject: Frozen, hessian: Tensor, steps: int) -> float:
    """Return the factor by which ``steps`` steps on the quadratic of ``hessian`` [n, n] change the distance."""
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(len(hessian), generator=generator, dtype=torch.float64) * 1e-9
    subject.move_to(start)
    for _ in range(steps):
        subject.give(hessian @ subject.offset())
        distance = float(subject.offset().norm() / start.norm())
        if not 1e-4 < distance < 1e4:
            break
    return distance


def growth(subject: Frozen, hessian: Tensor, steps: int, direction: Tensor | None = None) -> float:
    """Return the factor by which a late step on the quadratic of ``hessian`` [n, n] changes the distance.

    The weights start near the minimum, in a random ``direction`` [n] if none is given.
    """
    generator = torch.Generator().manual_seed(2)
    if direction is None:
        direction = torch.randn(len(hessian), generator=generator, dtype=torch.float64)
    subject.move_to(1e-9 * direction / direction.norm())
    distances = [float(subject.offset().norm())]
    while len(distances) <= steps and distances[0] * 1e-5 < distances[-1] < distances[0] * 1e5:
        subject.give(hessian @ subject.offset())
        distances.append(float(subject.offset().norm()))
    late = len(distances) // 2 if len(distances) > steps else min(4, len(distances) - 1)  # fast ones end early
    return float((distances[-1] / distances[-1 - late]) ** (1 / late))


def random_hessian(diagonal: Tensor, largest: float, *, penalty: Tensor | None = None, seed: int = 3) -> Tensor:
    """Return a random Hessian H, [n, n], for which D·(H + γ) has the eigenvalues 0.3 to 1 times ``largest``.

    ``diagonal`` is that of D, [n], and ``penalty`` γ, [n].
    """
    generator = torch.Generator().manual_seed(seed)
    size = len(diagonal)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    values = torch.linspace(0.3, 1.0, size, dtype=torch.float64) * largest
    root = diagonal.sqrt()
    hessian: Tensor = (basis @ torch.diag(values) @ basis.T) / (root.unsqueeze(0) * root.unsqueeze(1))
    return hessian if penalty is None else hessian - torch.diag(penalty)


def _transformers_adafactor(weights: Weights, **options: Any) -> torch.optim.Optimizer:
    adafactor: Any = transformers.Adafactor
    made: torch.optim.Optimizer = adafactor(weights, lr=0.01, relative_step=False, decay_rate=-1.0, **options)
    return made
