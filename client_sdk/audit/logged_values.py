"""Checks of what a training logs against what is measured: learning rate, gradient norms, loss, loss scale.

`RateOfLog` is called on the training thread, `LoggedValues` from any thread by one at a time, in the order of the
records.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from client_sdk.audit.fault import Fault
from client_sdk.vocabulary import loss_among

RATES: Final = ("lr", "learning_rate")
"""Names under which trainings log the learning rate."""
SAME: Final = 1e-5  # relative difference of equal numbers
CLIPPED: Final = 1.01  # times the largest norm, above which gradients were not clipped to it
UNLOGGED: Final = 1.5  # the same where the norm before clipping is not known
SCALE: Final = 64.0  # a loss scale is at least this
CONFIRMED: Final = 3  # records with the same factor, after the first one
CONSTANT: Final = 50  # records with the same loss
CONSTANT_CLIPPING: Final = 1000  # records
START: Final = 50  # steps in which the loss of a run that starts above the limit rises
ROSE: Final = 3.0  # times the first loss
NAMES_READ: Final = 32  # records whose names are searched for a loss


class RateOfLog:
    """The learning rate that a training logs, against those of the groups."""

    def __init__(self) -> None:
        self._initial: tuple[float, ...] | None = None
        self._is_constant = True
        self._before: float | None = None  # logged with the record before, if it was none of the groups' rates
        self._stepped: tuple[float, ...] = ()

    def note_step(self, rates: tuple[float, ...]) -> None:
        """Take in the learning rates of the groups at a step."""
        self._stepped = rates
        if self._initial is None:
            self._initial = rates
        self._is_constant = self._is_constant and rates == self._initial

    def note_log(self, metrics: Mapping[str, Any], rates: tuple[float, ...]) -> Fault | None:
        """Compare what a record says with the ``rates`` of the groups now; every logged number counts once."""
        logged = next((metrics[name] for name in RATES if name in metrics), None)
        if not isinstance(logged, int | float) or isinstance(logged, bool) or not math.isfinite(logged):
            return None
        value = float(logged)
        before, self._before = self._before, value
        if not self._is_constant or self._initial is None or rates != self._initial:
            return None
        if any(math.isclose(value, rate, rel_tol=SAME, abs_tol=1e-12) for rate in rates):
            return None
        if before is None or math.isclose(before, value, rel_tol=SAME):
            return None
        own = ", ".join(f"{rate:g}" for rate in dict.fromkeys(rates))
        return Fault(
            "learning-rate-unused",
            f"the training logs a learning rate of {value:g} after {before:g}, but that of the optimizer is {own} and "
            "has not changed",
            evidence={"logged": value, "used": rates[0]},
        )


class LoggedValues:
    """The scalars of the records, in their order."""

    def __init__(self, *, max_norm: float | None, micro_batches: float | None, ranks: int, loss: str | None) -> None:
        """``max_norm`` and ``micro_batches`` are from the configuration of the run, ``loss`` is the chosen name."""
        self._max_norm = max_norm
        self._factors = _factors(ranks, micro_batches)
        self._loss_name, self._names_read = loss, 0
        self._compared = 0
        self._spell: list[tuple[float, float]] = []  # norms before and after with one known factor between them
        self._clipped = 0
        self._constant: tuple[float, int] | None = None
        self._first_loss: float | None = None
        self._records = 0
        self._is_above_limit: bool | None = None
        self._ratio = math.nan

    @property
    def knows_loss(self) -> bool:
        """Whether the name of the loss is known."""
        return self._loss_name is not None

    def observe(
        self,
        scalars: Mapping[str, float],
        *,
        step: int,
        logs_norm: bool,
        loss_scale: float | None,
        is_moving: bool,
        is_whole: bool,
    ) -> Iterator[Fault]:
        """Take in a record. ``logs_norm`` is whether the training logs a gradient norm itself.

        ``loss_scale`` is that of the GradScaler, if there is one, ``is_moving`` whether weights move and gradients are
        not zero, and ``is_whole`` whether the measured gradients are all that a clipping function sees.
        """
        self._records += 1
        before = scalars.get("grad_norm") if logs_norm else None
        after = scalars.get("grad_norm_after_clip" if logs_norm else "grad_norm")
        if is_whole and after is not None and math.isfinite(after) and after > 0:
            yield from self._norms(before, after, step, loss_scale)
        loss = self._loss(scalars)
        if loss is not None:
            yield from self._losses(loss, step, is_moving=is_moving)
            yield from self._start(scalars, loss, step)
        differing = scalars.get("replicas_differ", 0.0)
        if differing > 0:
            message = f"the copies of {differing:.0f} layers differ between the ranks at step {step:,}"
            yield Fault("ranks-differ", message, evidence={"layers": int(differing), "step": step})

    def _norms(self, before: float | None, after: float, step: int, loss_scale: float | None) -> Iterator[Fault]:
        known = before is not None and math.isfinite(before) and before > 0
        most = self._max_norm
        if most is not None and after > CLIPPED * most:
            is_untouched = known and before is not None and math.isclose(before, after, rel_tol=1e-3)
            if is_untouched or (not known and after > UNLOGGED * most):
                yield Fault(
                    "clipping-without-effect",
                    f"the configuration clips gradients to a norm of {most:g}, but at step {step:,} the optimizer was "
                    f"given gradients of norm {after:.4g}",
                    evidence={"max_norm": most, "grad_norm": after, "step": step},
                )
        if not known or before is None:
            return
        ratio = before / after
        if loss_scale is not None and loss_scale >= SCALE and math.isclose(ratio, loss_scale, rel_tol=1e-3):
            yield Fault(
                "clipping-without-effect",
                f"the logged gradient norm {before:.4g} is that of gradients that are still multiplied by the loss "
                f"scale of {loss_scale:g}: they were clipped, if at all, before scaler.unscale_()",
                evidence={"grad_norm": after, "logged": before, "loss_scale": loss_scale, "step": step},
            )
            return
        yield from self._factor(before, after, step)
        self._clipped = self._clipped + 1 if after < (1 - 1e-4) * before else 0
        if self._clipped == CONSTANT_CLIPPING:
            yield Fault(
                "clipping-constant",
                f"clipping acted on {CONSTANT_CLIPPING:,} measured steps in a row; at step {step:,} it took the norm "
                f"from {before:.4g} to {after:.4g}",
                evidence={"before": before, "after": after, "steps": CONSTANT_CLIPPING},
            )

    def _factor(self, before: float, after: float, step: int) -> Iterator[Fault]:
        self._compared += 1
        ratio = before / after
        found = next((name for name, factor in self._factors if math.isclose(ratio, factor, rel_tol=SAME)), None)
        if found is None:
            self._spell = []
            return
        if self._spell and abs(before / self._spell[-1][0] - 1) < 0.01:
            return  # the same norm again confirms nothing
        self._spell.append((before, after))
        if self._compared > 1 and len(self._spell) < CONFIRMED:
            return
        yield Fault(
            "gradient-norm-off",
            f"the logged gradient norm {before:.6g} is {found} times the measured one, {after:.6g}, at step {step:,}",
            evidence={"logged": before, "measured": after, "factor": round(ratio, 6), "step": step},
        )

    def _loss(self, scalars: Mapping[str, float]) -> float | None:
        if self._loss_name is None:
            if self._names_read >= NAMES_READ:
                return None
            self._names_read += 1
            self._loss_name = loss_among(scalars)
            if self._loss_name is None:
                return None
        return scalars.get(self._loss_name)

    def _losses(self, loss: float, step: int, *, is_moving: bool) -> Iterator[Fault]:
        value, count = self._constant or (math.nan, 0)
        if loss != value or not is_moving:
            self._constant = (loss, int(is_moving))
            return
        self._constant = (loss, count + 1)
        if count + 1 == CONSTANT and not _is_rounded(loss):
            yield Fault(
                "loss-constant",
                f"the loss is exactly {loss!r} at {CONSTANT} records in a row, up to step {step:,}, although weights "
                "move and gradients are not zero",
                evidence={"loss": loss, "records": CONSTANT, "step": step},
            )

    def _start(self, scalars: Mapping[str, float], loss: float, step: int) -> Iterator[Fault]:
        if self._first_loss is None:
            self._first_loss = loss
        ratio = scalars.get("stability_ratio")
        if self._is_above_limit is None and ratio is not None and "lambda_max" in scalars:
            self._is_above_limit, self._ratio = ratio > 1 and self._records <= START, ratio
        if self._is_above_limit and self._records <= START and self._first_loss > 0 and loss > ROSE * self._first_loss:
            self._is_above_limit = False
            yield Fault(
                "learning-rate-above-limit",
                f"the first λ_max is {self._ratio:.3g} times the limit, and the loss rose from {self._first_loss:.4g} "
                f"to {loss:.4g} by step {step:,}",
                evidence={"stability_ratio": self._ratio, "loss": loss, "first_loss": self._first_loss},
            )


def _factors(ranks: int, micro_batches: float | None) -> Sequence[tuple[str, float]]:
    """Return the factors between a wrong and the right norm, each with its name."""
    found: list[tuple[str, float]] = []
    if ranks > 1:
        found += [
            (f"√{ranks}", math.sqrt(ranks)), (f"1/√{ranks}", 1 / math.sqrt(ranks)),
            (f"{ranks}", float(ranks)), (f"1/{ranks}", 1.0 / ranks),
        ]  # fmt: skip
    if micro_batches is not None and micro_batches > 1:
        found += [(f"{micro_batches:g}", micro_batches), (f"1/{micro_batches:g}", 1 / micro_batches)]
    return found


def _is_rounded(value: float) -> bool:
    """Return whether a number may repeat because it is rounded: to bfloat16 or to four decimals.

    >>> _is_rounded(0.5), _is_rounded(1.2345), _is_rounded(0.123456789)
    (True, True, False)
    """
    if not math.isfinite(value):
        return True
    bits = int(np.float32(value).view(np.uint32))
    return bits & 0xFFFF == 0 or abs(value * 1e4 - round(value * 1e4)) < 1e-4
