"""Random streams of samples that reach the alarms of every detector, for laws that hold on any stream.

A scenario is a handful of small numbers, so that Hypothesis shrinks it to the part that matters. The noise is that of a
seeded generator, and the same scenario always yields the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.models import Layout, Optimizer, Sample

ADAM: Final = Optimizer(name="Adam", family="adam", lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8)
SGD: Final = Optimizer(name="SGD", family="sgd", lr=0.01, beta1=0.9)
BAD: Final = (math.nan, math.inf, -math.inf)
EXTREME: Final = (*BAD, 0.0, -0.0, -1.0, 5e-324, 1e-310, 1e-300, 1e-30, 1e30, 1e300, -1e300, 1.7e308, -1.7e308)
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Something that happens to a run, from a share of its length on."""

    kind: str
    at: float
    size: float


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A stream of one attempt: what happens, and what of it is logged."""

    records: int = 200
    seed: int = 0
    noise: float = 0.02
    episodes: tuple[Episode, ...] = ()
    layers: int = 3
    """Number of layers; their gradients differ by orders of magnitude. 0 logs no blocks."""
    statistics: tuple[str, ...] = ("grad_norm", "v_rms", "nonfinite", "update_ratio", "eps_fraction")
    has_sizes: bool = True
    logs_norm: bool = True
    """Whether the gradient norm is logged as a scalar too."""
    logs_limit: bool = True
    is_stale: bool = False
    """Whether v lies far above the squared gradients all the time."""
    stride: int = 1
    """Number of steps between two records."""
    missing: float = 0.0
    """Share of the records that are missing."""
    measured_every: int = 1
    """Number of records between two blocks, as with `every="auto"`."""
    thinned: float = 0.0
    """Share of the remaining blocks that were dropped."""
    curvature_from: float = 0.0
    """Share of the run after which curvature is measured; 1 for never."""
    curvature_every: int = 3
    relayout_at: float = 1.0
    """Share of the run after which the layers have other names; 1 for never."""
    first_step: int = 0


class _Signals:
    """Signals of a run by record, which the episodes change."""

    def __init__(self, scenario: Scenario) -> None:
        n = scenario.records
        self.random = random = np.random.default_rng(scenario.seed)
        self.loss: Array = (1.0 + np.exp(-np.arange(n) / 40)) * np.exp(scenario.noise * random.standard_normal(n))
        self.gradient: Array = np.exp(0.1 * random.standard_normal(n))
        self.decoupling: Array = np.exp(0.2 * random.standard_normal(n)) * (1e-3 if scenario.is_stale else 1.0)
        self.ratio: Array = 0.6 * np.exp(0.05 * random.standard_normal(n))
        self.leaning: Array = 0.3 * np.exp(0.1 * random.standard_normal(n))
        self.lr: Array = np.full(n, 0.01)
        self.eps: Array = np.full(n, 0.02)
        self.nonfinite: Array = np.zeros(n)
        self.growth: Array = np.zeros(n)


def _growth(signals: _Signals, at: int, size: float) -> None:
    """Adam's mechanism: a growing oscillation under a stale v, and the spike at its end."""
    length = min(30, len(signals.loss) - at)
    rate = 0.1 + 0.05 * size
    ahead = np.arange(length)
    decoupling = np.minimum(1e-4 * np.exp(2 * rate * ahead), 4.0)
    signals.decoupling[at : at + length] = decoupling
    signals.gradient[at : at + length] *= np.exp(rate * ahead)
    signals.ratio[at : at + length] = 1.02 + 0.002 * ahead
    signals.leaning[at : at + length] = 1.1
    signals.growth[at : at + length] = rate
    signals.loss[at + length : at + length + 8] *= 1 + size


def _spike(signals: _Signals, at: int, size: float) -> None:
    """A rise that decays over some records."""
    length = min(12, len(signals.loss) - at)
    signals.loss[at : at + length] *= 1 + size * np.exp(-np.arange(length) / 4)


def _batch(signals: _Signals, at: int, size: float) -> None:
    """One record with a high loss and gradient."""
    signals.loss[at] *= 1 + size
    signals.gradient[at] *= 5 * size


def _rise(signals: _Signals, at: int, size: float) -> None:
    """A loss that does not come back."""
    signals.loss[at:] *= 1 + size


def _drift(signals: _Signals, at: int, size: float) -> None:
    """A loss that climbs slowly."""
    signals.loss[at:] *= 1 + 0.01 * size * np.arange(len(signals.loss) - at)


def _learning_rate(signals: _Signals, at: int, size: float) -> None:
    signals.lr[at:] *= 4 * size


def _explosion(signals: _Signals, at: int, size: float) -> None:
    """A gradient norm that leaves its range for some records."""
    signals.gradient[at : at + 4] *= 12 * size


def _vanishing(signals: _Signals, at: int, size: float) -> None:
    """Second moments that fall below ε."""
    del size
    signals.eps[at:] = 0.8


def _overflow(signals: _Signals, at: int, size: float) -> None:
    """Coordinates, and for larger sizes losses, that are not finite."""
    signals.nonfinite[at : at + 3] = 7
    if size > 2:
        signals.loss[at + 1 : at + 3] = math.nan


def _peaks(signals: _Signals, at: int, size: float) -> None:
    """A loss with two peaks."""
    high = signals.random.random(len(signals.loss) - at) < 0.25
    signals.loss[at:][high] *= 1 + 0.5 * size


EPISODES: Final[dict[str, Callable[[_Signals, int, float], None]]] = {
    "growth": _growth,
    "spike": _spike,
    "batch": _batch,
    "rise": _rise,
    "drift": _drift,
    "learning rate": _learning_rate,
    "explosion": _explosion,
    "vanishing": _vanishing,
    "overflow": _overflow,
    "peaks": _peaks,
}
"""Changes that an episode makes to the signals of a run, keyed by its kind."""


def layout_of(scenario: Scenario, number: int = 0) -> Layout:
    """Return the layout of a scenario; those of other numbers have the same layers under other names."""
    return Layout(
        id=number,
        layers=tuple(f"layer{layer}.{number}" for layer in range(scenario.layers)),
        statistics=scenario.statistics,
        sizes=tuple(100 * (layer + 1) for layer in range(scenario.layers)) if scenario.has_sizes else (),
        optimizer=ADAM if "v_rms" in scenario.statistics or "decoupling" in scenario.statistics else SGD,
    )


def samples_of(scenario: Scenario) -> list[Sample]:
    """Return the samples of a scenario."""
    n, random = scenario.records, np.random.default_rng(scenario.seed + 1)
    signals = _Signals(scenario)
    for episode in scenario.episodes:
        EPISODES[episode.kind](signals, min(int(episode.at * n), n - 1), episode.size)
    is_missing, is_thinned = random.random(n) < scenario.missing, random.random(n) < scenario.thinned
    layouts = (layout_of(scenario), layout_of(scenario, 1))
    found = []
    for at in range(n):
        step = scenario.first_step + at * scenario.stride
        loss, gradient, lr = float(signals.loss[at]), float(signals.gradient[at]), float(signals.lr[at])
        scalars = {"loss": loss, "lr": lr, "accuracy": 0.5}
        if scenario.logs_norm:
            scalars["grad_norm"] = gradient
        if scenario.logs_limit:
            scalars["stability_limit"] = 3.8 / lr
        if at >= scenario.curvature_from * n and at % scenario.curvature_every == 0:
            limit = (3.8 if scenario.logs_limit else 2.0) / lr
            scalars["lambda_max"] = limit * float(signals.ratio[at])
            scalars["lambda_grad"] = limit * float(signals.leaning[at])
            scalars["lambda_step"] = 0.5 * limit
            scalars["mode_loss"] = 0.01 * abs(loss)
            scalars["mode_growth"] = float(signals.growth[at])
            scalars["mode_alternation"] = 1.0 if signals.growth[at] else 0.5
        has_block = scenario.layers > 0 and at % scenario.measured_every == 0 and not is_thinned[at]
        if not is_missing[at]:
            found.append(
                Sample(
                    step=step,
                    time=float(at),
                    scalars=scalars,
                    layout=layouts[at >= scenario.relayout_at * n] if has_block else None,
                    block=_block(scenario, signals, at) if has_block else None,
                )
            )
    return found


def _block(scenario: Scenario, signals: _Signals, at: int) -> NDArray[np.float32]:
    layers = scenario.layers
    weights = 10.0 ** -np.arange(layers)
    norms = signals.gradient[at] * np.sqrt(weights / weights.sum())
    sizes = 100.0 * np.arange(1, layers + 1) if scenario.has_sizes else np.full(layers, 100.0)
    counts = np.zeros(layers)
    counts[0] = signals.nonfinite[at]
    columns = {
        "grad_norm": norms,
        "v_rms": norms / np.sqrt(signals.decoupling[at] * sizes),
        "decoupling": np.full(layers, signals.decoupling[at]),
        "nonfinite": counts,
        "update_ratio": np.full(layers, 1e-3),
        "eps_fraction": np.full(layers, signals.eps[at]),
    }
    return np.stack([columns[name] for name in scenario.statistics], axis=1).astype(np.float32)


STATISTICS: Final = (
    ("grad_norm", "v_rms", "nonfinite", "update_ratio", "eps_fraction"),
    ("eps_fraction", "decoupling", "grad_norm"),
    ("grad_norm",),
    ("nonfinite", "update_ratio"),
)
EPISODE_OF: Final = st.builds(
    Episode, kind=st.sampled_from(sorted(EPISODES)), at=st.floats(0.3, 0.95), size=st.sampled_from([0.2, 1.0, 4.0])
)


def scenarios(*, is_quiet: bool = False) -> st.SearchStrategy[Scenario]:
    """Return a strategy of scenarios; nothing happens in quiet ones, whatever of them is logged."""
    return st.builds(
        Scenario,
        records=st.integers(60, 240),
        seed=st.integers(0, 1000),
        noise=st.sampled_from([0.0, 0.02]),
        episodes=st.just(()) if is_quiet else st.lists(EPISODE_OF, min_size=1, max_size=4).map(tuple),
        layers=st.integers(0, 4),
        statistics=st.sampled_from(STATISTICS),
        has_sizes=st.booleans(),
        logs_norm=st.booleans(),
        logs_limit=st.booleans(),
        is_stale=st.booleans(),
        stride=st.sampled_from([1, 1, 7, 500]),
        missing=st.sampled_from([0.0, 0.0, 0.3]),
        measured_every=st.sampled_from([1, 1, 2, 16]),
        thinned=st.sampled_from([0.0, 0.0, 0.5]),
        curvature_from=st.sampled_from([0.0, 0.5, 1.0]),
        curvature_every=st.sampled_from([1, 3, 20]),
        relayout_at=st.sampled_from([0.5, 1.0, 1.0]),
        first_step=st.sampled_from([0, 1, 10_000]),
    )
