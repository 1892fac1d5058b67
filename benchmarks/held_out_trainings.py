"""Small trainings that no detector was fitted to or tried on while it was written: they are a test, and only that.

Owns the cases of `python -m benchmarks.record_cases DIRECTORY --set held-out`. Their tasks, architectures, losses and
optimizers are others than those of `spike_trainings`. Rates were chosen by the loss alone, so that many of them spike;
what the detectors say about them had no part in that, and no constant may be chosen by them. Each is a *family*.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes, load_wine
from torch import Tensor, nn

from benchmarks.spike_trainings import ADAM, Case, Loss, Training, digits, layers, of_rows
from server.evaluation.recording import CONTROL

OTHER = ""
"""Cause of a run whose optimizer is not Adam; its events arise by themselves."""


def gated(batch: int | None = None) -> Training:
    """Return a gated recurrent network that tells which of two symbols a sequence has more of."""
    count, length = 160, 12
    symbols = torch.randint(3, (count, length))
    classes = ((symbols == 0).sum(1) > (symbols == 1).sum(1)).long()
    embedding, cell, head = nn.Embedding(3, 16), nn.GRUCell(16, 32), nn.Linear(32, 2)

    def loss(rows: Tensor) -> Tensor:
        state = torch.zeros(len(rows), 32)
        for at in range(length):
            state = cell(embedding(symbols[rows, at]), state)
        return F.cross_entropy(head(state), classes[rows])

    return of_rows(nn.ModuleList([embedding, cell, head]), count, loss, batch)


def gratings(batch: int | None = None) -> Training:
    """Return a convolutional network that reads the angle of a noisy grating, with a squared error."""
    count, size = 240, 12
    angle, phase = torch.rand(count) * torch.pi, torch.rand(count) * 2 * torch.pi
    across = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(across, across, indexing="ij")
    waves = x * angle.cos().view(-1, 1, 1) + y * angle.sin().view(-1, 1, 1)
    images = (torch.sin(8 * waves + phase.view(-1, 1, 1)) + 0.3 * torch.randn(count, size, size)).unsqueeze(1)
    targets = torch.stack([(2 * angle).cos(), (2 * angle).sin()], dim=1)
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.SiLU(), nn.AvgPool2d(2), nn.Conv2d(6, 12, 3), nn.SiLU(), nn.Flatten()),
        nn.Linear(48, 2),
    )
    return of_rows(model, count, lambda rows: (model(images[rows]) - targets[rows]).square().sum(1).mean(), batch)


class Attention(nn.Module):
    """Two layers of attention without normalisation that read a set of points."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(3, 24)
        self.qkv = nn.ModuleList(nn.Linear(24, 72) for _ in range(2))
        self.mlp = nn.ModuleList(layers([24, 48, 24], "relu") for _ in range(2))
        self.out = nn.Linear(24, 1)

    def forward(self, points: Tensor) -> Tensor:
        """Return one number for each set, shape (sets, 1)."""
        x: Tensor = self.into(points)
        for qkv, mlp in zip(self.qkv, self.mlp, strict=True):
            query, key, value = qkv(x).chunk(3, dim=-1)
            x = x + (query @ key.transpose(1, 2) / 24**0.5).softmax(-1) @ value
            x = x + mlp(x)
        found: Tensor = self.out(x.mean(1))
        return found


def attention(batch: int | None = None) -> Training:
    """Return a transformer without normalisation that estimates the slope of a line from noisy points."""
    count, points = 120, 8
    slope, at = torch.randn(count, 1), torch.randn(count, points)
    height = slope * at + 0.1 * torch.randn(count, points)
    data, model = torch.stack([at, height, at * height], dim=2), Attention()
    return of_rows(model, count, lambda rows: (model(data[rows]) - slope[rows]).square().mean(), batch)


def diabetes(batch: int | None = None) -> Training:
    """Return the regression of a medical table, with a Huber loss."""
    table, progress = load_diabetes(return_X_y=True)
    data = torch.tensor(table / table.std(0), dtype=torch.float32)
    targets = torch.tensor((progress - progress.mean()) / progress.std(), dtype=torch.float32).unsqueeze(1)
    model = layers([10, 40, 40, 1], "tanh")
    return of_rows(model, len(data), lambda rows: F.huber_loss(model(data[rows]), targets[rows]), batch)


def wine(batch: int | None = None) -> Training:
    """Return a classifier of wines with label smoothing."""
    table, kinds = load_wine(return_X_y=True)
    data = torch.tensor((table - table.mean(0)) / table.std(0), dtype=torch.float32)
    classes, model = torch.tensor(kinds), layers([13, 48, 48, 3], "gelu")
    return of_rows(
        model, len(data), lambda rows: F.cross_entropy(model(data[rows]), classes[rows], label_smoothing=0.1), batch
    )


def spiral(batch: int | None = None) -> Training:
    """Return a classifier of three arms of a spiral, with a cross-entropy."""
    count = 300
    arm, radius = torch.arange(count) % 3, torch.rand(count) * 0.9 + 0.1
    angle = 5 * radius + arm * 2 * torch.pi / 3 + 0.1 * torch.randn(count)
    data = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    model = layers([2, 48, 48, 3], "relu")
    return of_rows(model, count, lambda rows: F.cross_entropy(model(data[rows]), arm[rows]), batch)


def contrast(batch: int | None = None) -> Training:
    """Return a network that finds the noisy copy of an image among those of the others (InfoNCE)."""
    images = digits()[0][:128]
    copies = images + 0.2 * torch.randn_like(images)
    model = layers([64, 48, 16], "silu")

    def loss(rows: Tensor) -> Tensor:
        one, other = F.normalize(model(images[rows]), dim=1), F.normalize(model(copies[rows]), dim=1)
        return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(rows)))

    return of_rows(model, 128, loss, batch)


def variational(batch: int | None = None) -> Training:
    """Return a variational autoencoder of digits; each step draws its own noise, which the closure repeats."""
    images = digits()[0][:400]
    encoder, decoder = layers([64, 48, 12], "tanh"), layers([6, 48, 64], "tanh")

    def new_batch(step: int) -> Loss:
        del step
        rows = torch.arange(400) if batch is None else torch.randint(400, (batch,))
        noise = torch.randn(len(rows), 6)

        def loss() -> Tensor:
            mean, spread = encoder(images[rows]).chunk(2, dim=1)
            rebuilt = decoder(mean + noise * (0.5 * spread).exp())
            divergence = 0.5 * (mean.square() + spread.exp() - spread - 1).sum(1)
            total: Tensor = ((rebuilt - images[rows]).square().sum(1) + 0.02 * divergence).mean()
            return total

        return loss

    return Training(model=nn.ModuleList([encoder, decoder]), new_batch=new_batch)


def deep_linear(batch: int | None = None) -> Training:
    """Return six matrices in a row that learn a linear map of correlated data."""
    data = torch.randn(200, 24) * torch.logspace(0, -1, 24)
    targets = data @ torch.randn(24, 8) / 3
    model = nn.Sequential(*(nn.Linear(24, 24, bias=False) for _ in range(5)), nn.Linear(24, 8, bias=False))
    return of_rows(model, 200, lambda rows: (model(data[rows]) - targets[rows]).square().mean(), batch)


def mixture(batch: int | None = None) -> Training:
    """Return a classifier of Gaussian clouds of which a third have a random label."""
    count = 400
    classes = torch.randint(5, (count,))
    data = 2 * torch.randn(5, 20)[classes] + 1.5 * torch.randn(count, 20)
    labels = torch.where(torch.rand(count) < 0.33, torch.randint(5, (count,)), classes)
    model = layers([20, 64, 64, 5], "relu")
    return of_rows(model, count, lambda rows: F.cross_entropy(model(data[rows]), labels[rows]), batch)


class Rounded(nn.Module):
    """An activation whose values are rounded to bfloat16, with the gradient of the exact ones."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded tanh."""
        y = torch.tanh(x)
        return y + (y.bfloat16().float() - y).detach()


def rounded(batch: int | None = None) -> Training:
    """Return a regression whose activations are rounded as in mixed precision."""
    data = torch.randn(300, 12)
    targets = (data[:, :3].prod(1) + data[:, 3].square()).unsqueeze(1)
    model = nn.Sequential(nn.Linear(12, 64), Rounded(), nn.Linear(64, 64), Rounded(), nn.Linear(64, 1))
    return of_rows(model, 300, lambda rows: (model(data[rows]) - targets[rows]).square().mean(), batch)


class Sine(nn.Module):
    """The activation of implicit representations, sin(8x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the sine."""
        return torch.sin(8 * x)


def picture(batch: int | None = None) -> Training:
    """Return a network of sines that learns one image from the positions of its pixels."""
    across = torch.linspace(-1, 1, 16)
    at = torch.cartesian_prod(across, across)
    brightness = torch.sin(5 * at[:, :1] * at[:, 1:]) + (at.square().sum(1, keepdim=True) < 0.4).float()
    model = nn.Sequential(nn.Linear(2, 48), Sine(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1))
    return of_rows(model, 256, lambda rows: (model(at[rows]) - brightness[rows]).square().mean(), batch)


class Experts(nn.Module):
    """Four experts whose outputs a gate weighs."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.experts = nn.ModuleList(layers([8, 24, 1], "tanh") for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return one number for each row."""
        found = torch.cat([expert(x) for expert in self.experts], dim=1)
        weighed: Tensor = (self.gate(x).softmax(1) * found).sum(1, keepdim=True)
        return weighed


def experts(batch: int | None = None) -> Training:
    """Return a mixture of experts that learns a function in pieces."""
    data = torch.randn(256, 8)
    targets = torch.where(data[:, :1] > 0, data[:, 1:2].abs(), torch.sin(4 * data[:, 2:3]))
    model = Experts()
    return of_rows(model, 256, lambda rows: (model(data[rows]) - targets[rows]).square().mean(), batch)


def ratings(batch: int | None = None) -> Training:
    """Return embeddings of users and items whose product is a rating; each batch touches some of them."""
    users, items = torch.randint(60, (900,)), torch.randint(40, (900,))
    scores = (torch.randn(60, 4)[users] * torch.randn(40, 4)[items]).sum(1)
    of_user, of_item = nn.Embedding(60, 8), nn.Embedding(40, 8)
    return of_rows(
        nn.ModuleList([of_user, of_item]),
        900,
        lambda rows: ((of_user(users[rows]) * of_item(items[rows])).sum(1) - scores[rows]).square().mean(),
        batch,
    )


def letters(batch: int | None = None) -> Training:
    """Return a network that predicts a letter from the three before it."""
    text = "the second moment decays while the gradient is small and the step grows until the loss rises again " * 4
    alphabet = sorted(set(text))
    ids = torch.tensor([alphabet.index(letter) for letter in text])
    before, after = ids.unfold(0, 4, 1)[:, :3], ids.unfold(0, 4, 1)[:, 3]
    embedding, net = nn.Embedding(len(alphabet), 12), layers([36, 64, len(alphabet)], "gelu")
    return of_rows(
        nn.ModuleList([embedding, net]),
        len(before),
        lambda rows: F.cross_entropy(net(embedding(before[rows]).flatten(1)), after[rows]),
        batch,
    )


CASES: dict[str, Case] = {
    "gated": Case(family="gated", cause=ADAM, build=gated, lr=0.05, steps=700),
    "gated-batch-32-healthy": Case(family="gated", cause=CONTROL, build=partial(gated, batch=32), lr=0.0005, steps=700),
    "gratings": Case(family="gratings", cause=ADAM, build=gratings, lr=0.02),
    "gratings-batch-64": Case(family="gratings", cause=ADAM, build=partial(gratings, batch=64), lr=0.05),
    "attention": Case(family="attention", cause=ADAM, build=attention, lr=0.005, steps=700),
    "attention-batch-30-b95": Case(
        family="attention", cause=ADAM, build=partial(attention, batch=30), lr=0.005, beta2=0.95, warmup=50
    ),
    "diabetes-rmsprop": Case(family="diabetes", cause=OTHER, build=diabetes, lr=0.003, kind=torch.optim.RMSprop),
    "diabetes-batch-32-healthy": Case(family="diabetes", cause=CONTROL, build=partial(diabetes, batch=32), lr=0.0005),
    "wine": Case(family="wine", cause=ADAM, build=wine, lr=0.05, weight_decay=0.5),
    "spiral-nadam": Case(family="spiral", cause=ADAM, build=spiral, lr=0.05, kind=torch.optim.NAdam),
    "contrast": Case(family="contrast", cause=ADAM, build=contrast, lr=0.02),
    "contrast-batch-48-healthy": Case(family="contrast", cause=CONTROL, build=partial(contrast, batch=48), lr=0.001),
    "variational": Case(family="variational", cause=ADAM, build=variational, lr=0.08),
    "variational-batch-64-healthy": Case(
        family="variational", cause=CONTROL, build=partial(variational, batch=64), lr=0.001
    ),
    "deep-linear": Case(family="deep-linear", cause=ADAM, build=deep_linear, lr=0.01),
    "mixture": Case(family="mixture", cause=ADAM, build=mixture, lr=0.03, weight_decay=0.5),
    "mixture-batch-100": Case(family="mixture", cause=ADAM, build=partial(mixture, batch=100), lr=0.04, beta2=0.99),
    "rounded": Case(family="rounded", cause=ADAM, build=rounded, lr=0.01),
    "rounded-sgd": Case(family="rounded", cause=OTHER, build=rounded, lr=0.08, kind=torch.optim.SGD),
    "picture": Case(family="picture", cause=ADAM, build=picture, lr=0.01),
    "experts": Case(family="experts", cause=ADAM, build=experts, lr=0.02),
    "experts-batch-64": Case(family="experts", cause=ADAM, build=partial(experts, batch=64), lr=0.04),
    "ratings-batch-300": Case(family="ratings", cause=ADAM, build=partial(ratings, batch=300), lr=0.2),
    "letters": Case(family="letters", cause=ADAM, build=letters, lr=0.05, beta2=0.98, weight_decay=0.3),
    "letters-batch-64-healthy": Case(
        family="letters", cause=CONTROL, build=partial(letters, batch=64), lr=0.002, beta2=0.95
    ),
}
"""The cases by name."""
