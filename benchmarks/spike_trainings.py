"""Small trainings of many kinds that spike, ride the edge of stability, or stay healthy; seconds each on a CPU.

Owns the cases that `benchmarks.record_cases` records. A *family* is a task with an architecture: forecasts are fitted
on some families and judged on the others. The cause of a case says how it was built, not what was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn

from server.evaluation.recording import CONTROL

Loss = Callable[[], Tensor]
ADAM = "adam-preconditioner"
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


@dataclass(frozen=True, kw_only=True)
class Training:
    """A model and a function that draws the batch of a step and returns its loss function."""

    model: nn.Module
    new_batch: Callable[[int], Loss]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training with Adam, or AdamW where it has weight decay, unless it names its optimizer."""

    family: str
    cause: str
    build: Callable[[], Training]
    steps: int = 1_000
    lr: float = 0.01
    beta2: float = 0.999
    weight_decay: float = 0.0
    warmup: int = 0
    fault_steps: tuple[int, ...] = ()
    lr_jump: float = 1.0
    """Factor on the learning rate from the first fault step on."""
    kind: type[torch.optim.Optimizer] | None = None
    """RMSprop, NAdam with the betas, or SGD with momentum 0.9; None for Adam or AdamW."""

    @property
    def has_mini_batches(self) -> bool:
        """Whether the steps read different batches, by the argument ``batch`` of the function that builds it."""
        return isinstance(self.build, partial) and self.build.keywords.get("batch") is not None

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of the case for its model."""
        if self.kind is torch.optim.SGD:
            return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        if self.kind is torch.optim.RMSprop:
            return torch.optim.RMSprop(model.parameters(), lr=self.lr, alpha=self.beta2)
        if self.kind is torch.optim.NAdam:
            return torch.optim.NAdam(model.parameters(), lr=self.lr, betas=(0.9, self.beta2))
        kind = torch.optim.AdamW if self.weight_decay else torch.optim.Adam
        return kind(model.parameters(), lr=self.lr, betas=(0.9, self.beta2), weight_decay=self.weight_decay)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        jump = self.lr_jump if self.fault_steps and step >= self.fault_steps[0] else 1.0
        return self.lr * jump * (min(1.0, step / self.warmup) if self.warmup else 1.0)


def layers(widths: Sequence[int], activation: str) -> nn.Sequential:
    """Return a fully connected network of these widths."""
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*parts[:-1])


def of_rows(model: nn.Module, count: int, loss_of: Callable[[Tensor], Tensor], batch: int | None) -> Training:
    """Return a training on rows 0 to ``count``; all of them at every step, or ``batch`` random ones."""

    def new_batch(step: int) -> Loss:
        del step
        rows = torch.arange(count) if batch is None else torch.randint(count, (batch,))
        return lambda: loss_of(rows)

    return Training(model=model, new_batch=new_batch)


def regression(
    *,
    width: int = 32,
    depth: int = 2,
    activation: str = "tanh",
    points: int = 500,
    inputs: int = 30,
    noise: float = 0.0,
    batch: int | None = None,
) -> Training:
    """Return the regression of a sine plus a plane of random points, with a squared error."""
    data = torch.randn(points, inputs)
    direction = torch.randn(inputs, 1) / inputs**0.5
    targets = torch.sin(3 * data @ direction) + data @ direction + noise * torch.randn(points, 1)
    model = layers([inputs] + [width] * depth + [1], activation)
    return of_rows(model, points, lambda rows: (model(data[rows]) - targets[rows]).square().mean(), batch)


def digits() -> tuple[Tensor, Tensor]:
    """Return the images of digits, shape (1797, 64), and their classes."""
    pixels, numbers = load_digits(return_X_y=True)
    order = torch.randperm(len(numbers))
    return torch.tensor(pixels / 16 - 0.3, dtype=torch.float32)[order], torch.tensor(numbers)[order]


def classify(
    *,
    activation: str = "tanh",
    depth: int = 2,
    points: int = 600,
    is_squared: bool = False,
    is_cnn: bool = False,
    flipped: float = 0.0,
    batch: int | None = None,
    bad_steps: tuple[int, ...] = (),
) -> Training:
    """Return a classifier of digits with a squared error or a cross-entropy; at bad steps its inputs are 30 times."""
    images, classes = digits()
    images, classes = images[:points], classes[:points]
    classes = torch.where(torch.rand(points) < flipped, torch.randint(10, (points,)), classes)
    one_hot = F.one_hot(classes, 10).float()
    model = layers([64] + [48] * depth + [10], activation)
    if is_cnn:
        images, act = images.view(-1, 1, 8, 8), ACTIVATIONS[activation]
        model = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), act(), nn.Conv2d(8, 16, 3, stride=2, padding=1), act()),
            *(nn.Conv2d(16, 16, 3, stride=2, padding=1), act(), nn.Flatten(), nn.Linear(64, 10)),
        )

    def loss(rows: Tensor, scale: float) -> Tensor:
        predicted: Tensor = model(images[rows] * scale)
        if is_squared:
            return (predicted - one_hot[rows]).square().sum(1).mean()
        return F.cross_entropy(predicted, classes[rows])

    def new_batch(step: int) -> Loss:
        rows = torch.arange(points) if batch is None else torch.randint(points, (batch,))
        return lambda: loss(rows, 30.0 if step in bad_steps else 1.0)

    return Training(model=model, new_batch=new_batch)


def cancer(batch: int | None = None) -> Training:
    """Return a binary classifier of a medical table, with a cross-entropy."""
    table, labels = load_breast_cancer(return_X_y=True)
    data = torch.tensor((table - table.mean(0)) / table.std(0), dtype=torch.float32)
    targets = torch.tensor(labels, dtype=torch.float32)
    model = layers([30, 32, 32, 1], "silu")
    return of_rows(
        model,
        len(data),
        lambda rows: F.binary_cross_entropy_with_logits(model(data[rows]).squeeze(1), targets[rows]),
        batch,
    )


def autoencoder(batch: int | None = None) -> Training:
    """Return a network that reconstructs digits through eight numbers."""
    images = digits()[0][:500]
    model = layers([64, 48, 8, 48, 64], "gelu")
    return of_rows(model, 500, lambda rows: (model(images[rows]) - images[rows]).square().sum(1).mean(), batch)


def modular_addition(modulus: int = 23, share: float = 0.5, batch: int | None = None) -> Training:
    """Return a network that learns a + b modulo a prime from embeddings, with a cross-entropy."""

    class Adder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.net = nn.Embedding(modulus, 32), layers([64, 96, modulus], "gelu")

        def forward(self, pairs: Tensor) -> Tensor:
            logits: Tensor = self.net(self.embedding(pairs).flatten(1))
            return logits

    pairs = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    pairs = pairs[torch.randperm(len(pairs))[: int(share * len(pairs))]]
    sums, model = pairs.sum(1) % modulus, Adder()
    return of_rows(model, len(pairs), lambda rows: F.cross_entropy(model(pairs[rows]), sums[rows]), batch)


class Sequences(nn.Module):
    """A small causal transformer, with or without normalisation."""

    def __init__(self, symbols: int, length: int, *, is_normed: bool) -> None:
        super().__init__()
        width = 32
        self.token, self.position = nn.Embedding(symbols, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.mlp = nn.ModuleList(layers([width, 2 * width, width], "gelu") for _ in range(2))
        self.norm = nn.LayerNorm(width) if is_normed else nn.Identity()
        self.head = nn.Linear(width, symbols)
        self.mask = torch.ones(length, length, dtype=torch.bool).triu(1)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of the next symbol, shape (sequences, length, symbols)."""
        x = self.token(ids) + self.position
        for qkv, out, mlp in zip(self.qkv, self.out, self.mlp, strict=True):
            query, key, value = qkv(self.norm(x)).chunk(3, dim=-1)
            weights = (query @ key.transpose(1, 2) / 32**0.5).masked_fill(self.mask, -torch.inf).softmax(-1)
            x = x + out(weights @ value)
            x = x + mlp(self.norm(x))
        logits: Tensor = self.head(x)
        return logits


def sequences(*, is_normed: bool = True, batch: int | None = None, count: int = 48) -> Training:
    """Return a transformer that learns sequences in which each symbol follows from the two before it."""
    symbols, length = 17, 12
    ids = torch.randint(symbols, (count, 2))
    for _ in range(length - 1):
        ids = torch.cat([ids, (3 * ids[:, -1:] + ids[:, -2:-1] + 1) % symbols], dim=1)
    model = Sequences(symbols, length, is_normed=is_normed)
    return of_rows(
        model,
        count,
        lambda rows: F.cross_entropy(model(ids[rows, :-1]).flatten(0, 1), ids[rows, 1:].flatten()),
        batch,
    )


def recurrent(batch: int | None = None) -> Training:
    """Return a recurrent network that adds the marked numbers of a sequence, with a squared error."""
    count, length = 200, 10
    values, marks = torch.randn(count, length), (torch.rand(count, length) < 0.3).float()
    targets = (values * marks).sum(1, keepdim=True)
    inputs = torch.stack([values, marks], dim=2)
    into, again, out = nn.Linear(2, 32), nn.Linear(32, 32), nn.Linear(32, 1)

    def loss(rows: Tensor) -> Tensor:
        state = torch.zeros(len(rows), 32)
        for at in range(length):
            state = torch.tanh(into(inputs[rows, at]) + again(state))
        error: Tensor = out(state) - targets[rows]
        return error.square().mean()

    return of_rows(nn.ModuleList([into, again, out]), count, loss, batch)


def factorisation(depth: int = 3, batch: int | None = None) -> Training:
    """Return a product of matrices that approximates a matrix of rank four."""
    target = torch.randn(40, 4) @ torch.randn(4, 40) / 2
    model = nn.Sequential(*(nn.Linear(40, 40, bias=False) for _ in range(depth)))
    return of_rows(model, 40, lambda rows: (model(torch.eye(40)[rows]) - target[rows]).square().sum(1).mean(), batch)


def waves() -> Training:
    """Return a network that learns a function on a line from its values and its slope."""
    x = torch.linspace(-1, 1, 160).unsqueeze(1).requires_grad_()
    value, slope = torch.sin(6 * x).detach(), 6 * torch.cos(6 * x).detach()
    model = layers([1, 48, 48, 1], "tanh")

    def loss(rows: Tensor) -> Tensor:
        found = model(x[rows])
        (gradient,) = torch.autograd.grad(found.sum(), x, create_graph=True)
        error: Tensor = (found - value[rows]).square().mean() + 0.1 * (gradient[rows] - slope[rows]).square().mean()
        return error

    return of_rows(model, 160, loss, None)


CASES: dict[str, Case] = {
    "regression-tanh": Case(family="regression", cause=ADAM, build=partial(regression, points=800, noise=0.3)),
    "regression-tanh-b99": Case(family="regression", cause=ADAM, build=partial(regression, noise=0.2), beta2=0.99),
    "regression-relu": Case(family="regression", cause=ADAM, build=partial(regression, activation="relu")),
    "regression-silu-lr3e-2": Case(
        family="regression", cause=ADAM, build=partial(regression, activation="silu", inputs=10, depth=3), lr=0.03
    ),
    "regression-batch-128": Case(
        family="regression-batches", cause=ADAM, build=partial(regression, noise=0.2, batch=128, depth=3), lr=0.02
    ),
    "regression-b90-edge": Case(
        family="regression", cause=CONTROL, build=partial(regression, points=800, noise=0.3), beta2=0.9, lr=0.005
    ),
    "regression-batch-16-healthy": Case(
        family="regression-batches", cause=CONTROL, build=partial(regression, noise=0.5, batch=16), lr=0.001
    ),
    "digits-squared": Case(family="digits-squared", cause=ADAM, build=partial(classify, is_squared=True)),
    "digits-squared-batch-200": Case(
        family="digits-batches",
        cause=ADAM,
        build=partial(classify, is_squared=True, batch=200, depth=4),
        lr=0.03,
        beta2=0.99,
    ),
    "digits-cross-entropy": Case(
        family="digits-cross-entropy",
        cause=ADAM,
        build=partial(classify, flipped=0.2, activation="gelu"),
        lr=0.03,
        weight_decay=0.3,
    ),
    "digits-cross-entropy-b99": Case(
        family="digits-cross-entropy",
        cause=ADAM,
        build=partial(classify, flipped=0.2, depth=3),
        lr=0.03,
        beta2=0.99,
        weight_decay=0.5,
    ),
    "digits-cross-entropy-healthy": Case(
        family="digits-batches", cause=CONTROL, build=partial(classify, flipped=0.2, batch=64), lr=0.001
    ),
    "digits-bad-batch": Case(
        family="digits-batches",
        cause="data",
        lr=0.002,
        fault_steps=(500, 800),
        build=partial(classify, flipped=0.1, batch=64, bad_steps=(500, 800)),
    ),
    "digits-lr-jump": Case(
        family="digits-batches",
        cause="lr-jump",
        lr=0.001,
        fault_steps=(600,),
        lr_jump=100.0,
        build=partial(classify, flipped=0.1, batch=64),
    ),
    "cnn-squared": Case(
        family="cnn", cause=ADAM, build=partial(classify, is_squared=True, is_cnn=True, points=200), lr=0.02, steps=700
    ),
    "cnn-cross-entropy-b99": Case(
        family="cnn",
        cause=ADAM,
        steps=700,
        lr=0.02,
        beta2=0.99,
        build=partial(classify, is_cnn=True, points=200, flipped=0.2, activation="relu"),
        weight_decay=0.3,
    ),
    "cancer": Case(family="cancer", cause=ADAM, build=cancer, lr=0.02, weight_decay=0.5),
    "cancer-batch-32-healthy": Case(family="cancer", cause=CONTROL, build=partial(cancer, batch=32), lr=0.0005),
    "autoencoder": Case(family="autoencoder", cause=ADAM, build=autoencoder, lr=0.03),
    "autoencoder-batch-128": Case(
        family="autoencoder", cause=ADAM, build=partial(autoencoder, batch=128), lr=0.03, beta2=0.99
    ),
    "modular-addition": Case(
        family="modular-addition", cause=ADAM, build=modular_addition, lr=0.02, beta2=0.98, weight_decay=1.0
    ),
    "modular-addition-b999": Case(
        family="modular-addition", cause=ADAM, build=modular_addition, lr=0.01, weight_decay=1.0
    ),
    "modular-addition-healthy": Case(
        family="modular-addition", cause=CONTROL, build=modular_addition, lr=0.0005, beta2=0.98
    ),
    "transformer": Case(family="transformer", cause=ADAM, build=sequences, lr=0.01, steps=700, weight_decay=0.5),
    "transformer-b95-batch-16": Case(
        family="transformer",
        cause=CONTROL,
        lr=0.002,
        beta2=0.95,
        warmup=50,
        steps=700,
        weight_decay=0.1,
        build=partial(sequences, batch=16, count=400),
    ),
    "transformer-norm-free": Case(
        family="transformer",
        cause="norm-free",
        build=partial(sequences, is_normed=False),
        lr=0.02,
        steps=700,
        warmup=50,
    ),
    "recurrent": Case(family="recurrent", cause=ADAM, build=recurrent, lr=0.01, steps=700),
    "recurrent-b90": Case(family="recurrent", cause=ADAM, build=recurrent, lr=0.005, beta2=0.9, steps=700),
    "factorisation": Case(family="factorisation", cause=ADAM, build=factorisation, lr=0.05),
    "factorisation-b95": Case(family="factorisation", cause=ADAM, build=factorisation, lr=0.01, beta2=0.95),
    "waves": Case(family="waves", cause=ADAM, build=waves, lr=0.01),
}
"""The cases by name."""
