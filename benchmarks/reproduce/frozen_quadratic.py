"""Adam with v held still diverges on a quadratic at λ_max(P⁻¹H) = (2+2β1)/((1−β1)η) (Cohen et al. 2022)."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from benchmarks.reproduce.figure import BLUE, COLOURS, Mark, Panel, svg
from benchmarks.reproduce.finding import Check, Finding, span
from client_sdk.curvature.preconditioner import Preconditioner
from client_sdk.optimizers import kind_of
from tests.support.frozen_optimizers import BETA2, frozen, growth, random_hessian
from tests.support.frozen_optimizers import Frozen as FrozenOptimizer

BETAS = (0.0, 0.5, 0.9, 0.95)
LR = 0.01
STEPS = 800
CLOSE = 5e-4  # relative width at which the search ends
RATIOS = (1.01, 1.02, 1.05, 1.1, 1.2)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The limit that was found on one quadratic."""

    found: float
    """λ_max(P⁻¹H)·η at which Adam begins to diverge."""
    stated: float
    """Limit that the paper states for it, (2+2β1)/(1−β1)."""
    ratio: float
    """Stability ratio of the SDK's operator at the point found; 1 is the limit."""
    rates: list[float]
    """Growth per step at each of `RATIOS`."""


def search(beta1: float, seed: int) -> Limit:
    """Find the scale of a random Hessian at which Adam begins to diverge."""

    def make() -> FrozenOptimizer:
        return frozen(lambda weights: torch.optim.Adam(weights, lr=LR, betas=(beta1, BETA2)), seed=seed)

    subject = make()
    roots = [subject.optimizer.state[weight]["exp_avg_sq"].reshape(-1) for weight in subject.weights]
    correction = 1 - BETA2**1e9
    inverse = 1 / ((torch.cat(roots) / correction).sqrt() + 1e-8)  # the diagonal of P⁻¹
    shape = random_hessian(inverse, 1.0, seed=seed)  # λ_max(P⁻¹H) = 1
    stated = (2 + 2 * beta1) / (1 - beta1)
    sides = inverse.sqrt()
    steepest = sides * torch.linalg.eigh(sides.unsqueeze(1) * shape * sides).eigenvectors[:, -1]

    def rate(scale: float, direction: torch.Tensor | None = None) -> float:
        return growth(make(), shape * (scale / LR), STEPS, direction)

    low, high = 0.5 * stated, 2.0 * stated
    assert rate(low) < 1 < rate(high), "the search began on one side of the limit"
    while high / low > 1 + CLOSE:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if rate(middle) < 1 else (low, middle)
    found = (low * high) ** 0.5
    preconditioner = Preconditioner.read(subject.optimizer, kind_of(subject.optimizer))
    assert preconditioner is not None
    root = preconditioner.diagonal.sqrt()
    largest = float(torch.linalg.eigvalsh(root.unsqueeze(1) * shape * (found / LR) * root)[-1])
    return Limit(
        found=found, stated=stated, ratio=largest * LR / 2, rates=[rate(ratio * stated, steepest) for ratio in RATIOS]
    )  # fmt: skip


def expected_rate(ratio: float, beta1: float) -> float:
    """Return the growth per step at a stability ratio, the largest root of z² + (2·(1+β1)·ratio − 1 − β1)·z + β1.

    >>> round(expected_rate(1.0, 0.9), 12)
    1.0
    """
    return float(max(abs(np.roots([1.0, 2 * (1 + beta1) * ratio - 1 - beta1, beta1]))))


def measure(pool: Executor, seeds: int) -> Finding:
    """Return the finding over ``seeds`` quadratics of each β1."""
    jobs = list(product(BETAS, range(seeds)))
    runs = dict(zip(jobs, pool.map(search, *zip(*jobs, strict=True)), strict=True))
    rows = []
    for beta1 in BETAS:
        own = [runs[beta1, seed] for seed in range(seeds)]
        rows.append([
            f"{beta1:g}", f"{own[0].stated:.2f}/η", f"{np.mean([one.found for one in own]):.3f}/η",
            span([one.found / one.stated for one in own], "{:.4f}"), span([one.ratio for one in own], "{:.4f}"),
        ])  # fmt: skip
    errors = [abs(run.found / run.stated - 1) for run in runs.values()]
    ratios = [abs(run.ratio - 1) for run in runs.values()]
    grown = [
        abs(rate / expected_rate(ratio, beta1) - 1)
        for (beta1, _), run in runs.items()
        for ratio, rate in zip(RATIOS, run.rates, strict=True)
    ]
    fine = np.linspace(1.0, 1.2, 200)
    panels = [
        Panel(
            title="divergence begins at λ_max(P⁻¹H), over the stated limit", x_label="β1", limits=[1.0],
            categories=[f"{beta1:g}" for beta1 in BETAS],
            marks=[
                Mark(
                    x=[BETAS.index(beta1) for beta1, _ in runs], kind="dots", colour=BLUE,
                    y=[run.found / run.stated for run in runs.values()],
                ),
                Mark(x=[0, 0], y=[0.98, 1.02], kind="dots", colour="none"),  # keeps the axis from showing noise
            ],
        ),
        Panel(
            title="growth per step above the limit", x_label="stability ratio",
            marks=[
                *(
                    Mark(
                        x=fine, y=[expected_rate(ratio, beta1) for ratio in fine], colour=COLOURS[at],
                        name=f"β1 = {beta1:g}",
                    )
                    for at, beta1 in enumerate(BETAS)
                ),
                *(
                    Mark(x=RATIOS, y=runs[beta1, 0].rates, kind="dots", colour=COLOURS[at])
                    for at, beta1 in enumerate(BETAS)
                ),
            ],
        ),
    ]  # fmt: skip
    return Finding(
        name="frozen-quadratic",
        title="The limit of a frozen preconditioner",
        paper="With the preconditioner P = diag(√v̂+ε) held still, Adam on a quadratic is stable exactly while "
        "λ_max(P⁻¹H) < (2+2β1)/((1−β1)η), which is 38/η at β1 = 0.9 (Cohen et al. 2022). In the form of Bai et al. "
        "(2026) it is λ_max(Ĥ) < 2/η.",
        method="`torch.optim.Adam` on random quadratics of 17 dimensions with a random v that does not move (1−β2 = "
        f"1e-9), {seeds} for each β1. The scale of H at which the distance from the minimum begins to grow is found "
        f"by halving, to {CLOSE:.2%}. Above the limit the growth per step is compared with the root of z² + "
        "(2(1+β1)r − 1 − β1)z + β1, r = λ_max(Ĥ)·η/2.",
        header=("β1", "stated limit", "found, mean", "found / stated, seeds", "stability ratio of the SDK there"),
        rows=rows,
        checks=[
            Check(
                claim="the limit that is found is the stated one to 1 %",
                found=f"at most {100 * max(errors):.3f} % off",
                passed=max(errors) < 0.01,
            ),
            Check(
                claim="there, the stability ratio of the SDK's operator is 1 to 1 %",
                found=f"at most {100 * max(ratios):.3f} % off",
                passed=max(ratios) < 0.01,
            ),
            Check(
                claim="above the limit the distance grows per step as the polynomial says, to 1 %",
                found=f"at most {100 * max(grown):.3f} % off",
                passed=max(grown) < 0.01,
            ),
        ],
        figure=svg([panels], "The limit and the growth of Adam with a frozen preconditioner"),
        caption="Left, where divergence begins, for each quadratic. Right, growth per step: lines are the "
        "polynomial, dots are measured.",
    )  # fmt: skip
