"""Derived signals of a sample: ratios to the stability limit, growth of the gradient, decoupling, leading layers.

Owns the signals and the short history that they need; decides nothing. A `Reading` is the whole input of every
detector, so that a new detector costs no second pass over the layers.

Formulas: docs/explanation/science.md. The decoupling is Σg²/Σv̂ over all layers; the stability ratio is λ_max/(2/η).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from server.detectors.leaders import Leaders
from server.detectors.robust import RECENT, MovingAverage, RecentPoints
from server.models import LayerSums, Layout, Optimizer, Sample

GROWTH_STEPS: Final = 12
"""Number of measurements in the regression of log‖g‖.

They are many compared to the noise of one batch and few compared to the time in which a spike grows by a factor e.
"""
MAX_GROWTH_RATIO: Final = 3.0
"""Largest |growth| that one step adds to the usual growth, in units of that usual growth.

The cap keeps a build-up from becoming what counts as usual.
"""
TREND_STEPS: Final = 160
"""Number of steps that the trend of log λ_max looks back at most."""
TREND_POINTS: Final = 24
"""Number of measurements of λ_max and λ_grad that are kept."""
DECOUPLED: Final = 0.1
"""Value of Σg²/Σv̂ below which v is decoupled from the gradient.

The gradient then adds less than 0.1·(1−β2)·v a step, so v decays as v ≈ β2·v.
"""
COUPLED: Final = 0.3
"""Value of Σg²/Σv̂ above which a decoupled spell is over (hysteresis)."""
PAUSES: Final = 5
"""Number of pauses between records from which the logging interval is taken."""
UNKNOWN_DECAY: Final = 0.98
"""Decay per record of the g² of a layer that is not known in a record with others."""
MAX_PAUSE: Final = 2**48
"""Largest pause that counts; it keeps durations of some hundred records within 64 bits."""
MAX_GRADIENT_RATIO: Final = 1e9
"""Largest λ_grad over the limit that is stored; it keeps sums of squares finite."""
MARKED: Final = 2.0
"""Ratio of ‖g‖ to its mean above which its z-score is computed."""
TINY: Final = 1e-300
"""Largest number that is treated as zero, because its logarithm or inverse would overflow."""
Array = NDArray[np.float64]


class Reading(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The signals of one step. A value is None if it was never measured, or too long ago to count.

    >>> Reading(step=7, loss=0.5).growth
    0.0
    """

    step: int
    """Step of the sample."""
    interval: int = 1
    """Number of steps between two records: the longest of the last five pauses.

    A duration of n records is n·interval steps, so that logs of every step and of every 500 steps are judged alike.
    """
    loss_interval: int = 1
    """Number of steps between two losses, measured like `interval`."""
    loss_pause: int = 1
    """Usual number of steps between two losses: the median of the last five pauses."""
    loss: float | None = None
    """Logged loss, NaN and infinities included; None if the sample has none."""
    lr: float | None = None
    """Logged learning rate η, if finite."""
    grad_norm: float | None = None
    """Global ‖g‖ from the scalar or from the layers, if positive and finite."""
    is_norm_new: bool = False
    """Whether ‖g‖ is that of other layers than before, so that earlier norms are no measure for it."""
    is_grad_norm_nonfinite: bool = False
    """Whether the logged ‖g‖ is NaN or infinite, in a log whose norm can be finite.

    A norm that never was is not measured, as in logs that write NaN for a missing value. It counts once a finite one
    was logged, and together with a loss or with coordinates that are not finite.
    """
    nonfinite: int = 0
    """Number of gradient coordinates that are NaN or infinite."""
    nonfinite_layers: tuple[str, ...] = ()
    """Names of the first layers with non-finite coordinates."""
    growth: float = 0.0
    """Slope of log‖g‖ per step over the last 12 measurements; 0 if unknown."""
    growth_fit: float = 0.0
    """Share of the variance of log‖g‖ that this slope explains."""
    growth_usual: float = 0.0
    """Usual |growth| of this run, averaged over a few hundred steps; 0 if unknown."""
    grad_ratio: float = 1.0
    """Ratio of ‖g‖ to its moving average (decay 0.98) before this step; 1 if unknown."""
    grad_z: float = 0.0
    """Robust z-score of log‖g‖ against the last 64 steps; 0 if unknown or if `grad_ratio` is not above `MARKED`."""
    decoupling: float | None = None
    """Ratio Σg²/Σv̂; None without second moments."""
    min_decoupling: float | None = None
    """Smallest decoupling of the last 10 steps."""
    decoupled_steps: int = 0
    """Length of the present decoupled spell in steps, 0 outside one."""
    stability: float | None = None
    """Last measured λ_max over the limit 2/η; None if older than twice the usual pause."""
    stability_peak: float | None = None
    """Largest stability ratio of the last 10 steps, or the last measured one."""
    stability_growth: float = 0.0
    """Slope of log(λ_max/limit) per step; 0 if unknown."""
    stability_fit: float = 0.0
    """Share of the variance of log(λ_max/limit) that this slope explains."""
    above_steps: int = 0
    """Number of steps for which every measured λ_max has been above the limit, 0 if the last one was below."""
    gradient_stability: float | None = None
    """Last measured λ_grad over the limit."""
    gradient_above_count: int = 0
    """Number of the latest consecutive measurements of λ_grad that were above the limit."""
    step_stability: float | None = None
    """Measured λ_step over the limit; above 1 the step raised the loss of its own batch."""
    limit: float | None = None
    """Stability limit of the optimizer: the logged one, otherwise 2/η."""
    lambda_max: float | None = None
    """Last measured λ_max, with the same age limit as `stability`."""
    memory_loss: float | None = None
    """Loss that a direction at its limit would hold if its gradient were as large as √v̂; None if unknown."""
    mode_loss: float | None = None
    """Loss that the directions of largest curvature hold at this step; None if not measured or not positive."""
    mode_growth: float = 0.0
    """Growth of the gradient in these directions per step over the last 12 steps; 0 if unknown."""
    mode_alternation: float = 0.0
    """Share of the last 12 steps at which the gradient along the leading direction changed its sign."""
    mode_share: float | None = None
    """Share of the preconditioned gradient that these directions hold; None if not measured or not positive."""
    period_two: float | None = None
    """Share of the gradient that changes its sign at every step, between 0 and 1; None if not measured at this step."""
    period_two_growth: float | None = None
    """Growth of that component per step over the last 12 steps; None if not measured at this step."""
    update_ratio: float | None = None
    """Largest ‖Δw‖/‖w‖ over all layers."""
    eps_fraction: float | None = None
    """Share of coordinates with √v̂ < ε, averaged over layers and weighted by their size."""
    state_reset: bool = False
    """Whether the optimizer's state was lost: v̂ of every layer equals this step's g² in mid-training."""
    optimizer: Optimizer | None = None
    """Optimizer of the writer."""
    leaders: Leaders = msgspec.field(default_factory=lambda: Leaders((), np.zeros(0), np.zeros(0)))
    """Leading layers of the gradient's growth."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the leading layers, largest contributor first."""
        return self.leaders.layers

    @property
    def layer_shares(self) -> tuple[float, ...]:
        """Shares of the leading layers, in the order of `layers`."""
        return self.leaders.shares

    @property
    def beta1(self) -> float:
        """Momentum coefficient of the optimizer, 0.9 if unknown."""
        value = self.optimizer.beta1 if self.optimizer is not None else None
        return 0.9 if value is None else value


class Signals(msgspec.Struct):
    """History behind a `Reading`: a few dozen numbers, and two for each layer."""

    count: int = 0
    """Number of samples so far."""
    layout: int | None = None
    """Number of the layout that `fast` and `slow` belong to."""
    last_step: int | None = None
    """Step of the last sample."""
    pauses: list[int] = []
    """Latest numbers of steps between two samples."""
    last_loss_step: int | None = None
    """Step of the last loss."""
    loss_pauses: list[int] = []
    """Latest numbers of steps between two losses."""
    growth: RecentPoints = msgspec.field(default_factory=lambda: RecentPoints(GROWTH_STEPS))
    """The values of log‖g‖ that its slope is fitted to."""
    grads: RecentPoints = msgspec.field(default_factory=lambda: RecentPoints(64))
    """The values of log‖g‖ that its z-score is computed against."""
    decouplings: RecentPoints = msgspec.field(default_factory=lambda: RecentPoints(RECENT))
    is_norm_measured: bool = False
    """Whether a finite ‖g‖ was logged as a scalar."""
    grad_mean: MovingAverage = msgspec.field(default_factory=lambda: MovingAverage(0.98))
    growth_mean: MovingAverage = msgspec.field(default_factory=lambda: MovingAverage(0.995))
    stabilities: RecentPoints = msgspec.field(default_factory=lambda: RecentPoints(TREND_POINTS))
    """Recent measurements of log(λ_max/limit)."""
    gradient_stabilities: RecentPoints = msgspec.field(default_factory=lambda: RecentPoints(TREND_POINTS))
    """Recent measurements of λ_grad over the limit."""
    gradient_above_count: int = 0
    decoupled_since: int | None = None
    """First step of the present decoupled spell."""
    above_since: int | None = None
    """Step since which every measured λ_max has been above the limit."""
    optimizer: Optimizer | None = None
    """Optimizer of the last record with a layout; a record without layers is of the same one."""
    limit_factor: float = 2.0
    """Last logged stability limit times the learning rate; 2 where no limit was logged."""
    fast: Array = msgspec.field(default_factory=lambda: np.zeros(0))
    """Average of g² over about 4 steps, shape (layers,)."""
    slow: Array = msgspec.field(default_factory=lambda: np.zeros(0))
    """Average of g² over about 50 steps, shape (layers,)."""

    def update(self, sample: Sample, sums: LayerSums) -> Reading:
        """Add one sample and return its reading. `sums` are the sums over the layers of the same sample."""
        scalars = sample.scalars
        step = sample.step
        self.count += 1
        logged_norm = scalars.get("grad_norm")
        is_norm_new = self._follow_layers(sample.layout, sums) and logged_norm is None
        unknown = 0.0 if sums.known is None else float(self.fast[~sums.known].sum())
        grad_norm = _positive(logged_norm)
        if grad_norm is None and sums.squares is not None and not (self.is_norm_measured and logged_norm is not None):
            grad_norm = _positive(math.sqrt(sums.square_sum + unknown))
        if is_norm_new:
            self.growth.clear()
            self.grads.clear()
            self.grad_mean = MovingAverage(self.grad_mean.decay)
        # The layers that are left say little about the whole while the largest ones are unknown for a moment.
        is_whole = sums.square_sum >= unknown
        decoupling = sums.decoupling if is_whole else None
        before = self.decouplings.values[-1] if self.decouplings.values else 1.0
        grad_ratio, grad_z = self._follow_gradient(step, grad_norm)
        self._follow_decoupling(step, decoupling)
        lr = _finite(scalars.get("lr"))
        limit = self._limit(_positive(scalars.get("stability_limit")), lr)
        lambda_max = _finite(scalars.get("lambda_max"))
        self._follow_curvature(step, lambda_max, _finite(scalars.get("lambda_grad")), limit)
        line = self.growth.line(GROWTH_STEPS // 2)
        usual = self.growth_mean.value  # without this step
        if line is not None:
            self.growth_mean.push(min(abs(line.slope), MAX_GROWTH_RATIO * usual) if usual else abs(line.slope))
        stability = _last(self.stabilities, step)
        peak = max(self.stabilities.since(step - RECENT + 1), default=None)
        trend = None if stability is None else self.stabilities.line(4, step - TREND_STEPS)
        step_lambda = _finite(scalars.get("lambda_step"))
        if sample.layout is not None:
            self.optimizer = sample.layout.optimizer
        decouplings = self.decouplings.since(step - RECENT + 1)
        self.pauses = _with_pause(self.pauses, self.last_step, step)
        self.last_step = step
        if "loss" in scalars:
            self.loss_pauses = _with_pause(self.loss_pauses, self.last_loss_step, step)
            self.last_loss_step = step
        return Reading(
            step=step,
            interval=max(self.pauses, default=1),
            loss_interval=max(self.loss_pauses, default=1),
            loss_pause=_usual(self.loss_pauses),
            loss=scalars.get("loss"),
            lr=lr,
            grad_norm=grad_norm,
            is_norm_new=is_norm_new,
            is_grad_norm_nonfinite=self._is_norm_broken(logged_norm, scalars.get("loss"), sums.nonfinite),
            nonfinite=sums.nonfinite,
            nonfinite_layers=sums.guilty,
            growth=0.0 if line is None else line.slope,
            growth_fit=0.0 if line is None else line.fit,
            growth_usual=usual or 0.0,
            grad_ratio=grad_ratio,
            grad_z=grad_z,
            decoupling=decoupling,
            min_decoupling=min(decouplings) if decouplings else None,
            decoupled_steps=0 if self.decoupled_since is None else step - self.decoupled_since + 1,
            stability=None if stability is None else _exp(stability),
            stability_peak=None if stability is None else _exp(stability if peak is None else peak),
            stability_growth=0.0 if trend is None else trend.slope,
            stability_fit=0.0 if trend is None else trend.fit,
            above_steps=0 if self.above_since is None or stability is None else step - self.above_since + 1,
            gradient_stability=_last(self.gradient_stabilities, step),
            gradient_above_count=self.gradient_above_count,
            step_stability=step_lambda / limit if step_lambda is not None and limit is not None else None,
            limit=limit,
            lambda_max=None if stability is None or limit is None else _exp(stability) * limit,
            memory_loss=None if lr is None or not is_whole else _memory_loss(sums.descent, lr, self.optimizer),
            mode_loss=_positive(scalars.get("mode_loss")),
            mode_growth=_finite(scalars.get("mode_growth")) or 0.0,
            mode_alternation=_finite(scalars.get("mode_alternation")) or 0.0,
            mode_share=_positive(scalars.get("mode_share")),
            period_two=_positive(scalars.get("period_two")),
            period_two_growth=_finite(scalars.get("period_two_growth")),
            update_ratio=sums.update_ratio,
            eps_fraction=sums.eps_fraction,
            state_reset=sums.is_fresh and is_whole and self.count > RECENT and abs(before - 1.0) > 0.01,
            optimizer=self.optimizer,
            leaders=Leaders(() if sample.layout is None else sample.layout.layers, self.fast, self.slow),
        )

    def _limit(self, logged: float | None, lr: float | None) -> float | None:
        """Return the stability limit: the logged one, else the last logged one at this learning rate, else 2/η."""
        eta = _positive(lr)
        if logged is None:
            return None if eta is None else _positive(self.limit_factor / eta)
        if eta is not None:
            self.limit_factor = _positive(logged * eta) or self.limit_factor
        return logged

    def _is_norm_broken(self, norm: float | None, loss: float | None, nonfinite: int) -> bool:
        """Return whether a logged ‖g‖ is NaN or infinite, and not merely never measured."""
        if norm is None:
            return False
        if math.isfinite(norm):
            self.is_norm_measured = True
            return False
        return self.is_norm_measured or nonfinite > 0 or (loss is not None and not math.isfinite(loss))

    def _follow_layers(self, layout: Layout | None, sums: LayerSums) -> bool:
        """Update the averages of g², and return whether the layers have become more or fewer.

        Arrays are replaced, never changed, because readings keep those of their step.
        """
        if layout is None or not sums.has_gradients:
            return False
        layers, before = len(layout.layers), len(self.fast)
        if layout.id != self.layout or before != layers:
            self.layout, self.fast, self.slow = layout.id, np.zeros(layers), np.zeros(layers)
        is_other = before not in (0, layers)
        squares, known = sums.squares, sums.known
        if squares is None:
            return is_other
        if not (layers and self.slow[0]) and not self.slow.any():  # the first layer decides nearly always
            self.fast, self.slow = squares.copy(), squares.copy()
            return is_other
        fast, slow = 0.75 * self.fast, 0.98 * self.slow
        fast += 0.25 * squares
        slow += 0.02 * squares
        # A layer that is unknown for a moment keeps its share of ‖g‖; one that stays unknown loses it.
        self.fast = fast if known is None else np.where(known, fast, UNKNOWN_DECAY * self.fast)
        self.slow = slow if known is None else np.where(known, slow, self.slow)
        return is_other

    def _follow_gradient(self, step: int, grad_norm: float | None) -> tuple[float, float]:
        """Return the ratio of ‖g‖ to its moving average and the z-score of log‖g‖, both against earlier steps only."""
        if grad_norm is None:
            return 1.0, 0.0
        log_norm = math.log(grad_norm)
        mean = self.grad_mean.value
        ratio = grad_norm / mean if mean is not None and mean > 0 else 1.0
        z = self.grads.z_score(log_norm, min_count=10, min_spread=0.02) if ratio > MARKED else 0.0
        self.grad_mean.push(grad_norm)
        self.grads.push(step, log_norm)
        self.growth.push(step, log_norm)
        return ratio, z

    def _follow_decoupling(self, step: int, decoupling: float | None) -> None:
        if decoupling is None:
            return
        self.decouplings.push(step, decoupling)
        if decoupling < DECOUPLED and self.decoupled_since is None:
            self.decoupled_since = step
        elif decoupling > COUPLED:
            self.decoupled_since = None

    def _follow_curvature(
        self, step: int, lambda_max: float | None, lambda_grad: float | None, limit: float | None
    ) -> None:
        if limit is None:
            return
        ratio = None if lambda_max is None else _positive(lambda_max / limit)
        if ratio is not None:
            self.stabilities.push(step, math.log(ratio))
            if ratio <= 1.0:
                self.above_since = None
            elif self.above_since is None:
                self.above_since = step
        if lambda_grad is not None:
            self.gradient_stabilities.push(step, min(max(lambda_grad / limit, -MAX_GRADIENT_RATIO), MAX_GRADIENT_RATIO))
            self.gradient_above_count = self.gradient_above_count + 1 if lambda_grad > limit else 0


def _with_pause(pauses: list[int], last_step: int | None, step: int) -> list[int]:
    return pauses if last_step is None else [*pauses[-(PAUSES - 1) :], min(step - last_step, MAX_PAUSE)]


def _usual(pauses: list[int]) -> int:
    return sorted(pauses)[len(pauses) // 2] if pauses else 1


def _memory_loss(descent: float | None, lr: float, optimizer: Optimizer | None) -> float | None:
    """Return the loss that a direction of curvature 2/η would hold if its gradient were as large as √v̂.

    The gradient c along a direction of D^½·H·D^½ with the eigenvalue λ holds c²/(2λ). For Adam D is
    (1−β1)/(1+β1)/√v̂, and λ is 2/η at the limit, so that it is η/4·(1−β1)/(1+β1)·Σ(g²/√v̂) with g² scaled to v̂.
    """
    if descent is None or optimizer is None or optimizer.family != "adam":
        return None
    beta1 = 0.9 if optimizer.beta1 is None else optimizer.beta1
    return _positive(lr / 4 * (1 - beta1) / (1 + beta1) * descent)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _positive(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) or value <= TINY else float(value)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _last(points: RecentPoints, step: int) -> float | None:
    return points.values[-1] if points.is_current(step) else None
