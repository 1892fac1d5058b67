"""Full-batch Adam trains at the limit of its preconditioned Hessian (Cohen et al. 2022, arXiv 2207.14484)."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import product

import numpy as np

from benchmarks.reproduce.figure import COLOURS, Mark, Panel, svg
from benchmarks.reproduce.finding import Check, Finding, span
from benchmarks.reproduce.trainings import Array, CurvatureReader, dense_lambda_max, digits_net

SETTINGS = ((3e-3, 0.9), (5e-3, 0.9), (1e-2, 0.9), (1e-3, 0.5), (2e-3, 0.5), (5e-4, 0.0), (1e-3, 0.0))
"""Pairs of η and β1."""
STEPS = 2_500
EVERY = 25  # steps between readings
SETTLED = 1_500  # step from which λ_max must be at the limit


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One training and its readings of λ_max."""

    steps: Array
    ratio: Array
    """λ_max(P⁻¹H) over (2+2β1)/((1−β1)·η)."""
    error: float
    """Relative difference of the last reading from a dense float64 Hessian."""
    first_loss: float
    last_loss: float

    @property
    def plateau(self) -> float:
        """Return the median ratio once the run has settled."""
        return float(np.median(self.ratio[self.steps >= SETTLED]))


def train(setting: tuple[float, float], seed: int) -> Edge:
    """Train the digits net with η and β1 of ``setting``."""
    lr, beta1 = setting
    training = digits_net(seed, lr=lr, beta1=beta1)
    reader = CurvatureReader(training=training)
    losses, steps, ratios = [], [], []
    for step in range(STEPS):
        losses.append(training.step())
        if step % EVERY == EVERY - 1:
            steps.append(step)
            ratios.append(reader.read()[0] * lr / 2)
    error = abs(ratios[-1] / (dense_lambda_max(training) * lr / 2) - 1) if seed == 0 else float("nan")
    return Edge(
        steps=np.array(steps, float), ratio=np.array(ratios), error=error, first_loss=losses[0],
        last_loss=float(np.median(losses[-40:])),
    )  # fmt: skip


def measure(pool: Executor, seeds: int) -> Finding:
    """Return the finding over ``seeds`` trainings of each setting."""
    seeds = min(seeds, 3)  # twenty-one runs are enough
    jobs = list(product(SETTINGS, range(seeds)))
    runs = dict(zip(jobs, pool.map(train, *zip(*jobs, strict=True)), strict=True))
    rows = []
    for lr, beta1 in SETTINGS:
        own = [runs[(lr, beta1), seed] for seed in range(seeds)]
        limit = (2 + 2 * beta1) / (1 - beta1)
        plateaus = [one.plateau for one in own]
        rows.append([
            f"{lr:g}", f"{beta1:g}", f"{limit:.0f}/η = {limit / lr:,.0f}",
            f"{np.mean(plateaus) * limit / lr:,.0f}", span(plateaus, "{:.3f}"),
            span([float(one.ratio.max()) for one in own]),
            f"{own[0].first_loss:.1f} → {own[0].last_loss:.0e}",
        ])  # fmt: skip
    plateaus = [run.plateau for run in runs.values()]
    starts = [float(run.ratio[0]) for run in runs.values()]
    rising = [start for start in starts if start < 0.5]
    errors = [run.error for run in runs.values() if np.isfinite(run.error)]
    panels = [
        Panel(
            title=f"β1 = {beta1:g}: λ_max(P⁻¹H) over its limit", x_label="step", limits=[1.0],
            marks=[
                Mark(x=runs[setting, 0].steps, y=runs[setting, 0].ratio, colour=COLOURS[at], name=f"η = {setting[0]:g}")
                for at, setting in enumerate(one for one in SETTINGS if one[1] == beta1)
            ],
        )
        for beta1 in (0.9, 0.5, 0.0)
    ]  # fmt: skip
    return Finding(
        name="edge-of-stability",
        title="Full-batch Adam at the edge of stability",
        paper="In full-batch training the largest eigenvalue of the preconditioned Hessian P⁻¹H rises and then "
        "stays near the limit of the algorithm with the preconditioner held still, (2+2β1)/((1−β1)η), which is 38/η "
        "at β1 = 0.9; the loss goes on falling (Cohen et al. 2022, arXiv 2207.14484, abstract and summary read).",
        method=f"A tanh net 64-24-24-10 on 500 digits with a squared error, full batch, {STEPS:,} steps, {seeds} "
        f"seeds for each of {len(SETTINGS)} pairs of η and β1; λ_max every {EVERY} steps. The plateau is the median "
        f"from step {SETTLED:,} on.",
        header=(
            "η", "β1", "limit of λ_max(P⁻¹H)", "plateau", "plateau / limit, seeds", "highest / limit", "loss of seed 0",
        ),
        rows=rows,
        checks=[
            Check(
                claim=f"nine of ten runs begin below half of the limit (step {EVERY}), so λ_max rises to it",
                found=f"{len(rising)} of {len(starts)}; {span(starts)} of it",
                passed=len(rising) >= 0.9 * len(starts),
            ),
            Check(
                claim="the plateau of every run is within 10 % of the limit",
                found=span(plateaus, "{:.3f}"),
                passed=all(abs(plateau - 1) <= 0.1 for plateau in plateaus),
            ),
            Check(
                claim="the loss still falls by a factor of ten or more",
                found=f"at least {min(run.first_loss / run.last_loss for run in runs.values()):.0f}",
                passed=all(run.first_loss / run.last_loss >= 10 for run in runs.values()),
            ),
            Check(
                claim="λ_max of the SDK's operator is within 1 % of the dense float64 Hessian",
                found=f"at the last step of {len(errors)} runs at most {100 * max(errors):.3f} %",
                passed=max(errors) < 0.01,
            ),
        ],
        figure=svg([panels], "Largest eigenvalue of the preconditioned Hessian over its limit"),
        caption="Three values of β1, for which the limits are 38/η, 6/η and 2/η: λ_max rises to the limit and stays.",
        limits=[
            "Small learning rates do not reach the limit in this many steps: η = 0.001 at β1 = 0.9 is at 0.85 of it "
            "after 2,500 steps, and still rising.",
            "The networks of the paper (convolutional, transformers) and mini-batches were not trained.",
        ],
    )  # fmt: skip
