"""Instruments without torch, for tests of everything except measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from client_sdk.measurement import Instrument, Measurement
from client_sdk.protocol import Histograms, Layout


class Landed:
    """A pending measurement whose copy is still under way while `landed` is False."""

    def __init__(self, measurement: Measurement, *, landed: bool = True) -> None:
        self.measurement = measurement
        self.landed = landed

    def ready(self) -> bool:
        return self.landed

    def result(self) -> Measurement:
        return self.measurement


class StepInstrument(Instrument):
    """An instrument whose every statistic of every layer is the step, with fixed scalars and histograms."""

    has_stepped = True

    def __init__(
        self,
        layers: tuple[str, ...],
        statistics: tuple[str, ...],
        *,
        scalars: Mapping[str, float] | None = None,
        histograms: tuple[Histograms, ...] = (),
        landed: bool = True,
    ) -> None:
        self.layout = Layout(id=0, layers=layers, statistics=statistics, sizes=tuple(1 for _ in layers))
        self.scalars = scalars or {}
        self.histograms = histograms
        self.landed = landed
        self.pending: list[Landed] = []

    def measure(self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None) -> Landed:
        if closure is not None:
            closure()
        block = np.full((len(self.layout.layers), len(self.layout.statistics)), step, np.float32)
        pending = Landed(Measurement(scalars=self.scalars, block=block, histograms=self.histograms), landed=self.landed)
        self.pending.append(pending)
        return pending


class BrokenInstrument(Instrument):
    """An instrument whose every measurement raises an error."""

    layout = Layout(id=0, layers=("a",), statistics=("grad_norm",))
    has_stepped = True

    def measure(self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None) -> Landed:
        raise RuntimeError("measuring failed")
