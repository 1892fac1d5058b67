"""What the detectors say of runs in which nothing happens: alerts per 1,000 steps of pure noise.

    python benchmarks/noise.py [--steps N] [--seeds N]

Every run is noise around a constant, three layers, without a spike: whatever is predicted is false. The second moments
are far above the gradients ("stale", Σg²/Σv̂ about 0.001), which takes away the one sign that most healthy runs do not
show, or as large ("coupled"). Predictions are counted at warning and above, as they were settled; one that stands for
thousands of steps counts once, so the share of the steps under a warning is printed too. What follows are other alerts
of any level, predictions that stayed a watch among them.
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
"""Three gradients, loss, λ_max, λ_grad."""
Noise = NDArray[np.float64]
"""steps × `SERIES`."""


def normal(random: np.random.Generator, steps: int) -> Noise:
    return random.standard_normal((steps, SERIES))


def heavy(random: np.random.Generator, steps: int) -> Noise:
    """Student's t with three degrees of freedom: a hundredth of the values beyond four and a half deviations."""
    return random.standard_t(3, (steps, SERIES)) / math.sqrt(3)


def correlated(random: np.random.Generator, steps: int) -> Noise:
    """AR(1) with 0.95: it drifts for twenty steps at a time."""
    return _filtered(random, steps, 0.95)


def wandering(random: np.random.Generator, steps: int) -> Noise:
    """AR(1) with 0.999: a random walk that stays in reach."""
    return _filtered(random, steps, 0.999)


def uniform(random: np.random.Generator, steps: int) -> Noise:
    """Gradients anywhere between nought and one."""
    return np.log(random.random((steps, SERIES))) / 0.6


NOISES: dict[str, Callable[[np.random.Generator, int], Noise]] = {
    "normal": normal,
    "heavy-tailed": heavy,
    "AR(1) 0.95": correlated,
    "random walk": wandering,
    "uniform": uniform,
}


RUNS = (("stale", 0.001, False), ("stale, curvature", 0.001, True), ("coupled, curvature", 1.0, True))
"""With Σg²/Σv̂. Where it is about one and no curvature is measured, nothing is ever predicted."""


def _filtered(random: np.random.Generator, steps: int, memory: float) -> Noise:
    values = random.standard_normal((steps, SERIES))
    for step in range(1, steps):
        values[step] = memory * values[step - 1] + math.sqrt(1 - memory**2) * values[step]
    return values


def samples(noise: Noise, *, decoupling: float, curvature: bool) -> Iterator[Sample]:
    """A run of it: gradients vary by a factor of 1.8, the loss by a tenth, curvatures by a fifth."""
    spread = np.array([0.6, 0.6, 0.6, 0.1, 0.2, 0.5])
    values = np.exp(np.clip(spread * noise, -30, 30))
    for step, row in enumerate(values, 1):
        block = np.stack([row[:3], np.full(3, math.sqrt(0.01 / decoupling))], axis=1).astype(np.float32)
        scalars = {"loss": float(row[3]), "lr": 0.01}
        if curvature:
            scalars |= {"lambda_max": 180.0 * float(row[4]), "lambda_grad": 120.0 * float(row[5])}
        yield Sample(step=step, time=float(step), scalars=scalars, layout=LAYOUT, block=block)


def alerts(stream: Iterator[Sample]) -> Counter[str]:
    """What was told: resolved predictions by result, everything else by kind; and the steps "warned" of a spike."""
    monitor, book = DetectorSuite(), AlertLifecycle("noise")
    told = {}
    found: Counter[str] = Counter()
    for sample in stream:
        verdict = monitor.update(sample)
        found["warned"] += any(
            finding.kind is AlertKind.SPIKE_PREDICTED and finding.level is not AlertLevel.WATCH
            for finding in verdict.findings
        )
        for alert in book.apply(verdict, sample.time):
            told[alert.id] = alert
    for alert in told.values():
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    print(
        f"{options.steps:,} steps × {options.seeds} seeds; false predictions, those per 1,000 steps, share of the steps"
    )
    print("with a warning, and how many alerts of other kinds\n")
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
