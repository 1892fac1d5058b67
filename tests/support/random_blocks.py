"""Random blocks that are determined by a key and a step, so that a test can reproduce the logged values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_sdk.measurement import Instrument, Measurement
from client_sdk.protocol import HISTOGRAM_BINS, Histograms, Layout
from tests.support.instruments import Landed


def generator(key: int, step: int) -> np.random.Generator:
    """Return a random generator that is independent of that of any other key or step."""
    return np.random.Generator(np.random.Philox(key=(key << 64) | step))


class RandomInstrument(Instrument):
    """An instrument with random blocks and histograms, which keeps none of its measurements."""

    def __init__(
        self, layers: tuple[str, ...], statistics: tuple[str, ...], *, key: int = 0, histogram_every: int = 0
    ) -> None:
        """Use ``histogram_every`` steps between histograms, or 0 for none."""
        self.layout = Layout(id=0, layers=layers, statistics=statistics, sizes=tuple(100 for _ in layers))
        self._key = key
        self._histogram_every = histogram_every

    def block(self, step: int) -> NDArray[np.float32]:
        """Return the block of ``step``, [layers, statistics].

        The values are positive and of many magnitudes; one in 50 is infinite and one in 50 is NaN (not measured).
        """
        random = generator(self._key, step)
        shape = (len(self.layout.layers), len(self.layout.statistics))
        values = np.exp(random.normal(0.0, 4.0, shape)).astype(np.float32)
        odd = random.random(shape)
        values[odd < 0.02] = np.nan
        values[odd > 0.98] = np.inf
        return values

    @property
    def has_stepped(self) -> bool:
        return True

    def measure(self, step: int, metrics: Mapping[str, Any], closure: Callable[[], Any] | None) -> Landed:
        histograms: tuple[Histograms, ...] = ()
        if self._histogram_every and step % self._histogram_every == 0:
            histograms = (self._histograms("update", step), self._histograms("ratio", step))
        return Landed(Measurement(block=self.block(step), histograms=histograms))

    def _histograms(self, which: str, step: int) -> Histograms:
        layers = len(self.layout.layers)
        counts = generator(self._key + 1, step).integers(0, 1_000, (layers, HISTOGRAM_BINS), dtype=np.uint32)
        return Histograms(
            which=which,
            low=np.full(layers, -2.0, "<f4").tobytes(),
            high=np.full(layers, 2.0, "<f4").tobytes(),
            counts=counts.astype("<u4").tobytes(),
        )
