"""From a sample to what the detectors reason about: ratios to the limit, growth, decoupling, leading layers.

Owns the derived signals and the little history they need; decides nothing. A `Reading` is the whole input of every
detector, so that a new detector costs no second pass over the layers.

Formulas: docs/science.md. Decoupling is Σg²/Σv̂ over all layers; the stability ratio is λ_max/(2/η).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.detectors.leaders import Leaders
from server.detectors.robust import RECENT, Mean, Track
from server.models import LayerSums, Layout, Optimizer, Sample

GROWTH_STEPS: Final = 12
"""Measurements in the regression of log‖g‖: long against the noise of one batch, short against the e-folding of a
spike."""
UNUSUAL: Final = 3.0
"""Times the usual |growth| that one step adds to it at most: a build-up is not to become what is usual."""
TREND_STEPS: Final = 160
"""Steps that the trend of log λ_max looks back at most."""
TREND_POINTS: Final = 24
DECOUPLED: Final = 0.1
"""Σg²/Σv̂ below which v hears nothing of the gradient: (1−β2)·0.1 of it a step, so v ≈ β2·v."""
COUPLED: Final = 0.3
"""Above it the spell of decoupling is over (hysteresis)."""
ABSURD: Final = 1e9
"""λ_grad over the limit beyond which only "far above" can be said; keeps sums of squares finite."""
MARKED: Final = 2.0
"""‖g‖ over its mean up to which nobody asks how unusual it is."""
TINY: Final = 1e-300
Array = NDArray[np.float64]


class Reading(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What is known at one step. None where nothing was measured recently enough to count."""

    step: int
    loss: float | None
    """As logged, NaN and infinities included; None where this sample has none."""
    lr: float | None
    grad_norm: float | None
    """Global ‖g‖, finite; from the scalar or from the layers."""
    nonfinite: int
    """Gradient coordinates that are NaN or infinite."""
    has_layers: bool
    growth: float
    """Slope of log‖g‖ per step over the last 12 measurements; 0 when unknown."""
    growth_fit: float
    growth_usual: float
    """What |growth| is in this run when nothing happens, mean of a few hundred steps; 0 when unknown."""
    grad_ratio: float
    """‖g‖ over its own moving average (decay 0.98) before this step; 1 when unknown."""
    grad_z: float
    """Robust z-score of log‖g‖ against the last 64 steps; 0 when unknown, and where ‖g‖ is not `MARKED`."""
    decoupling: float | None
    """Σg²/Σv̂; None without second moments."""
    decoupling_least: float | None
    """The least of it in the last 10 steps."""
    decoupled_steps: int
    """Length of the present spell of decoupling, 0 outside one."""
    stability: float | None
    """λ_max over the limit 2/η, last measured, None when older than twice the usual pause."""
    stability_peak: float | None
    """Its maximum in the last 10 steps (or the last measurement)."""
    stability_growth: float
    """Slope of log λ_max/limit a step; 0 when unknown."""
    stability_fit: float
    above_steps: int
    """Steps for which every measurement of λ_max has been above the limit; 0 when below."""
    gradient_stability: float | None
    """λ_grad over the limit."""
    gradient_stability_growth: float
    gradient_above_count: int
    """Latest measurements of λ_grad in a row that were above the limit."""
    step_stability: float | None
    """λ_step over the limit: above 1 the step raised the loss of its own batch."""
    limit: float | None
    lambda_max: float | None
    """As last measured, like `stability`."""
    update_ratio: float | None
    """Largest ‖Δw‖/‖w‖ of a layer."""
    eps_fraction: float | None
    """Mean over layers, weighted by size, of the share with √v̂ < ε."""
    state_reset: bool
    """Every layer's v̂ equals this step's g² although training is under way: the optimizer's state was lost."""
    optimizer: Optimizer | None
    leaders: Leaders

    @property
    def layers(self) -> tuple[str, ...]:
        """Those that lead, most guilty first."""
        return self.leaders.layers

    @property
    def layer_shares(self) -> tuple[float, ...]:
        return self.leaders.shares

    @property
    def beta1(self) -> float:
        value = self.optimizer.beta1 if self.optimizer is not None else None
        return 0.9 if value is None else value

    @property
    def beta2(self) -> float:
        value = self.optimizer.beta2 if self.optimizer is not None else None
        return 0.999 if value is None else value


class Signals(msgspec.Struct):
    """History behind a `Reading`. Bounded: a few dozen numbers, and two per layer."""

    count: int = 0
    layout: int | None = None
    last_step: int | None = None
    growth: Track = msgspec.field(default_factory=lambda: Track(GROWTH_STEPS))
    grads: Track = msgspec.field(default_factory=lambda: Track(64))
    """log‖g‖."""
    decouplings: Track = msgspec.field(default_factory=lambda: Track(RECENT))
    grad_mean: Mean = msgspec.field(default_factory=lambda: Mean(0.98))
    growth_mean: Mean = msgspec.field(default_factory=lambda: Mean(0.995))
    stabilities: Track = msgspec.field(default_factory=lambda: Track(TREND_POINTS))
    """log of λ_max over the limit."""
    gradient_stabilities: Track = msgspec.field(default_factory=lambda: Track(TREND_POINTS))
    gradient_above_count: int = 0
    decoupled_since: int | None = None
    above_since: int | None = None
    fast: Array = msgspec.field(default_factory=lambda: np.zeros(0))
    """g² of each layer, mean over about 4 steps."""
    slow: Array = msgspec.field(default_factory=lambda: np.zeros(0))
    """The same over about 50 steps."""

    def update(self, sample: Sample, sums: LayerSums) -> Reading:
        scalars = sample.scalars
        step = sample.step
        self.count += 1
        self._follow_layers(sample.layout, sums)
        grad_norm = _positive(scalars.get("grad_norm"))
        if grad_norm is None and sums.squares is not None:
            grad_norm = _positive(math.sqrt(sums.square_sum))
        decoupling = sums.decoupling
        before = self.decouplings.values[-1] if self.decouplings.values else 1.0
        grad_ratio, grad_z = self._gradient(step, grad_norm)
        self._decoupled(step, decoupling)
        lr = _finite(scalars.get("lr"))
        limit = _positive(scalars.get("stability_limit"))
        if limit is None and lr is not None and lr > 0:
            limit = 2.0 / lr
        lambda_max = _finite(scalars.get("lambda_max"))
        self._curvature(step, lambda_max, _finite(scalars.get("lambda_grad")), limit)
        line = self.growth.line(GROWTH_STEPS // 2)
        usual = self.growth_mean.value  # of the past alone
        if line is not None:
            self.growth_mean.push(min(abs(line.slope), UNUSUAL * usual) if usual else abs(line.slope))
        stability = _last(self.stabilities, step)
        peak = max(self.stabilities.since(step - RECENT + 1), default=None)
        trend = self.stabilities.line(4, step - TREND_STEPS)
        gradient_trend = self.gradient_stabilities.line(3, step - 40)
        step_lambda = _finite(scalars.get("lambda_step"))
        least = self.decouplings.since(step - RECENT + 1)
        self.last_step = step
        return Reading(
            step=step,
            loss=scalars.get("loss"),
            lr=lr,
            grad_norm=grad_norm,
            nonfinite=sums.nonfinite,
            has_layers=sums.squares is not None,
            growth=0.0 if line is None else line.slope,
            growth_fit=0.0 if line is None else line.fit,
            growth_usual=usual or 0.0,
            grad_ratio=grad_ratio,
            grad_z=grad_z,
            decoupling=decoupling,
            decoupling_least=min(least) if least else None,
            decoupled_steps=0 if self.decoupled_since is None else step - self.decoupled_since + 1,
            stability=None if stability is None else _exp(stability),
            stability_peak=None if stability is None else _exp(stability if peak is None else peak),
            stability_growth=0.0 if trend is None or stability is None else trend.slope,
            stability_fit=0.0 if trend is None else trend.fit,
            above_steps=0 if self.above_since is None or stability is None else step - self.above_since + 1,
            gradient_stability=_last(self.gradient_stabilities, step),
            gradient_stability_growth=0.0 if gradient_trend is None else gradient_trend.slope,
            gradient_above_count=self.gradient_above_count,
            step_stability=step_lambda / limit if step_lambda is not None and limit is not None else None,
            limit=limit,
            lambda_max=None if stability is None or limit is None else _exp(stability) * limit,
            update_ratio=sums.update_ratio,
            eps_fraction=sums.eps_fraction,
            state_reset=sums.is_fresh and self.count > RECENT and abs(before - 1.0) > 0.01,
            optimizer=None if sample.layout is None else sample.layout.optimizer,
            leaders=Leaders(() if sample.layout is None else sample.layout.layers, self.fast, self.slow),
        )

    def _follow_layers(self, layout: Layout | None, sums: LayerSums) -> None:
        """The averages of g². Arrays are replaced, never changed: a reading keeps those of its step."""
        if layout is None or not sums.has_gradients:
            return
        layers = len(layout.layers)
        if layout.id != self.layout or len(self.fast) != layers:
            self.layout, self.fast, self.slow = layout.id, np.zeros(layers), np.zeros(layers)
        squares, known = sums.squares, sums.known
        if squares is None:
            return
        if not (layers and self.slow[0]) and not self.slow.any():  # the first one settles it for nearly all
            self.fast, self.slow = squares.copy(), squares.copy()
            return
        fast, slow = 0.75 * self.fast, 0.98 * self.slow
        fast += 0.25 * squares
        slow += 0.02 * squares
        self.fast = fast if known is None else np.where(known, fast, self.fast)
        self.slow = slow if known is None else np.where(known, slow, self.slow)

    def _gradient(self, step: int, grad_norm: float | None) -> tuple[float, float]:
        """‖g‖ over its moving average, and the robust z-score of its logarithm, both against the past alone."""
        if grad_norm is None:
            return 1.0, 0.0
        log_norm = math.log(grad_norm)
        mean = self.grad_mean.value
        ratio = grad_norm / mean if mean is not None and mean > 0 else 1.0
        z = self.grads.z(log_norm, least=10, floor=0.02) if ratio > MARKED else 0.0
        self.grad_mean.push(grad_norm)
        self.grads.push(step, log_norm)
        self.growth.push(step, log_norm)
        return ratio, z

    def _decoupled(self, step: int, decoupling: float | None) -> None:
        if decoupling is None:
            return
        self.decouplings.push(step, decoupling)
        if decoupling < DECOUPLED and self.decoupled_since is None:
            self.decoupled_since = step
        elif decoupling > COUPLED:
            self.decoupled_since = None

    def _curvature(self, step: int, lambda_max: float | None, lambda_grad: float | None, limit: float | None) -> None:
        if limit is None:
            return
        if lambda_max is not None and lambda_max > 0:
            self.stabilities.push(step, math.log(lambda_max / limit))
            if lambda_max <= limit:
                self.above_since = None
            elif self.above_since is None:
                self.above_since = step
        if lambda_grad is not None:
            self.gradient_stabilities.push(step, min(max(lambda_grad / limit, -ABSURD), ABSURD))
            self.gradient_above_count = self.gradient_above_count + 1 if lambda_grad > limit else 0


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _positive(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) or value <= TINY else float(value)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _last(track: Track, step: int) -> float | None:
    return None if track.age(step) is None else track.values[-1]
