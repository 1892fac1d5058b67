"""Two peaks of r in a layer whose gradients sank under ε (Molybog et al. 2023, arXiv 2304.09871)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import diptest
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from benchmarks.reproduce.figure import AMBER, BLUE, Mark, Panel, svg
from benchmarks.reproduce.finding import Check, Finding, span
from benchmarks.reproduce.trainings import Array, adam

STEPS = 180
WIDTH = 48
DEPTH = 10
EDGE = 1.5  # outermost bins of the histograms
ALL = 1_797


@dataclass(frozen=True, kw_only=True)
class Case:
    """A setting: batch size, ε and whether activations let gradients vanish."""

    name: str
    batch: int
    eps: float = 1e-8
    vanishing: bool = True


CASES = (
    Case(name="sigmoid net, all images, ε = 1e-8", batch=ALL),
    Case(name="sigmoid net, batches of 256", batch=256),
    Case(name="sigmoid net, batches of 32", batch=32),
    Case(name="sigmoid net, all images, ε = 1e-30", batch=ALL, eps=1e-30),
    Case(name="tanh net, all images", batch=ALL, vanishing=False),
    Case(name="tanh net, batches of 256", batch=256, vanishing=False),
)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Ratio r and update u of the weights of a layer after the last step."""

    below: float
    """Share of coordinates with √v̂ < ε."""
    r: Array
    u: Array

    @property
    def outer(self) -> float:
        """Return the share of coordinates with |r| above 0.7."""
        return float((abs(self.r) > 0.7).mean())

    @property
    def inner(self) -> float:
        """Return the share of coordinates with |r| below 0.3."""
        return float((abs(self.r) < 0.3).mean())

    @property
    def resting(self) -> float:
        """Return the share of coordinates with |u| below 0.3."""
        return float((abs(self.u) < 0.3).mean())

    @property
    def dip(self) -> tuple[float, float]:
        """Return Hartigan's dip of r, and the probability of one as large if r had one peak."""
        statistic, probability = diptest.diptest(self.r)
        return float(statistic), float(probability)


def train(case: Case, seed: int) -> list[Layer]:
    """Train a classifier of digits with ten hidden layers, and return its layers of weights, the first one first."""
    pixels, numbers = load_digits(return_X_y=True)
    inputs, classes = torch.tensor(pixels / 16 - 0.3, dtype=torch.float32), torch.tensor(numbers)
    torch.manual_seed(seed)
    activation = nn.Sigmoid if case.vanishing else nn.Tanh
    hidden = [nn.Linear(64, WIDTH), activation()]
    for _ in range(DEPTH - 1):
        hidden += [nn.Linear(WIDTH, WIDTH), activation()]
    model = nn.Sequential(*hidden, nn.Linear(WIDTH, 10))
    optimizer = adam(model, 1e-3, eps=case.eps)
    for _ in range(STEPS):
        rows = slice(None) if case.batch == ALL else torch.randint(len(inputs), (case.batch,))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[rows]), classes[rows]).backward()
        optimizer.step()
    return [_layer(optimizer.state[p], case.eps) for p in model.parameters() if p.dim() == 2]


def _layer(state: dict[str, torch.Tensor], eps: float) -> Layer:
    m_hat = state["exp_avg"].double() / (1 - 0.9**STEPS)
    root = (state["exp_avg_sq"].double() / (1 - 0.999**STEPS)).sqrt()
    return Layer(
        below=float((root < eps).double().mean()),
        r=(m_hat / root.clamp(min=1e-35)).flatten().numpy(),
        u=(m_hat / (root + eps)).flatten().numpy(),
    )


def measure(pool: Executor, seeds: int) -> Finding:
    """Return the finding over ``seeds`` trainings of each case."""
    jobs = [(case, seed) for case in CASES for seed in range(seeds)]
    trained = list(pool.map(train, *zip(*jobs, strict=True)))
    layers = {case.name: trained[at * seeds : (at + 1) * seeds] for at, case in enumerate(CASES)}
    first = {name: [run[0] for run in runs] for name, runs in layers.items()}
    sunk, middle, small, tiny, healthy, noisy = (first[case.name] for case in CASES)
    rows = [
        [
            name, span([one.below for one in own]), span([one.dip[0] for one in own], "{:.3f}"),
            span([one.outer for one in own]), span([one.inner for one in own]), span([one.resting for one in own]),
        ]
        for name, own in first.items()
    ]  # fmt: skip
    others = [
        (depth, layer) for run in layers[CASES[0].name] for depth, layer in enumerate(run[1:], 2) if layer.below > 0.9
    ]
    flat = [depth for depth, layer in others if layer.outer < layer.inner]
    return Finding(
        name="two-peaks",
        title="Two peaks of r where gradients sank under ε",
        paper="Where the gradients of a layer, often an early one, have fallen below ε, its weights no longer move, "
        "so successive gradients are correlated: the ratio r = m̂/√v̂ has two peaks at ±1 while the update u = "
        "m̂/(√v̂+ε) is peaked at 0. Healthy layers have one peak in both. Larger batches make it more likely "
        "(Molybog et al. 2023, arXiv 2304.09871, read).",
        method=f"A classifier of digits with {DEPTH} hidden layers of {WIDTH} sigmoids, in which gradients vanish by "
        f"a factor at each layer, cross-entropy, Adam with η = 0.001; the weights of the first layer after {STEPS} "
        f"steps; {seeds} seeds. The same with other batches and another ε, and with tanh, where nothing vanishes.",
        header=("first layer of", "√v̂ < ε", "dip of r", "\\|r\\| > 0.7", "\\|r\\| < 0.3", "\\|u\\| < 0.3"),
        rows=rows,
        checks=[
            Check(
                claim="the layer has sunk: √v̂ < ε in 90 % of the coordinates or more, in every seed",
                found=span([one.below for one in sunk]), passed=min(one.below for one in sunk) >= 0.9,
            ),
            Check(
                claim="there r has two peaks (Hartigan's dip, p < 0.01), and is twice as often near ±1 as near 0",
                found=f"p ≤ {max(one.dip[1] for one in sunk):.3f}, "
                f"{span([one.outer / one.inner for one in sunk], '{:.1f}')}",
                passed=all(one.dip[1] < 0.01 and one.outer >= 2 * one.inner for one in sunk),
            ),
            Check(
                claim="there u is peaked at 0: \\|u\\| < 0.3 in 90 % of the coordinates or more",
                found=span([one.resting for one in sunk]), passed=min(one.resting for one in sunk) >= 0.9,
            ),
            Check(
                claim="the same layer of the tanh net, not sunk, is more often near 0 than near ±1, with either batch",
                found=f"√v̂ < ε: {span([one.below for one in healthy + noisy])}; "
                f"{span([one.outer / one.inner for one in healthy + noisy])}",
                passed=all(one.below < 0.1 and one.outer < one.inner for one in healthy + noisy),
            ),
            Check(
                claim="the share near ±1 grows with the batch, 32 to 256 to all, in every seed",
                found=" < ".join(f"{np.mean([one.outer for one in own]):.2f}" for own in (small, middle, sunk)),
                passed=all(
                    a.outer < b.outer < c.outer for a, b, c in zip(small, middle, sunk, strict=True)
                ),
            ),
            Check(
                claim="with ε = 1e-30, so that the layer moves, it is more often near 0 than near ±1",
                found=span([one.outer / one.inner for one in tiny]),
                passed=all(one.outer < one.inner for one in tiny),
                reproduces=False,
            ),
            Check(
                claim="and u has no such peak: \\|u\\| < 0.3 in less than half of the coordinates",
                found=span([one.resting for one in tiny]),
                passed=max(one.resting for one in tiny) < 0.5,
                reproduces=False,
            ),
        ],
        figure=svg(
            [[_histogram("r, sunk layer", sunk, "r"), _histogram("u, sunk layer", sunk, "u")],
             [_histogram("r, tanh net", healthy, "r"), _histogram("u, tanh net", healthy, "u")]],
            "Histograms of r and u in the first layer",
        ),
        caption="First layer of the first seed. Above, gradients under ε: r has two peaks, u one at 0. Below, the "
        "tanh net.",
        limits=[
            f"A layer under ε need not have two peaks: of {len(others)} further layers under ε in the runs on all "
            f"images, {len(flat)} are more often near 0 than near ±1, the deeper the more.",
            "A tiny ε does not restore one peak in every seed: where the layer then moves in one direction for many "
            "steps, its gradients are correlated too, and r has two peaks. The paper puts the blame on the "
            "correlation, and ε is one cause of it.",
            "The explosion of the loss that the paper describes after a jump of such a layer's gradients was not "
            "seen in these short runs, and not looked for.",
        ],
    )  # fmt: skip


def _histogram(title: str, layers: Sequence[Layer], name: str) -> Panel:
    values = layers[0].r if name == "r" else layers[0].u
    counts, edges = np.histogram(values.clip(-EDGE, EDGE), bins=60, range=(-EDGE, EDGE))
    colour = AMBER if name == "r" else BLUE
    return Panel(
        title=title, x_label=name, marks=[Mark(x=(edges[1:] + edges[:-1]) / 2, y=counts, kind="bars", colour=colour)]
    )
