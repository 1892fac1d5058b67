"""The period-two component of the gradient: how early its growth is seen, beside ‖g‖ and other ways to follow it.

    python -m benchmarks.period_two [--steps N] [--seeds N] [--case NAME …]

Trains small networks that spike, and healthy ones, with the SDK's own filter (`client_sdk.stats.period_two`), and
computes the same component beside it from all coordinates, from a random sketch of 128 numbers (count sketch), and from
eight evenly spaced coordinates of each tensor. An alarm is a growth over the last twelve steps above a threshold, if a
straight line explains 60 % of the logarithm and Σg²/Σv̂ is below 1; with "share" the component must also be more than
half of the gradient; the SDK's growth needs no fit. Each threshold is the lowest at which the alarms outside the 100
steps before a spike and the spike itself do not exceed the stated number in 1,000 steps. In the trainings of the first
seed the stability ratio that follows from the growth is compared with λ_max over its limit, of a probe at every step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.mode_loss import CASES, Training
from client_sdk.curvature import Probe
from client_sdk.layers import map_layers
from client_sdk.optimizers import kind_of, stability_limit
from client_sdk.stats.period_two import PeriodTwo
from client_sdk.stats.period_two_reading import DECAY, REACH, WINDOW
from client_sdk.warner import Warner
from server.evaluation.labels import label

Array = NDArray[np.float64]
SKETCH = 128
HORIZON = 100  # steps before an onset in which an alarm is early
AFTERMATH = 20  # steps after the end of a spike in which alarms do not count
STRAIGHT = 0.6
SHARE = 0.5
FALSE_ALARMS = (1.0, 2.0, 5.0)  # per 1,000 steps
QUIET = 20  # steps within which further alarms are the same one


def tanh_net(beta2: float, lr: float) -> Training:
    """Return a full-batch regression net of 1,000 noisy points that rides the edge of stability or stays below it."""
    inputs = torch.randn(1_000, 50)
    direction = torch.randn(50, 1) / 50**0.5
    targets = torch.sin(3 * inputs @ direction) + inputs @ direction + 0.3 * torch.randn(1_000, 1)
    model = nn.Sequential(nn.Linear(50, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, beta2))
    return Training(
        model=model, optimizer=optimizer, new_batch=lambda: lambda: (model(inputs) - targets).square().mean()
    )


def noisy_digits(lr: float) -> Training:
    """Return a classifier of digits, of which a fifth have a wrong label, in batches of 64."""
    pixels, numbers = load_digits(return_X_y=True)
    images, classes = torch.tensor(pixels / 16 - 0.3, dtype=torch.float32), torch.tensor(numbers)
    wrong = torch.rand(len(classes)) < 0.2
    classes[wrong] = torch.randint(10, (int(wrong.sum()),))
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def new_batch() -> Callable[[], Tensor]:
        rows = torch.randint(len(images), (64,))
        return lambda: F.cross_entropy(model(images[rows]), classes[rows])

    return Training(model=model, optimizer=optimizer, new_batch=new_batch)


HEALTHY: dict[str, Callable[[], Training]] = {
    "edge-riding, β2 0.9": lambda: tanh_net(0.9, 0.003),
    "small rate": lambda: tanh_net(0.999, 0.001),
    "noisy digits": lambda: noisy_digits(0.001),
}
TRAININGS = CASES | HEALTHY


@dataclass
class Component:
    """A filter of vectors, for comparison with that of the SDK."""

    filtered: Tensor | float = 0.0
    level: float = 0.0
    norms: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def take(self, y: Tensor) -> None:
        """Take in the vector of a step."""
        self.filtered = -DECAY * self.filtered + (1.0 - DECAY) * y
        self.level = DECAY * self.level + (1.0 - DECAY) * float(y.square().sum())
        self.norms.append(float(self.filtered.norm()))
        self.shares.append(self.norms[-1] / max(self.level, 1e-300) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The series of one training."""

    losses: Array
    decoupling: Array
    norms: dict[str, Array]
    """The size of everything that is followed, by its name, [steps]."""
    shares: dict[str, Array]
    """Share of the component in the gradient, by the same names, [steps]."""
    ratios: Array
    """Stability ratio from the growth, [steps]; NaN where there is none."""
    probed: Array
    """λ_max over its limit, [steps]; NaN where it was not probed."""


def record(name: str, seed: int, steps: int, *, has_probes: bool) -> Recording:
    """Train a case and return what was followed."""
    torch.manual_seed(seed)
    training = TRAININGS[name]()
    model, optimizer = training.model, training.optimizer
    parameters = list(model.parameters())
    (group,) = optimizer.param_groups
    size = sum(parameter.numel() for parameter in parameters)
    generator = torch.Generator().manual_seed(0)
    buckets = torch.randint(SKETCH, (size,), generator=generator)
    signs = torch.randint(2, (size,), generator=generator) * 2.0 - 1.0
    chosen, weights = _every(parameters, 8)
    filters = {"all coordinates": Component(), "sketch of 128": Component(), "8 of each tensor": Component()}
    own = PeriodTwo(kind_of(optimizer), map_layers(model, optimizer))
    probe = Probe(model, optimizer, kind_of(optimizer), every=1, warner=Warner())
    losses, decoupling, gradient = [], [], []
    own_share, own_growth, ratios, probed = [], [], [], []
    for step in range(1, steps + 1):
        batch_loss = training.new_batch()
        optimizer.zero_grad()
        loss = batch_loss()
        loss.backward()
        optimizer.step()
        own.follow(optimizer, step)
        g = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
        v = torch.cat([optimizer.state[parameter]["exp_avg_sq"].flatten() for parameter in parameters])
        v = v / (1.0 - group["betas"][1] ** step)
        y = g / (v.sqrt() + group["eps"]).sqrt()
        filters["all coordinates"].take(y)
        filters["sketch of 128"].take(torch.zeros(SKETCH).index_add_(0, buckets, signs * y))
        filters["8 of each tensor"].take(y[chosen] * weights)
        losses.append(loss.item())
        gradient.append(float(g.norm()))
        decoupling.append(float(g.square().sum() / v.sum()))
        copied = own.copy(is_trusted=True)
        assert copied is not None
        found = copied.scalars()
        own_share.append(found.get("period_two", np.nan))
        own_growth.append(found.get("period_two_growth", np.nan))
        ratios.append(found.get("stability_ratio", np.nan))
        curvature = probe.measure(step, batch_loss, lr=group["lr"]) if has_probes else None
        value = np.nan if curvature is None else curvature.scalars().get("lambda_max", np.nan)
        probed.append(value / stability_limit(group["lr"]))
    norms = {"‖g‖": np.array(gradient)} | {key: np.array(one.norms) for key, one in filters.items()}
    shares = {key: np.array(one.shares) for key, one in filters.items()}
    return Recording(
        losses=np.array(losses),
        decoupling=np.array(decoupling),
        norms=norms | {"the SDK": np.array(own_growth)},
        shares=shares | {"the SDK": np.array(own_share)},
        ratios=np.array(ratios),
        probed=np.array(probed),
    )


def _every(parameters: list[nn.Parameter], count: int) -> tuple[Tensor, Tensor]:
    chosen, weights, start = [], [], 0
    for parameter in parameters:
        at = torch.linspace(0, parameter.numel() - 1, min(count, parameter.numel())).long().unique()
        chosen.append(at + start)
        weights.append(torch.full((len(at),), (parameter.numel() / len(at)) ** 0.5))
        start += parameter.numel()
    return torch.cat(chosen), torch.cat(weights)


MEASURES = (
    "‖g‖", "all coordinates", "sketch of 128", "8 of each tensor", "the SDK",
    "all coordinates, share", "sketch of 128, share", "the SDK, share",
)  # fmt: skip


def scores(recording: Recording) -> dict[str, Array]:
    """Return the growth by each measure, [steps]; −inf where it does not count."""
    found = {}
    for measure in MEASURES:
        key = measure.removesuffix(", share")
        with np.errstate(all="ignore"):
            growth = recording.norms[key] if key == "the SDK" else _growth(np.log(recording.norms[key]))
            is_usable = (recording.decoupling < 1.0) & np.isfinite(growth)
            if measure != key:
                is_usable &= recording.shares[key] > SHARE
        is_usable[:REACH] = False
        found[measure] = np.where(is_usable, growth, -np.inf)
    return found


def _growth(logarithms: Array) -> Array:
    """Return the least-squares slope of the last `WINDOW` logarithms at each step; NaN if they do not fit."""
    time = np.arange(WINDOW) - (WINDOW - 1) / 2
    windows = np.lib.stride_tricks.sliding_window_view(logarithms, WINDOW)
    centred = windows - windows.mean(1, keepdims=True)
    slope = centred @ time / (time @ time)
    fits = slope**2 * (time @ time) / (centred**2).sum(1)
    slopes = np.full(len(logarithms), np.nan)
    slopes[WINDOW - 1 :] = np.where(fits >= STRAIGHT, slope, np.nan)
    return slopes


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The spikes of one training, and the scores that are held against them."""

    onsets: list[int]
    counted: NDArray[np.bool_]
    """Whether an alarm at a step would be a false one, [steps]."""
    scores: dict[str, Array]

    def false_alarms(self, measure: str, threshold: float) -> int:
        """Return the number of false alarms at a threshold."""
        total, last = 0, -QUIET
        for at in np.flatnonzero(self.counted & (self.scores[measure] > threshold)):
            total += int(at) - last >= QUIET
            last = int(at)
        return total

    def leads(self, measure: str, threshold: float) -> list[int]:
        """Return the lead of the first alarm before each spike that was seen early."""
        leads, previous = [], 0
        for onset in self.onsets:
            start = max(previous, onset - HORIZON)
            early = np.flatnonzero(self.scores[measure][start:onset] > threshold)
            if len(early):
                leads.append(onset - start - int(early[0]))
            previous = onset + AFTERMATH
        return leads


def judge(recording: Recording) -> Judged:
    """Find the spikes of a training."""
    counted = np.ones(len(recording.losses), np.bool_)
    events, minor = label(recording.losses)
    for event in [*events, *minor]:
        counted[max(0, event.onset - HORIZON) : event.end + AFTERMATH] = False
    return Judged(onsets=[event.onset for event in events], counted=counted, scores=scores(recording))


def compared(recording: Recording) -> list[tuple[float, float, float]]:
    """Return the ratio from the growth, that of the probe and the largest of the last `WINDOW` probes of some steps."""
    known = np.flatnonzero(np.isfinite(recording.ratios) & np.isfinite(recording.probed))
    return [
        (
            float(recording.ratios[at]),
            float(recording.probed[at]),
            float(np.nanmax(recording.probed[max(0, at - WINDOW + 1) : at + 1])),
        )
        for at in known
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--case", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    every: list[Judged] = []
    ratios: list[tuple[float, float, float]] = []
    print("| training | spikes | share of the component, median | stability ratios |\n|---|---|---|---|")
    for name in options.case:
        found = [record(name, seed, options.steps, has_probes=seed == 0) for seed in range(options.seeds)]
        judged = [judge(one) for one in found]
        every += judged
        ratios += compared(found[0])
        share = np.nanmedian(np.concatenate([one.shares["the SDK"] for one in found]))
        spikes = sum(len(one.onsets) for one in judged)
        print(
            f"| {name} | {spikes} | {share:.2f} | {sum(int(np.isfinite(one.ratios).sum()) for one in found)} |",
            flush=True,
        )
    spikes = sum(len(one.onsets) for one in every)
    total = sum(len(one.counted) for one in every)
    print(f"\n{spikes} spikes in {total:,} steps\n")
    print("| followed | false alarms per 1,000 steps | threshold per step | spikes seen early | median lead in steps |")
    print("|---|---|---|---|---|")
    thresholds = np.geomspace(0.01, 5.0, 80)
    for limit in FALSE_ALARMS:
        for measure in MEASURES:
            allowed = limit * total / 1_000
            threshold = next(
                (t for t in thresholds if sum(one.false_alarms(measure, t) for one in every) <= allowed), thresholds[-1]
            )
            leads = [lead for one in every for lead in one.leads(measure, threshold)]
            lead = f"{np.median(leads):.0f}" if leads else "–"
            print(f"| {measure} | ≤ {limit} | {threshold:.3f} | {len(leads)} of {spikes} | {lead} |")
    if ratios:
        growth, now, window = np.array(ratios).T
        print(f"\n{len(growth)} steps with a stability ratio from the growth and a probe. λ_max is above its limit")
        print(f"at {100 * np.mean(now > 1.0):.0f} % of these steps and within the last twelve steps at ", end="")
        print(f"{100 * np.mean(window > 1.0):.0f} %. Ratio minus that of the probe, 10 %, median and 90 %: ", end="")
        print(", ".join(f"{value:+.3f}" for value in np.quantile(growth - now, [0.1, 0.5, 0.9])))


if __name__ == "__main__":
    main()
