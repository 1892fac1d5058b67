"""Histograms of the update u and of the ratio r = m̂/√v̂ in each layer.

They show whether r is bell-shaped or has two peaks, and whether u is concentrated at zero (Molybog et al. 2023).
Owns range, binning and sampling. Layers of up to 65,536 numbers are counted in full, larger ones by every k-th number,
so that the cost of a histogram is bounded. Several layers at a time are packed in rows, as in `measurement_plan`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from client_sdk.host import TensorCopy
from client_sdk.optimizers import ELEMENTWISE_TERMS
from client_sdk.protocol import HISTOGRAM_BINS, Histograms
from client_sdk.stats.entry import Entry, compute_dtype, flat
from client_sdk.stats.measurement_plan import ROW_WIDTH
from client_sdk.stats.sums import Coordinates, Flags, Terms, scaled_update, update_denominator

MAX_HISTOGRAM_LAYERS: Final = 12_000  # two histograms of this many layers fit one frame of the wire
SAMPLES_PER_LAYER: Final = 65_536  # numbers counted at most in a layer
SAMPLES_AT_ONCE_CPU: Final = 2**17  # about ten temporaries of at most 1 MiB at a time
SAMPLES_AT_ONCE_DEVICE: Final = 2**20  # about ten temporaries of at most 8 MiB at a time
MEANS_PER_RANGE: Final = 4.0  # the range ±4·mean|x| is 3.2 σ of a Gaussian, and a few outliers do not stretch it


class HistogramCopy:
    """Histograms of one quantity at one step, on their way to the host."""

    def __init__(self, which: str, batches: Sequence[tuple[Sequence[int], Tensor]], layer_count: int) -> None:
        """Start copying ``batches``: layer numbers with their half range followed by their bins, [layers, 1 + 64]."""
        self._which = which
        self._layer_count = layer_count
        self._batches = [(list(rows), TensorCopy(bins)) for rows, bins in batches]

    def ready(self) -> bool:
        """Return whether `result` returns without waiting."""
        return all(copy.ready() for _, copy in self._batches)

    def result(self) -> Histograms:
        """Return the histograms in the format of the wire; layers without values have the range NaN and no counts."""
        half = np.full(self._layer_count, np.nan, "<f4")
        counts = np.zeros((self._layer_count, HISTOGRAM_BINS), "<u4")
        for rows, copy in self._batches:
            values = copy.array()
            half[rows] = values[:, 0]
            counts[rows] = values[:, 1:]
        return Histograms(which=self._which, low=(-half).tobytes(), high=half.tobytes(), counts=counts.tobytes())


def layer_histograms(
    entries: Sequence[Entry],
    terms: Mapping[torch.device, Tensor],
    layer_sizes: Sequence[int],
    only: Container[int] | None = None,
) -> list[HistogramCopy]:
    """Return histograms of "update" for layers whose u is known, and of "ratio" for those with a second moment.

    ``only`` are the layers that have histograms, by default all. ``terms`` holds the `ELEMENTWISE_TERMS` of all P
    entries, [P, 7], on each device. A layer that is spread over several devices is left out. Never synchronises a
    device.
    """
    by_layer: dict[int, list[int]] = {}
    for position, entry in enumerate(entries):
        if entry.flags.updates and entry.parameter.numel() and (only is None or entry.row in only):
            by_layer.setdefault(entry.row, []).append(position)
    updates: list[tuple[Sequence[int], Tensor]] = []
    ratios: list[tuple[Sequence[int], Tensor]] = []
    for layers in _batches(by_layer, entries, layer_sizes):
        device = entries[by_layer[layers[0]][0]].parameter.device
        bins = _measure(layers, by_layer, entries, terms[device], layer_sizes)
        updates.append((layers, bins[0]))
        if bins[1] is not None:
            ratios.append((layers, bins[1]))
    found = (("update", updates), ("ratio", ratios))
    return [HistogramCopy(which, batches, len(layer_sizes)) for which, batches in found if batches]


def count_bins(values: Tensor, owner: Tensor, layer_count: int) -> Tensor:
    """Return half of the symmetric range and the 64 counts of each layer, [layers, 1 + 64] float64 (float32 on MPS).

    ``values`` [R, W] are packed rows, and ``owner`` [R] is the layer of each row. NaN is not counted, and infinities
    are counted in the outermost bins.
    """
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    is_finite = torch.isfinite(values)
    size = torch.where(is_finite, values.abs(), 0.0)
    by_row = torch.stack([size.sum(1), is_finite.sum(1).to(size.dtype)], dim=1).to(wide)  # [R, 2]
    totals = torch.zeros(layer_count, 2, device=values.device, dtype=wide).index_add_(0, owner, by_row)  # [layers, 2]
    largest = torch.zeros(layer_count, device=values.device, dtype=values.dtype)
    largest = largest.scatter_reduce_(0, owner, size.amax(1), "amax")
    half = torch.minimum(MEANS_PER_RANGE * totals[:, 0] / totals[:, 1], largest.to(wide))  # [layers]
    half = torch.where(half > 0, half, 1.0)
    position = (values / half.to(values.dtype).index_select(0, owner).unsqueeze(1) + 1.0) * (HISTOGRAM_BINS / 2)
    position = position.floor_().clamp_(0, HISTOGRAM_BINS - 1)
    is_number = ~torch.isnan(values)
    nowhere = layer_count * HISTOGRAM_BINS
    index = torch.where(is_number, position, 0.0).to(torch.int64) + (owner * HISTOGRAM_BINS).unsqueeze(1)
    index = torch.where(is_number, index, nowhere).view(-1)
    counts = torch.zeros(nowhere + 1, device=values.device, dtype=wide)
    counts.index_add_(0, index, counts.new_ones(()).expand(len(index)))
    return torch.cat([half.unsqueeze(1), counts[:-1].view(layer_count, HISTOGRAM_BINS)], dim=1)


def _batches(
    by_layer: Mapping[int, Sequence[int]], entries: Sequence[Entry], layer_sizes: Sequence[int]
) -> list[list[int]]:
    """Return the layers that are measured together: on one device, and either all or none with a second moment."""
    batches: dict[tuple[torch.device, bool], list[list[int]]] = {}
    filled: dict[tuple[torch.device, bool], int] = {}
    for layer, positions in by_layer.items():
        key = _key(entries[positions[0]])
        if any(_key(entries[position]) != key for position in positions):
            continue
        size = min(layer_sizes[layer], SAMPLES_PER_LAYER) + ROW_WIDTH * len(positions)
        limit = SAMPLES_AT_ONCE_CPU if key[0].type == "cpu" else SAMPLES_AT_ONCE_DEVICE
        if key not in batches or filled[key] + size > limit:
            batches.setdefault(key, []).append([])
            filled[key] = 0
        batches[key][-1].append(layer)
        filled[key] += size
    return [batch for group in batches.values() for batch in group]


def _key(entry: Entry) -> tuple[torch.device, bool]:
    return entry.parameter.device, _has_ratio(entry.flags)


def _has_ratio(flags: Flags) -> bool:
    return flags.second and flags.squared and not flags.divided


def _measure(
    layers: Sequence[int],
    by_layer: Mapping[int, Sequence[int]],
    entries: Sequence[Entry],
    terms: Tensor,
    layer_sizes: Sequence[int],
) -> tuple[Tensor, Tensor | None]:
    """Return the bins of u and r for some layers, [layers, 1 + 64] each; r is None without a second moment."""
    groups: dict[tuple[Flags, torch.dtype], list[tuple[int, int]]] = {}
    for at, layer in enumerate(layers):
        for position in by_layer[layer]:
            entry = entries[position]
            groups.setdefault((entry.flags, compute_dtype(entry.parameter)), []).append((position, at))
    owners: list[Tensor] = []
    updates: list[Tensor] = []
    ratios: list[Tensor] = []
    for (flags, dtype), members in groups.items():
        strides = [max(1, -(-layer_sizes[layers[at]] // SAMPLES_PER_LAYER)) for _, at in members]
        chosen = [entries[position] for position, _ in members]
        x, rows = _packed(chosen, strides, dtype)
        source = _repeated([position for position, _ in members], rows, terms.device)
        owners.append(_repeated([at for _, at in members], rows, terms.device))
        table = terms.to(dtype).index_select(0, source)
        columns = Terms(**{name: table[:, at : at + 1] for at, name in enumerate(ELEMENTWISE_TERMS)})
        update, ratio = _updates(flags, columns, x)
        updates.append(update)
        if ratio is not None:
            ratios.append(ratio)
    owner = torch.cat(owners)
    bins = count_bins(torch.cat(updates), owner, len(layers))
    return bins, count_bins(torch.cat(ratios), owner, len(layers)) if ratios else None


def _packed(chosen: Sequence[Entry], strides: Sequence[int], dtype: torch.dtype) -> tuple[Coordinates, list[int]]:
    """Return samples of the tensors of ``chosen`` in rows [R, W], padded with NaN, and the number of rows of each."""
    sizes = [-(-flat(entry.parameter).numel() // stride) for entry, stride in zip(chosen, strides, strict=True)]
    fill = torch.full((ROW_WIDTH,), torch.nan, device=chosen[0].parameter.device, dtype=dtype)

    def rows_of(tensors: Sequence[Tensor | None]) -> Tensor:
        pieces: list[Tensor] = []
        for tensor, stride, size in zip(tensors, strides, sizes, strict=True):
            assert tensor is not None
            pieces += (flat(tensor)[::stride].to(dtype), fill[: -size % ROW_WIDTH])
        return torch.cat(pieces).view(-1, ROW_WIDTH)

    flags = chosen[0].flags
    x = Coordinates(
        g=rows_of([entry.grad for entry in chosen]),
        w=rows_of([entry.parameter for entry in chosen]),
        m=rows_of([entry.first for entry in chosen]) if flags.first else None,
        v=rows_of([entry.second for entry in chosen]) if flags.second else None,
    )
    return x, [-(-size // ROW_WIDTH) for size in sizes]


def _updates(flags: Flags, terms: Terms, x: Coordinates) -> tuple[Tensor, Tensor | None]:
    """Return u and, with a second moment, r, which is u with ε = 0; both in the shape of ``x``."""
    update = scaled_update(flags, terms, x)
    if x.v is None or not _has_ratio(flags):
        return update, None
    root_v = x.v.sqrt()
    denominator = update_denominator(terms, root_v)
    assert denominator is not None
    return update, update * denominator / (terms.root * root_v)


def _repeated(values: Sequence[int], times: Sequence[int], device: torch.device) -> Tensor:
    return torch.from_numpy(np.repeat(np.array(values), times)).to(device, non_blocking=True)
