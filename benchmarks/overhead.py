"""Overhead of `watch`: the time of a training step with the SDK relative to the bare step, in one process.

    python -m benchmarks.overhead [--rounds 30] [--steps 10]

Bare training, `watch` + `log`, and `watch` + `log` with a closure alternate every few steps, so that a busy machine
slows all of them alike. Records go to a spool on disk (offline mode), as in a run whose server is unreachable. Only the
later half of the rounds counts, which leaves out the cold start of the eigenvector.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client_sdk.config import Settings
from client_sdk.run import Run
from client_sdk.watch import watch

VARIANTS = ("bare", "watch", "watch + curvature")


class Transformer(nn.Module):
    """A decoder of 4 layers of width 128 over 64 characters, with 0.8 million parameters in 52 tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(96, 128), nn.Linear(128, 96)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        logits: Tensor = self.head(self.blocks(self.embed(tokens), mask=mask, is_causal=True))
        return logits


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model with random data of the right shape, as learning does not matter here."""

    name: str
    """Name in the table."""
    model: Callable[[], nn.Module]
    """Function that creates the model."""
    batch: Callable[[], tuple[Tensor, Tensor]]
    """Function that creates the inputs and targets of a step."""


@dataclass(kw_only=True)
class VariantTraining:
    """The training of one variant."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    run: Run | None
    """Run of the SDK, or None for bare training."""
    has_closure: bool
    """Whether `log` gets a closure."""
    at: int = 0
    """Number of the next step."""
    seconds: list[float] = field(default_factory=list)
    """Mean seconds of a step in each round."""

    def train(self, workload: Workload, steps: int) -> None:
        """Train for one round of ``steps`` steps."""
        started = time.perf_counter()
        for _ in range(steps):
            x, y = workload.batch()

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                return F.cross_entropy(self.model(x).flatten(0, -2), y.flatten())

            self.optimizer.zero_grad()
            loss = closure()
            loss.backward()
            self.optimizer.step()
            if self.run is not None:
                self.run.log({"loss": loss}, step=self.at, closure=closure if self.has_closure else None)
            self.at += 1
        self.seconds.append((time.perf_counter() - started) / steps)


def transformer_batch() -> tuple[Tensor, Tensor]:
    """Return random characters and their successors, [16, 64] each."""
    tokens = torch.randint(96, (16, 65))
    return tokens[:, :-1], tokens[:, 1:]


def wide_mlp() -> nn.Module:
    """Return an MLP of two hidden layers of width 1024."""
    return nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 1024), nn.GELU(), nn.Linear(1024, 96))


def wide_batch() -> tuple[Tensor, Tensor]:
    """Return random inputs [256, 256] and targets [256]."""
    return torch.randn(256, 256), torch.randint(96, (256,))


WORKLOADS = (
    Workload(name="transformer, 0.8 M parameters, 1,024 tokens a step", model=Transformer, batch=transformer_batch),
    Workload(name="wide MLP, 1.4 M parameters, 256 rows a step", model=wide_mlp, batch=wide_batch),
)


def measure(workload: Workload, rounds: int, steps: int, directory: Path) -> dict[str, float]:
    """Return the mean seconds of a step of each variant over the later half of the rounds."""
    trainings = {}
    for name in VARIANTS:
        torch.manual_seed(0)
        model = workload.model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        run = None
        if name != "bare":
            run = Run(Settings.resolve(project="overhead", mode="offline", directory=directory, environ={}))
            watch(run, model, optimizer)
        trainings[name] = VariantTraining(
            model=model, optimizer=optimizer, run=run, has_closure=name == "watch + curvature"
        )
    for _ in range(rounds):
        for training in trainings.values():
            training.train(workload, steps)
    for training in trainings.values():
        if training.run is not None:
            training.run.finish(5.0)
    half = rounds // 2
    return {name: float(np.mean(training.seconds[half:])) for name, training in trainings.items()}


def main() -> None:
    """Print the table of all workloads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    for workload in WORKLOADS:
        with tempfile.TemporaryDirectory() as directory:
            seconds = measure(workload, arguments.rounds, arguments.steps, Path(directory))
        print(f"{workload.name}; threads: {torch.get_num_threads()}")
        for name, value in seconds.items():
            print(f"  {name:<20} {value * 1e3:8.2f} ms   × {value / seconds['bare']:.2f}")


if __name__ == "__main__":
    main()
