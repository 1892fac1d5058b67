"""Synthetic streams of samples with a known truth, for tests of the detectors and the alerts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from msgspec.structs import replace

from server.detectors.detector_suite import DetectorSuite
from server.models import Finding, Layout, Optimizer, Sample, Verdict

ADAM = Optimizer(name="Adam", family="adam", lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8)
LAYERS = ("0.weight", "2.weight", "4.weight")
LAYOUT = Layout(
    id=0,
    layers=LAYERS,
    statistics=("grad_norm", "v_rms", "nonfinite", "eps_fraction"),
    sizes=(100, 100, 100),
    optimizer=ADAM,
)


def sample(
    step: int,
    loss: float = 1.0,
    *,
    lr: float = 0.01,
    gradient: float = 1.0,
    decoupling: float = 1.0,
    shares: tuple[float, ...] = (1.0, 1.0, 1.0),
    nonfinite: tuple[int, ...] = (0, 0, 0),
    eps_fraction: float = 0.0,
    **scalars: float,
) -> Sample:
    """Return one step of a network of three layers. ‖g‖ is `gradient`, divided by `shares` of Σg²."""
    weights = np.array(shares) / sum(shares)
    norms = gradient * np.sqrt(weights)
    v_rms = gradient / math.sqrt(decoupling) * np.sqrt(weights / 100)
    block = np.stack([norms, v_rms, np.array(nonfinite), np.full(3, eps_fraction)], axis=1).astype(np.float32)
    known = {"loss": loss, "lr": lr, "stability_limit": 2 / lr, **scalars}
    return Sample(step=step, time=1000.0 + step, scalars=known, layout=LAYOUT, block=block)


def constant(steps: int) -> Iterator[Sample]:
    """Yield samples in which nothing ever changes."""
    return (sample(step, lambda_max=150.0, lambda_grad=80.0) for step in range(1, steps + 1))


def healthy(steps: int, seed: int) -> Iterator[Sample]:
    """Yield a falling loss with the noise of a small batch, noisy gradients, and λ_max below its limit."""
    noise = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        yield sample(
            step,
            (1.0 + 3.0 * math.exp(-step / 150)) * math.exp(0.1 * noise.standard_normal()),
            gradient=math.exp(0.3 * noise.standard_normal()),
            decoupling=math.exp(0.3 * noise.standard_normal()),
            lambda_max=120.0 * math.exp(0.1 * noise.standard_normal()),
            lambda_grad=60.0 * math.exp(0.3 * noise.standard_normal()),
        )


def restless(steps: int, seed: int) -> Iterator[Sample]:
    """Yield pure noise under a v that is far above it; gradients seem to climb now and then, without consequence."""
    noise = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        gradient = math.exp(0.7 * noise.standard_normal())
        yield sample(step, 1.0 + 0.05 * noise.standard_normal(), gradient=gradient, decoupling=1e-3 * gradient**2)


ONSET = 0.024
"""Value of Σg²/Σv̂ at which an unstable direction of the exponential stream holds a twentieth of its loss."""


def exponential(
    *, start: int, rate: float, decoupling: float, steps: int, onset: float = 1.0, ratio: float = 1.05
) -> Iterator[Sample]:
    """Yield Adam's mechanism in its purest form: from `start`, ‖g‖ = e^{rate·t} under a fixed v until RMS_t = 2.

    The loss follows once Σg²/Σv̂ reaches `onset`: at step start + ½·log(onset/decoupling)/rate. λ_max is then `ratio`
    times its limit.
    """
    for step in range(1, steps + 1):
        ahead = max(0, step - start)
        now = min(decoupling * math.exp(2 * rate * ahead), 4.0)
        yield sample(
            step,
            1e-3 if now < onset else 1e-3 + 0.5 * now,
            gradient=math.sqrt(now),
            decoupling=now,
            shares=(7.0, 2.0, 1.0),
            lambda_max=200.0 * (ratio if ahead else 0.95),
            lambda_grad=200.0 * (1.02 if ahead else 0.3),
        )


def approaching(steps: int, *, crossing: int, rate: float, decoupling: float) -> Iterator[Sample]:
    """Yield a decoupled v while λ_max rises by e^{rate} per step through the limit 200; the gradient is constant.

    λ_max crosses the limit at step `crossing`.
    """
    for step in range(1, steps + 1):
        ratio = math.exp(rate * (step - crossing))
        item = sample(step, 1e-3, gradient=1e-3, decoupling=decoupling)
        if step % 5 == 0:
            item = replace(item, scalars={**item.scalars, "lambda_max": 200 * ratio, "lambda_grad": 120 * ratio})
        yield item


def spoiled(samples: Iterable[Sample], seed: int) -> Iterator[Sample]:
    """Yield the same stream with NaN, infinities and gaps scattered over it."""
    noise = np.random.default_rng(seed)
    bad = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300)
    for item in samples:
        kind = noise.integers(6)
        scalars = dict(item.scalars)
        block = item.block
        if kind == 0:
            for key in list(scalars):
                scalars[key] = bad[int(noise.integers(len(bad)))]
        elif kind == 1 and block is not None:
            block = block.copy()
            block[noise.random(block.shape) < 0.5] = bad[int(noise.integers(3))]
        elif kind == 2:
            block = None
        elif kind == 3:
            scalars = {}
        yield replace(item, scalars=scalars, block=block)


def verdicts(samples: Iterable[Sample], suite: DetectorSuite | None = None) -> list[Verdict]:
    """Return the verdicts on a stream, of a new suite unless one is given."""
    suite = DetectorSuite() if suite is None else suite
    return [suite.update(item) for item in samples]


def first(found: Iterable[Verdict], kind: str, *levels: str) -> tuple[int, Finding] | None:
    """Return the step and the first finding of a kind, at one of the levels if any are given."""
    for verdict in found:
        for finding in verdict.findings:
            if finding.kind == kind and (not levels or finding.level in levels):
                return verdict.step, finding
    return None
