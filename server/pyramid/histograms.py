"""Histograms of update and ratio: their bytes in the database, and Hartigan's dip. Pure.

Payload of the histograms of one quantity at one step: a msgpack array

    [layers, low, high, counts, dips]

* ``layers``: number of layers.
* ``low``, ``high``: float32, bounds of each layer's histogram; not finite where the training process had none.
* ``counts``: uint32, layers × 64, row-major.
* ``dips``: float32, one per layer, or null where none were computed.

Each array is packed by `columns.pack_array`.
"""

from __future__ import annotations

from dataclasses import dataclass

import diptest
import msgspec
import numpy as np
from numpy.typing import NDArray

from client_sdk.protocol import HISTOGRAM_BINS, Histograms
from server.pyramid.columns import pack_array, unpack_array

DIP_POINTS = 512
"""Maximum number of points that a histogram is expanded to. The dip of n points is at least 1/(2n): 0.001 here."""


@dataclass(frozen=True, kw_only=True)
class LayerHistograms:
    """Histograms of one quantity of every layer at one step."""

    low: NDArray[np.float32]
    """Lower bounds, shape (layers,); not finite where the training process had no histogram."""
    high: NDArray[np.float32]
    """Upper bounds, shape (layers,); not finite where the training process had no histogram."""
    counts: NDArray[np.uint32]
    """Counts of the bins, shape (layers, 64)."""
    dips: NDArray[np.float32]
    """Hartigan's dips, shape (layers,); NaN where none were computed."""

    @property
    def measured(self) -> NDArray[np.bool_]:
        """Whether each layer has a histogram, shape (layers,)."""
        return np.isfinite(self.low) & np.isfinite(self.high)


def encode(histogram: Histograms, layers: int, dips: NDArray[np.float32] | None) -> bytes:
    """Encode histograms as they came over the wire, together with their dips where those were computed."""
    return msgspec.msgpack.encode(
        [
            layers,
            pack_array(np.frombuffer(histogram.low, "<f4"), "<f4"),
            pack_array(np.frombuffer(histogram.high, "<f4"), "<f4"),
            pack_array(np.frombuffer(histogram.counts, "<u4"), "<u4"),
            None if dips is None else pack_array(dips, "<f4"),
        ]
    )


def decode(payload: bytes) -> LayerHistograms:
    """Decode the output of `encode`. Raises `ValueError` if the bytes are damaged."""
    try:
        layers, low, high, counts, dips = msgspec.msgpack.decode(
            payload, type=tuple[int, bytes, bytes, bytes, bytes | None]
        )
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
    return LayerHistograms(
        low=unpack_array(low, "<f4", layers),
        high=unpack_array(high, "<f4", layers),
        counts=unpack_array(counts, "<u4", layers * HISTOGRAM_BINS).reshape(layers, HISTOGRAM_BINS),
        dips=np.full(layers, np.nan, np.float32) if dips is None else unpack_array(dips, "<f4", layers),
    )


def dips_of(counts: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Return Hartigan's dip of each row of ``counts``, shape (layers, bins): 0.001 … 0.25.

    Two clear modes have a dip above about 0.03. The counts are expanded to the quantiles of the distribution that is
    uniform within each bin, so that neither the number of parameters nor the ties within a bin matter. A row without
    counts has the dip NaN.

    Hartigan & Hartigan, "The Dip Test of Unimodality", Annals of Statistics 13 (1985).

    >>> one_mode, two_modes = dips_of(np.array([[0, 10, 80, 10, 0], [50, 0, 0, 0, 50]], np.uint32))
    >>> bool(one_mode < 0.03 < two_modes)
    True
    """
    dips = np.full(len(counts), np.nan, dtype=np.float32)
    edges = np.arange(counts.shape[1] + 1, dtype=np.float64)
    for row, bins in enumerate(counts):
        total = int(bins.sum())
        if total == 0:
            continue
        points = min(total, DIP_POINTS)
        cumulated = np.concatenate(([0.0], np.cumsum(bins, dtype=np.float64)))
        quantiles = (np.arange(points) + 0.5) * (total / points)
        dips[row] = diptest.dipstat(np.interp(quantiles, cumulated, edges))
    return dips
