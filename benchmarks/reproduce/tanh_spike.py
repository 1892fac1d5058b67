"""λ_max crosses 2/η, the gradient turns into the unstable direction, and the loss jumps (Bai et al., ICML 2026)."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from benchmarks.reproduce.figure import AMBER, BLUE, PURPLE, Mark, Panel, svg
from benchmarks.reproduce.finding import Check, Finding, span
from benchmarks.reproduce.trainings import Array, CurvatureReader, double_lambda_max, tanh_net
from server.evaluation.labels import label

LIMIT = 200.0  # 2/η
STEPS = 1_000
EVERY = 5  # steps between readings
DECADES = 6  # powers of ten that a jump of the loss must have


@dataclass(frozen=True, kw_only=True)
class Spiked:
    """One training with its spike."""

    losses: Array
    steps: Array
    """Steps of the readings."""
    lambda_max: Array
    lambda_grad: Array
    onset: int | None
    """First step of the first spike; None if there was none."""
    peak: int
    error: float
    """Relative difference of the SDK's λ_max from that of float64 at the crossing."""

    def crossing(self, values: Array) -> int | None:
        """Return the step at which ``values`` exceeded the limit for good before the onset, or None."""
        before = self.steps <= (self.onset or 0)
        over = values[before] > LIMIT
        if not over.any():
            return None
        below = np.flatnonzero(~over[: np.flatnonzero(over)[-1]])
        return int(self.steps[before][below[-1] + 1 if len(below) else 0])


def train(seed: int) -> Spiked:
    """Train the tanh net of ``seed`` and read λ_max and λ_grad every five steps."""
    training = tanh_net(seed)
    reader = CurvatureReader(training=training)
    losses, steps, tops, along = [], [], [], []
    error = np.nan
    for step in range(STEPS):
        losses.append(training.step())
        if step % EVERY == EVERY - 1:
            lambda_max, lambda_grad = reader.read()
            if np.isnan(error) and lambda_max > LIMIT:
                error = abs(lambda_max / double_lambda_max(training) - 1)
            steps.append(step)
            tops.append(lambda_max)
            along.append(lambda_grad)
    events, _ = label(np.array(losses))
    return Spiked(
        losses=np.array(losses),
        steps=np.array(steps, float),
        lambda_max=np.array(tops),
        lambda_grad=np.array(along),
        onset=events[0].onset if events else None,
        peak=events[0].peak if events else 0,
        error=error,
    )


def measure(pool: Executor, seeds: int) -> Finding:
    """Return the finding over ``seeds`` trainings."""
    runs = list(pool.map(train, range(seeds)))
    spiked = [run for run in runs if run.onset is not None]
    rows, leads, confirmations, jumps = [], [], [], []
    for seed, run in enumerate(runs):
        if run.onset is None:
            rows.append([str(seed), "–", "–", "none", "–", "–", "–"])
            continue
        crossed, confirmed = run.crossing(run.lambda_max), run.crossing(run.lambda_grad)
        lowest = float(run.losses[: run.onset].min())
        after = run.lambda_max[(run.steps > run.peak) & (run.steps <= run.peak + 100)]
        jumps.append((lowest, float(run.losses[run.peak]), float(after.min())))
        leads.append(-1 if crossed is None else run.onset - crossed)
        confirmations.append(-1 if confirmed is None else run.onset - confirmed)
        rows.append([
            str(seed), _step(crossed), _step(confirmed), str(run.onset), str(leads[-1]),
            f"{lowest:.0e} → {run.losses[run.peak]:.0e}", f"{after.min():.0f}",
        ])  # fmt: skip
    errors = [run.error for run in runs if np.isfinite(run.error)]
    decades = [float(np.log10(high / low)) for low, high, _ in jumps]
    ordered = sum(lead > confirmation >= 0 for lead, confirmation in zip(leads, confirmations, strict=True))
    first = spiked[0] if spiked else runs[0]
    panels = [
        Panel(
            title="loss", x_label="step", logarithmic=True,
            marks=[Mark(x=np.arange(STEPS), y=first.losses, colour=BLUE)],
        ),
        Panel(
            title="curvature against 2/η", x_label="step", limits=[LIMIT],
            marks=[
                Mark(x=first.steps, y=first.lambda_grad, colour=PURPLE, name="λ_grad"),
                Mark(x=first.steps, y=first.lambda_max, colour=AMBER, name="λ_max"),
            ],
        ),
    ]  # fmt: skip
    return Finding(
        name="tanh-spike",
        title="A crossing, then a spike",
        paper="Loss spikes of Adam are not explained by the landscape alone: the second moment no longer follows "
        "the squared gradient and decays by itself, which carries λ_max of the preconditioned Hessian beyond 2/η "
        "for a sustained time. The spike comes when the curvature along the gradient, λ_grad, exceeds 2/η (Bai et "
        "al., ICML 2026).",
        method="A tanh net 50-64-64-1 on 200 points, full batch, Adam with η = 0.01 and β2 = 0.999, so 2/η = 200; "
        f"{STEPS:,} steps, {seeds} seeds. λ_max and λ_grad every {EVERY} steps. The onset is that of the first spike "
        "that the labels of `server.evaluation` find. A crossing is the last one before the onset.",
        header=(
            "seed", "λ_max crosses", "λ_grad crosses", "onset", "lead of λ_max", "loss",
            "lowest λ_max in the 100 steps after",
        ),
        rows=rows,
        checks=[
            Check(
                claim="every seed has a spike, of six powers of ten or more",
                found=f"{len(spiked)} of {seeds}; {span(decades, '{:.0f}')} powers of ten" if decades else "no spike",
                passed=len(spiked) == seeds and min(decades) >= DECADES,
            ),
            Check(
                claim="λ_max crosses 2/η before λ_grad does, and both before the onset, in every seed",
                found=f"{ordered} of {seeds}",
                passed=ordered == seeds,
            ),
            Check(
                claim="λ_max is above 2/η for at least 20 steps before the loss rises (median)",
                found=f"median {np.median(leads):.0f}, {span(leads, '{:.0f}')}" if leads else "–",
                passed=bool(leads) and float(np.median(leads)) >= 20,
            ),
            Check(
                claim="λ_max falls below 2/η within 100 steps of the peak, in every seed",
                found=f"lowest {span([after for *_, after in jumps], '{:.0f}')}" if jumps else "–",
                passed=bool(jumps) and all(after < LIMIT for *_, after in jumps),
            ),
            Check(
                claim="λ_max of the SDK's operator is within 1 % of the float64 one",
                found=f"at the crossings at most {100 * max(errors):.4f} %" if errors else "–",
                passed=bool(errors) and max(errors) < 0.01,
            ),
        ],
        figure=svg([panels], "Loss and curvature of a tanh net"),
        caption="The first seed: λ_max (orange) crosses 2/η long before the loss shows anything; λ_grad (purple) "
        "follows at the spike.",
    )  # fmt: skip


def _step(step: int | None) -> str:
    return "–" if step is None else str(step)
