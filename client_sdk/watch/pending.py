"""Measurements of one `log` that may still be on their way to the host, or wait for the optimizer's step."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client_sdk.curvature import CurvatureCopy, ModeCopy, SharedModeCopy
from client_sdk.host import ScalarCopy
from client_sdk.measurement import Measurement
from client_sdk.optimizers import stability_limit
from client_sdk.precision import compact_block
from client_sdk.protocol import Histograms
from client_sdk.stats import SOURCE_CURVATURE, PeriodTwoCopy, SharedCopy, StepCopy, UnitedCopy
from client_sdk.warner import Warner

CURRENT: Final = 32  # steps since λ_max was read, within which no other estimate of the stability ratio is recorded


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class TakenStep:
    """One step of the optimizer as its hooks saw it."""

    lr: float | Tensor | None
    """Largest learning rate of the step, perhaps on a device."""
    statistics: StepCopy | UnitedCopy | SharedCopy | None
    """Layer statistics; None if the step was not measured."""
    mode: ModeCopy | SharedModeCopy | None
    """Amplitudes of the unstable directions up to the step; None if none are known."""
    period_two: PeriodTwoCopy | None
    """Period-two component of the gradients up to the step; None if the step was not followed."""
    scalars: Mapping[str, float]
    """Scalars about the measuring."""
    number: int = 0
    """Number of the step, counted from the call of `watch`."""


class Sink:
    """The functions that learn what a measurement contained and cost."""

    def __init__(
        self,
        observe: Callable[[Mapping[str, float]], None],
        spent: Callable[[float], None],
        warner: Warner,
        audit: Callable[[TakenStep, NDArray[np.float32], float | None], None] | None = None,
    ) -> None:
        """``observe`` receives the totals of a step's statistics, ``spent`` the seconds that their block took.

        Only seconds of the thread of this call count, because those of the others delay nobody. ``audit`` receives each
        measured step with its block and its learning rate.
        """
        self._observe = observe
        self._spent = spent
        self._audit = audit
        self.warner = warner
        """Warner of the run."""
        self._thread = threading.get_ident()

    def audit(self, step: TakenStep, block: NDArray[np.float32], lr: float | None) -> None:
        """Show a measured step to the audit."""
        if self._audit is not None:
            self._audit(step, block, lr)

    def measurement(self, statistics: StepCopy | UnitedCopy | SharedCopy) -> Measurement:
        """Return the measurement of a step whose copies have arrived."""
        began = time.perf_counter()
        measured = statistics.measurement()
        if measured.block is not None:
            self._observe(statistics.totals)
        if threading.get_ident() == self._thread:
            self._spent(time.perf_counter() - began)
        return measured


class PendingMeasurement:
    """Measurements of one `log`; implements `measurement.Pending`.

    `give` must be called once, with the step that the record belongs to. Until then the measurement is not ready.
    """

    def __init__(self, step: int, *, sink: Sink, compact_columns: tuple[str, ...] | None) -> None:
        """Begin without any measurement for the record of ``step``.

        ``compact_columns`` names the block's columns if it is to be compact.
        """
        self._run_step = step
        self._sink = sink
        self._compact_columns = compact_columns
        self._curvature: CurvatureCopy | None = None
        self._curvature_scalars: Mapping[str, float] = {}
        self._step: TakenStep | None = None
        self._lr_copy: ScalarCopy | None = None
        self._is_given = False
        self.fallback: TakenStep | None = None
        """The step before the record, which is given if the next one turns out to belong to a later record."""
        self.candidate: TakenStep | None = None
        """The step after the record, whose part in it is not certain yet."""

    def add_curvature(self, curvature: CurvatureCopy | None, scalars: Mapping[str, float]) -> None:
        """Add the values of a curvature measurement and ``scalars`` about the measuring. Called before `give`."""
        self._curvature, self._curvature_scalars = curvature, scalars

    def give(self, step: TakenStep | None) -> None:
        """Complete the measurement with its step; None if it has none."""
        if step is not None and isinstance(step.lr, Tensor):
            self._lr_copy = ScalarCopy([step.lr])
        if step is not None and isinstance(step.statistics, SharedCopy):
            step.statistics.note_record(self._run_step, self._sink.warner)
        self._step = step
        self._is_given = True

    def ready(self) -> bool:
        """Return whether the step is known and all parts have reached the host."""
        if not self._is_given:
            return False
        of_step = () if self._step is None else (self._step.statistics, self._step.mode, self._step.period_two)
        parts = (*of_step, self._curvature, self._lr_copy)
        return all(part is None or part.ready() for part in parts)

    def result(self) -> Measurement:
        """Return the measurement, after waiting for its copies if necessary."""
        scalars: dict[str, float] = {}
        block: NDArray[np.float32] | None = None
        histograms: tuple[Histograms, ...] = ()
        if self._step is not None:
            if self._step.statistics is not None:
                measured = self._sink.measurement(self._step.statistics)
                scalars |= measured.scalars
                block, histograms = measured.block, measured.histograms
            if self._step.mode is not None:
                scalars |= self._step.mode.scalars()
            if self._step.period_two is not None:
                scalars |= self._step.period_two.scalars()
            scalars |= self._step.scalars
            lr = self._step.lr if self._lr_copy is None else float(self._lr_copy.array()[0])
            if lr is not None:
                rate = float(lr)
                scalars["lr"] = rate
                if rate > 0:
                    scalars["stability_limit"] = stability_limit(rate)
            if block is not None:
                self._sink.audit(self._step, block, None if lr is None else float(lr))
        scalars |= self._curvature_scalars
        if scalars.get("lambda_max_age", math.inf) <= CURRENT:
            for name in ("stability_ratio", "stability_ratio_source"):  # λ_max itself says it better
                scalars.pop(name, None)
        if self._curvature is not None:
            probed = self._curvature.scalars()
            if "stability_ratio" in probed:
                scalars["stability_ratio_source"] = SOURCE_CURVATURE
            scalars |= probed
            if "lambda_max" in scalars:
                scalars["lambda_max_age"] = 0.0
        if block is not None and self._compact_columns is not None:
            block = compact_block(block, self._compact_columns)
        return Measurement(scalars=scalars, block=block, histograms=histograms)
