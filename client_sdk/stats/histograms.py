"""Histograms of the update u and of r = m̂/√v̂ in each layer: is r bell-shaped, two-peaked, or u stuck at zero?

Owns range, binning and sampling. Layers of up to 65,536 numbers are counted in full, larger ones by every k-th number,
so that the cost of a histogram is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from client_sdk.host import HostCopy
from client_sdk.optimizers import ELEMENTWISE_TERMS
from client_sdk.protocol import HISTOGRAM_BINS, Histograms
from client_sdk.stats.plan import Entry, compute_dtype
from client_sdk.stats.sums import Coordinates, Terms, effective_gradient, unfolded, unscaled_update, update_denominator

MAX_HISTOGRAM_LAYERS: Final = 12_000  # two histograms of this many layers fit one frame of the wire
SAMPLES_PER_LAYER: Final = 65_536
MEANS_PER_RANGE: Final = 4.0  # range = ±4·mean|x|: 3.2 σ of a Gaussian; a few outliers do not stretch it


class HistogramCopy:
    """Histograms of one step on their way to the host."""

    def __init__(self, which: str, rows: Sequence[int], counts: Sequence[Tensor], layer_count: int) -> None:
        """``counts``: for each of ``rows`` its half range followed by its bins, [1 + 64]."""
        self._which = which
        self._layer_count = layer_count
        by_device: dict[torch.device, list[int]] = {}
        for position, count in enumerate(counts):
            by_device.setdefault(count.device, []).append(position)
        self._parts = [
            (
                np.array([rows[position] for position in positions]),
                HostCopy(torch.stack([counts[p] for p in positions])),
            )
            for positions in by_device.values()
        ]

    def ready(self) -> bool:
        """True when `result` will not wait."""
        return all(copy.ready() for _, copy in self._parts)

    def result(self) -> Histograms:
        """In the form of the wire. Layers without values have no counts and the range NaN."""
        half = np.full(self._layer_count, np.nan, "<f4")
        counts = np.zeros((self._layer_count, HISTOGRAM_BINS), "<u4")
        for rows, copy in self._parts:
            values = copy.array()
            half[rows] = values[:, 0]
            counts[rows] = values[:, 1:]
        return Histograms(which=self._which, low=(-half).tobytes(), high=half.tobytes(), counts=counts.tobytes())


def layer_histograms(
    entries: Sequence[Entry], terms: Mapping[torch.device, Tensor], layer_sizes: Sequence[int]
) -> list[HistogramCopy]:
    """Histograms of "update" where u is known and of "ratio" where there is a second moment. No synchronisation."""
    by_layer: dict[int, list[int]] = {}
    for position, entry in enumerate(entries):
        if entry.flags.updates:
            by_layer.setdefault(entry.row, []).append(position)
    rows: dict[str, list[int]] = {"update": [], "ratio": []}
    counts: dict[str, list[Tensor]] = {"update": [], "ratio": []}
    for row, positions in by_layer.items():
        stride = max(1, -(-layer_sizes[row] // SAMPLES_PER_LAYER))
        values: dict[str, list[Tensor]] = {"update": [], "ratio": []}
        for position in positions:
            entry = entries[position]
            update, ratio = _sample(entry, terms[entry.parameter.device][position], stride)
            values["update"].append(update)
            if ratio is not None:
                values["ratio"].append(ratio)
        for which, pieces in values.items():
            if pieces:
                rows[which].append(row)
                counts[which].append(count_bins(pieces[0] if len(pieces) == 1 else torch.cat(pieces)))
    return [HistogramCopy(which, rows[which], counts[which], len(layer_sizes)) for which in rows if rows[which]]


def count_bins(values: Tensor) -> Tensor:
    """[n] → [1 + 64] float64: half of the symmetric range, then the counts. NaN is not counted, infinities are."""
    finite = torch.where(torch.isfinite(values), values.abs(), 0.0)
    half = torch.minimum(MEANS_PER_RANGE * finite.mean(), finite.max())
    half = torch.where(half > 0, half, 1.0)
    position = (values / half + 1.0) * (HISTOGRAM_BINS / 2)
    is_number = ~torch.isnan(values)
    position = torch.where(is_number, position, 0.0).floor().clamp(0, HISTOGRAM_BINS - 1)
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    result = torch.zeros(1 + HISTOGRAM_BINS, device=values.device, dtype=wide)
    result.scatter_add_(0, position.to(torch.int64) + 1, is_number.to(wide))
    result[0] = half
    return result


def _sample(entry: Entry, row: Tensor, stride: int) -> tuple[Tensor, Tensor | None]:
    dtype = compute_dtype(entry.parameter)
    row = row.to(dtype)
    terms = Terms(**{name: row[at] for at, name in enumerate(ELEMENTWISE_TERMS)})
    whole = entry.coordinates()
    x = Coordinates(
        g=whole.g[::stride].to(dtype),
        w=whole.w[::stride].to(dtype),
        m=None if whole.m is None else whole.m[::stride].to(dtype),
        v=None if whole.v is None else whole.v[::stride].to(dtype),
    )
    x = unfolded(entry.flags, x)
    root_v = None if x.v is None else x.v.sqrt() if entry.flags.squared else x.v
    denominator = update_denominator(terms, root_v)
    e = effective_gradient(entry.flags, terms, x, denominator)
    scale = terms.direct if x.m is None else terms.momentum
    update = scale * unscaled_update(entry.flags, terms, e, x.m, denominator)
    if root_v is None or denominator is None or not entry.flags.squared or entry.flags.divided:
        return update, None
    return update, update * denominator / (terms.root * root_v)
