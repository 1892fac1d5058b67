"""The loss that the unstable directions hold: the share of each spike that it explains, and how early it grows.

    python -m benchmarks.mode_loss [--steps N] [--seeds N] [--case NAME …]

Trains small networks that spike, watched by the SDK with a closure, and reads back what the SDK logged. "Explained" is
`mode_loss` two steps after the onset of a spike divided by what the loss has risen by. An alarm is a growth of the
amplitude over the last twelve steps above a threshold, if a straight line explains 60 % of its logarithm; for the
unstable directions the sign must alternate at 70 % of the steps too, and λ_max exceed 0.8 of its limit at the last
probe. Each threshold is the lowest at which the alarms outside the 100 steps before a spike and the spike itself do not
exceed the stated number in 1,000 steps.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

import client_sdk
from benchmarks.gpt import GPT, Size
from benchmarks.spool_series import series_of
from client_sdk.curvature.mode_reading import WINDOW
from server.evaluation.labels import label

Array = NDArray[np.float64]
HORIZON = 100  # steps before an onset in which an alarm is early
AFTERMATH = 20  # steps after the end of a spike in which alarms do not count
ALTERNATING = 0.7
NEAR = 0.8
STRAIGHT = 0.6  # share of the variance of the logarithm that a straight line must explain
FALSE_ALARMS = (0.5, 2.0)  # per 1,000 steps
QUIET = 20  # steps within which further alarms are the same one


@dataclass(frozen=True, kw_only=True)
class Training:
    """A model, its optimizer, and a function that draws a batch and returns its loss function."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    new_batch: Callable[[], Callable[[], Tensor]]


def tanh_net(points: int, width: int, beta2: float) -> Training:
    """Return a full-batch regression net with ``points`` points, trained by Adam at the learning rate 0.01."""
    inputs = torch.randn(points, 50)
    direction = torch.randn(50, 1) / 50**0.5
    targets = torch.sin(3 * inputs @ direction) + inputs @ direction
    model = nn.Sequential(nn.Linear(50, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, beta2))
    return Training(
        model=model, optimizer=optimizer, new_batch=lambda: lambda: (model(inputs) - targets).square().mean()
    )


def digits(batch: int | None, *, depth: int, lr: float, beta2: float) -> Training:
    """Return a classifier of digits with a squared error; ``batch`` None is the same 800 digits at every step."""
    pixels, numbers = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16 - 0.3, dtype=torch.float32)
    classes = torch.tensor(numbers)
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(64, 64), nn.Tanh())]
    model = nn.Sequential(*hidden, nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, beta2))

    def new_batch() -> Callable[[], Tensor]:
        rows = slice(800) if batch is None else torch.randint(len(images), (batch,))
        return lambda: (model(images[rows]) - F.one_hot(classes[rows], 10)).square().sum(1).mean()

    return Training(model=model, optimizer=optimizer, new_batch=new_batch)


def modular_addition(beta2: float, batch: int | None) -> Training:
    """Return a transformer of one block that learns to add modulo 31 from 40 % of all pairs, with a cross-entropy."""
    modulus = 31
    pairs = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    pairs = pairs[torch.randperm(len(pairs))[: int(0.4 * len(pairs))]]
    inputs = torch.cat([pairs, torch.full((len(pairs), 1), modulus)], 1)
    sums = pairs.sum(1) % modulus
    model = GPT(Size(blocks=1, width=64, heads=4, vocabulary=modulus + 1, context=3, tokens=0, tokens_cuda=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, beta2), weight_decay=1.0)

    def new_batch() -> Callable[[], Tensor]:
        rows = slice(len(inputs)) if batch is None else torch.randint(len(inputs), (batch,))
        return lambda: F.cross_entropy(model(inputs[rows])[:, -1], sums[rows])

    return Training(model=model, optimizer=optimizer, new_batch=new_batch)


def language(lr: float, beta2: float) -> Training:
    """Return a transformer of two blocks without warm-up on the characters of this file, with a cross-entropy."""
    codes = torch.tensor([ord(character) % 128 for character in Path(__file__).read_text()])
    model = GPT(Size(blocks=2, width=64, heads=4, vocabulary=128, context=32, tokens=0, tokens_cuda=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, beta2))

    def new_batch() -> Callable[[], Tensor]:
        starts = torch.randint(len(codes) - 33, (8, 1))
        window = codes[starts + torch.arange(33)]
        return lambda: F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())

    return Training(model=model, optimizer=optimizer, new_batch=new_batch)


CASES: dict[str, Callable[[], Training]] = {
    "tanh-200": lambda: tanh_net(200, 64, 0.999),
    "tanh-1000": lambda: tanh_net(1000, 32, 0.999),
    "tanh-1000-b99": lambda: tanh_net(1000, 32, 0.99),
    "digits": lambda: digits(None, depth=2, lr=0.01, beta2=0.999),
    "digits-batch-256": lambda: digits(256, depth=4, lr=0.03, beta2=0.99),
    "modular-addition-b98": lambda: modular_addition(0.98, None),
    "modular-addition-b999": lambda: modular_addition(0.999, None),
    "modular-addition-batch-128": lambda: modular_addition(0.98, 128),
    "language": lambda: language(0.03, 0.999),
}


def record(name: str, seed: int, steps: int, curvature_every: int) -> dict[str, Array]:
    """Train a case and return the scalars that the SDK logged, by name, [steps] each; NaN where it logged none."""
    torch.manual_seed(seed)
    training = CASES[name]()
    with tempfile.TemporaryDirectory() as directory:
        run = client_sdk.init(project="benchmark", name=name, mode="offline", directory=directory)
        handle = client_sdk.watch(
            training.model, training.optimizer, every=1, curvature_every=curvature_every, budget=math.inf
        )
        for step in range(steps):
            batch_loss = training.new_batch()
            training.optimizer.zero_grad()
            loss = batch_loss()
            loss.backward()
            training.optimizer.step()
            client_sdk.log({"loss": loss}, step=step, closure=batch_loss)
        handle.remove()
        run.finish()
        return series_of(Path(directory), steps)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Spikes of one recording, and the scores that are held against them."""

    explained: list[float]
    """Share of each spike's rise that `mode_loss` explains."""
    onsets: list[int]
    counted: NDArray[np.bool_]
    """Whether an alarm at a step would be a false one, [steps]."""
    scores: dict[str, Array]
    """Growth by each measure, [steps]; −inf where it does not count."""


def judge(found: dict[str, Array]) -> Judged:
    """Compare the mode loss and the growths of one recording with its spikes."""
    losses = found["loss"]
    steps = len(losses)
    nothing = np.full(steps, np.nan)
    held = found.get("mode_loss", nothing)
    events, minor = label(losses)
    explained = []
    counted = np.ones(steps, np.bool_)
    for event in [*events, *minor]:
        counted[max(0, event.onset - HORIZON) : event.end + AFTERMATH] = False
    for event in events:
        before = float(np.median(losses[max(0, event.onset - 40) : max(1, event.onset - 1)]))
        at = min(event.onset + 1, steps - 1)
        if losses[at] > before:
            explained.append(float(held[at] / (losses[at] - before)))
    alternation = found.get("mode_alternation", nothing)
    with np.errstate(all="ignore"):
        near = _last_known(found.get("lambda_max", nothing) / found["stability_limit"]) >= NEAR
        mode = np.where(near & (alternation >= ALTERNATING), _growth(np.log(held) / 2), -np.inf)
        norm = _growth(np.log(found["grad_norm"]))
    return Judged(
        explained=explained,
        onsets=[event.onset for event in events],
        counted=counted,
        scores={
            "growth of the directions": np.nan_to_num(mode, nan=-np.inf),
            "growth of ‖g‖": np.nan_to_num(norm, nan=-np.inf),
        },
    )


def _last_known(values: Array) -> Array:
    """Return ``values`` with each NaN replaced by the last number before it, [steps]."""
    position = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return values[position]


def _growth(logarithms: Array) -> Array:
    """Return the least-squares slope of the last `WINDOW` logarithms at each step, [steps]; −inf if they do not fit."""
    time = np.arange(WINDOW) - (WINDOW - 1) / 2
    slopes = np.full(len(logarithms), -np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(logarithms, WINDOW)
    centred = windows - windows.mean(1, keepdims=True)
    slope = centred @ time / (time @ time)
    unexplained = (centred - slope[:, None] * time) ** 2
    fits = 1.0 - unexplained.sum(1) / (centred**2).sum(1)
    slopes[WINDOW - 1 :] = np.where(fits >= STRAIGHT, slope, -np.inf)
    return slopes


def _false_alarms(judged: list[Judged], measure: str, threshold: float) -> int:
    total = 0
    for one in judged:
        last = -QUIET
        for at in np.flatnonzero(one.counted & (one.scores[measure] > threshold)):
            total += int(at) - last >= QUIET
            last = int(at)
    return total


def _leads(judged: list[Judged], measure: str, threshold: float) -> list[int]:
    """Return the lead of the first alarm before each spike that was seen early."""
    leads = []
    for one in judged:
        previous = 0
        for onset in one.onsets:
            early = np.flatnonzero(one.scores[measure][max(previous, onset - HORIZON) : onset] > threshold)
            if len(early):
                leads.append(onset - max(previous, onset - HORIZON) - int(early[0]))
            previous = onset + AFTERMATH
    return leads


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--curvature-every", type=int, default=10)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    every: list[Judged] = []
    print("| case | spikes | explained, median (quartiles) |")
    print("|---|---|---|")
    for name in options.case:
        judged = [judge(record(name, seed, options.steps, options.curvature_every)) for seed in range(options.seeds)]
        every += judged
        shares = np.array([share for one in judged for share in one.explained])
        quartiles = (
            "–" if not len(shares) else "{1:.2f} ({0:.2f} to {2:.2f})".format(*np.nanpercentile(shares, [25, 50, 75]))
        )
        print(f"| {name} | {sum(len(one.onsets) for one in judged)} | {quartiles} |", flush=True)
    spikes = sum(len(one.onsets) for one in every)
    print(f"\n{spikes} spikes in {options.steps * options.seeds * len(options.case):,} steps\n")
    print("| measure | false alarms per 1,000 steps | threshold per step | spikes seen early | median lead in steps |")
    print("|---|---|---|---|---|")
    for limit in FALSE_ALARMS:
        allowed = limit * sum(len(one.counted) for one in every) / 1_000
        for measure in ("growth of the directions", "growth of ‖g‖"):
            thresholds = np.geomspace(0.005, 5.0, 60)
            threshold = next((t for t in thresholds if _false_alarms(every, measure, t) <= allowed), thresholds[-1])
            leads = _leads(every, measure, threshold)
            lead = f"{np.median(leads):.0f}" if leads else "–"
            print(f"| {measure} | ≤ {limit} | {threshold:.3f} | {len(leads)} of {spikes} | {lead} |")


if __name__ == "__main__":
    main()
