"""False alarms: alerts per 1,000 steps of runs that are pure noise.

    python -m benchmarks.noise [--steps N] [--seeds N]

Every run is noise around a constant, with three layers and without a spike, so every prediction is false. The second
moments are either far above the squared gradients ("stale", Σg²/Σv̂ about 0.001), which removes the one sign that most
healthy runs lack, or as large ("coupled"). Predictions at warning and above are counted when they are resolved. One
that stands for thousands of steps counts once, so the share of the steps under a warning is printed too, followed by
the other alerts of any level, including predictions that stayed a watch.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from server.alerts.lifecycle import AlertLifecycle
from server.detectors.detector_suite import DetectorSuite
from server.models import AlertKind, AlertLevel, Layout, Optimizer, Sample

LAYOUT = Layout(
    id=0,
    layers=("0.weight", "2.weight", "4.weight"),
    statistics=("grad_norm", "v_rms"),
    sizes=(100, 100, 100),
    optimizer=Optimizer(name="Adam", family="adam", lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8),
)
SERIES = 6
"""Number of series of a run: three gradients, loss, λ_max and λ_grad."""
Noise = NDArray[np.float64]
"""Noise of the series of a run, shape (steps, SERIES)."""


def normal(random: np.random.Generator, steps: int) -> Noise:
    """Return independent normal noise."""
    return random.standard_normal((steps, SERIES))


def heavy(random: np.random.Generator, steps: int) -> Noise:
    """Return noise of Student's t with three degrees of freedom, one per cent of it beyond 4.5 deviations."""
    return random.standard_t(3, (steps, SERIES)) / math.sqrt(3)


def correlated(random: np.random.Generator, steps: int) -> Noise:
    """Return AR(1) noise with the coefficient 0.95, which drifts for twenty steps at a time."""
    return _filtered(random, steps, 0.95)


def wandering(random: np.random.Generator, steps: int) -> Noise:
    """Return AR(1) noise with the coefficient 0.999, a bounded random walk."""
    return _filtered(random, steps, 0.999)


def uniform(random: np.random.Generator, steps: int) -> Noise:
    """Return noise that makes the gradients uniform between zero and one."""
    return np.log(random.random((steps, SERIES))) / 0.6


NOISES: dict[str, Callable[[np.random.Generator, int], Noise]] = {
    "normal": normal,
    "heavy-tailed": heavy,
    "AR(1) 0.95": correlated,
    "random walk": wandering,
    "uniform": uniform,
}
"""Kinds of noise by name."""


RUNS = (("stale", 0.001, False), ("stale, curvature", 0.001, True), ("coupled, curvature", 1.0, True))
"""Name, Σg²/Σv̂ and whether curvature is measured; coupled runs without curvature are never predicted to spike."""


def _filtered(random: np.random.Generator, steps: int, memory: float) -> Noise:
    values = random.standard_normal((steps, SERIES))
    for step in range(1, steps):
        values[step] = memory * values[step - 1] + math.sqrt(1 - memory**2) * values[step]
    return values


def samples(noise: Noise, *, decoupling: float, curvature: bool) -> Iterator[Sample]:
    """Yield a run with ``noise``: gradients vary by a factor of 1.8, the loss by a tenth, λ_max by a fifth."""
    spread = np.array([0.6, 0.6, 0.6, 0.1, 0.2, 0.5])
    values = np.exp(np.clip(spread * noise, -30, 30))
    for step, row in enumerate(values, 1):
        block = np.stack([row[:3], np.full(3, math.sqrt(0.01 / decoupling))], axis=1).astype(np.float32)
        scalars = {"loss": float(row[3]), "lr": 0.01}
        if curvature:
            scalars |= {"lambda_max": 180.0 * float(row[4]), "lambda_grad": 120.0 * float(row[5])}
        yield Sample(step=step, time=float(step), scalars=scalars, layout=LAYOUT, block=block)


def alerts(stream: Iterator[Sample]) -> Counter[str]:
    """Count predictions by result, other alerts by kind, and as "warned" the steps with a warning of a spike."""
    suite, lifecycle = DetectorSuite(), AlertLifecycle("noise")
    opened = {}
    found: Counter[str] = Counter()
    for sample in stream:
        verdict = suite.update(sample)
        found["warned"] += any(
            finding.kind is AlertKind.SPIKE_PREDICTED and finding.level is not AlertLevel.WATCH
            for finding in verdict.findings
        )
        for alert in lifecycle.apply(verdict, sample.time):
            opened[alert.id] = alert
    for alert in opened.values():
        if alert.kind == AlertKind.SPIKE_PREDICTED:
            found[
                "watch"
                if alert.level == AlertLevel.WATCH
                else "open"
                if alert.outcome is None
                else alert.outcome.result
            ] += 1
        else:
            found[alert.kind] += 1
    return found


def main() -> None:
    """Print the table of all kinds of noise and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    print(f"{options.steps:,} steps × {options.seeds} seeds; false predictions, the same per 1,000 steps, share of the")
    print("steps with a warning, and the number of other alerts\n")
    for name, make in NOISES.items():
        for kind, decoupling, curvature in RUNS:
            found: Counter[str] = Counter()
            for seed in range(options.seeds):
                noise = make(np.random.default_rng(seed), options.steps)
                found += alerts(samples(noise, decoupling=decoupling, curvature=curvature))
            false = found.pop("false", 0) + found.pop("open", 0)
            steps = options.steps * options.seeds
            share = f"{1000 * false / steps:6.2f} {100 * found.pop('warned', 0) / steps:6.1f} %"
            rest = ", ".join(f"{what} {count}" for what, count in found.most_common())
            print(f"{name + ', ' + kind:36}{false:6} {share}   {rest}", flush=True)


if __name__ == "__main__":
    main()
