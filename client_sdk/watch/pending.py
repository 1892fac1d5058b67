"""Measurements of one `log` that may still be on their way to the host."""

from __future__ import annotations

from torch import Tensor

from client_sdk.curvature import CurvatureCopy, ModeCopy
from client_sdk.host import ScalarCopy
from client_sdk.measurement import Measurement
from client_sdk.optimizers import stability_limit
from client_sdk.precision import compact_block
from client_sdk.stats import SharedCopy, StepCopy


class PendingMeasurement:
    """Measurements of one `log`, which may still be on their way to the host; implements `measurement.Pending`."""

    def __init__(
        self,
        statistics: StepCopy | SharedCopy | None,
        curvature: CurvatureCopy | None,
        mode: ModeCopy | None,
        lr: float | Tensor | None,
        compact_columns: tuple[str, ...] | None,
    ) -> None:
        """Combine the measurements; ``compact_columns`` names the block's columns if the block is to be compact."""
        self._statistics = statistics
        self._compact_columns = compact_columns
        self._curvature = curvature
        self._mode = mode
        self._lr: float | None = lr if isinstance(lr, float) else None
        self._lr_copy = ScalarCopy([lr]) if isinstance(lr, Tensor) else None

    def ready(self) -> bool:
        """Return whether all parts have reached the host."""
        parts = (self._statistics, self._curvature, self._mode, self._lr_copy)
        return all(part is None or part.ready() for part in parts)

    def result(self) -> Measurement:
        """Return the measurement, after waiting for its parts if necessary."""
        measured = Measurement() if self._statistics is None else self._statistics.measurement()
        scalars = dict(measured.scalars)
        lr = self._lr if self._lr_copy is None else float(self._lr_copy.array()[0])
        if lr is not None:
            scalars["lr"] = lr
            if lr > 0:
                scalars["stability_limit"] = stability_limit(lr)
        if self._curvature is not None:
            scalars |= self._curvature.scalars()
        if self._mode is not None:
            scalars |= self._mode.scalars()
        block = measured.block
        if block is not None and self._compact_columns is not None:
            block = compact_block(block, self._compact_columns)
        return Measurement(scalars=scalars, block=block, histograms=measured.histograms)
