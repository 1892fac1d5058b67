"""The trigger of the dense rhythm: signs in values that a run logs anyway which ask for every step to be measured.

Owns the signs; pure, and fed only with values that have reached the host. It costs nothing on a device, as it uses the
loss and the gradient norm that the user logs, the totals of the last measured statistics, and curvature.

A value counts as risen if its logarithm is above its own moving average by `SINGLE` times its usual deviation, or if a
fast average is above the slow one by `SUSTAINED` times what noise alone would give. The usual deviation is a moving
average too. It takes in at most `CAPPED` deviations of one value, so that a rise does not become what counts as usual
before it is over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from client_sdk.vocabulary import LOSS, loss_among

SINGLE: Final = 4.0  # usual deviations of one value above the average
SUSTAINED: Final = 4.0  # deviations of the fast average above the slow one
CAPPED: Final = 3.0  # deviations that one value adds to the usual ones at most
SLOW: Final = 0.03  # weight of a new value in the slow average and in the usual deviation
FAST: Final = 0.25  # weight of a new value in the fast average
MIN_COUNT: Final = 12  # values before which nothing counts as risen
MIN_DEVIATION: Final = 0.005  # of the logarithm, so that the rounding of a constant is not a rise
NEAR_LAMBDA_MAX: Final = 0.8  # λ_max over the limit above which a run is near it
NEAR_LAMBDA_GRAD: Final = 0.5  # λ_grad over the limit, the same
DECOUPLED: Final = 0.3  # Σg²/Σv̂ below which a growing gradient meets a stale v
ALTERNATING: Final = 0.04  # growth per step of the period-two component that counts
MIN_SHARE: Final = 0.5  # share of the gradient that must be period-two for its growth to count
GROWTH: Final = 1.5  # growth of ‖g‖ over its least recent value that counts while decoupled
MAX_NAMES_READ: Final = 32  # records whose names are searched for a loss
GRADIENT_NORMS: Final = ("grad_norm", "grad_norm_before_clip", "grad_norm_after_clip")


class _Series:
    """The recent level and spread of one value."""

    def __init__(self) -> None:
        self._count = 0
        self._slow = self._fast = 0.0
        self._deviation = 0.0
        self._is_linear = False

    def rose(self, value: float) -> bool:
        """Take in a value and return whether it, or the latest few together, rose above the usual."""
        if not math.isfinite(value):
            return True
        if value <= 0 and not self._is_linear:
            self.__init__()  # type: ignore[misc]  # a value that can be negative has no logarithm; it begins anew
            self._is_linear = True
        level = value if self._is_linear else math.log(value)
        if self._count == 0:
            self._slow = self._fast = level
        self._count += 1
        excess = level - self._slow
        floor = MIN_DEVIATION * (abs(self._slow) if self._is_linear else 1.0)
        usual = max(self._deviation, floor)
        self._fast += FAST * (level - self._fast)
        sustained = self._fast - self._slow
        has_risen = self._count > MIN_COUNT and (
            excess > SINGLE * usual or sustained > SUSTAINED * usual * math.sqrt(FAST / (2.0 - FAST))
        )
        weight = max(SLOW, 1.0 / self._count)
        self._slow += weight * excess
        self._deviation += weight * (
            min(abs(excess), CAPPED * usual if self._count > MIN_COUNT else math.inf) * 1.25 - self._deviation
        )
        return has_risen


class Trigger:
    """Decision whether a record asks for the dense rhythm. Called from any thread, by one at a time."""

    def __init__(self, loss_name: str | None = None) -> None:
        """Follow the loss of that name; None finds it by its usual names."""
        self._loss_name = loss_name
        self._names_read = 0
        self._series: dict[str, _Series] = {}
        self._least_gradient: float | None = None

    def observe(self, scalars: Mapping[str, float]) -> bool:
        """Take in the scalars of a record and return whether one of them stirs."""
        stirs = False
        loss = self._loss(scalars)
        if loss is not None:
            stirs = self._rose(LOSS, loss)
        for name in GRADIENT_NORMS:
            value = scalars.get(name)
            if value is not None:
                stirs = self._rose(name, value) or stirs
        if scalars.get("period_two", 0.0) > MIN_SHARE and scalars.get("period_two_growth", 0.0) > ALTERNATING:
            stirs = True
        limit = scalars.get("stability_limit")
        if limit is not None:
            stirs = (
                stirs
                or scalars.get("lambda_max", 0.0) > NEAR_LAMBDA_MAX * limit
                or scalars.get("lambda_grad", 0.0) > NEAR_LAMBDA_GRAD * limit
            )
        return stirs

    def observe_statistics(self, totals: Mapping[str, float]) -> bool:
        """Take in the totals of a measured step and return whether the gradient outgrows a stale second moment."""
        norm, decoupling = totals["grad_norm"], totals["decoupling"]
        if not math.isfinite(norm):
            return True
        least = self._least_gradient
        self._least_gradient = norm if least is None else min(norm, least * 1.02)  # forgets the least value slowly
        return least is not None and decoupling < DECOUPLED and norm > GROWTH * least

    def _loss(self, scalars: Mapping[str, float]) -> float | None:
        if self._loss_name is None:
            if LOSS in scalars:
                return scalars[LOSS]
            if self._names_read >= MAX_NAMES_READ:
                return None
            self._names_read += 1
            self._loss_name = loss_among(scalars)
            if self._loss_name is None:
                return None
        return scalars.get(self._loss_name)

    def _rose(self, name: str, value: float) -> bool:
        series = self._series.get(name)
        if series is None:
            series = self._series[name] = _Series()
        return series.rose(value)
