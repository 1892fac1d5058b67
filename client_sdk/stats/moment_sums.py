"""Sums over moments that are not kept as one tensor in the shape of the parameter (`client_sdk.optimizers.moments`).

A chunk of the moment is computed, summed and forgotten, so that a factored or 8-bit state costs no memory of the size
of the parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from client_sdk.optimizers import ELEMENTWISE_TERMS, Moment
from client_sdk.stats.entry import Entry, compute_dtype, flat
from client_sdk.stats.measurement_plan import chunk_size
from client_sdk.stats.sum_table import wide_dtype
from client_sdk.stats.sums import SUM, is_above_threshold

NAMES: Final = ("vv", "below", "rr", "ep", "pp")
"""Names of the sums that are computed here, in the order of the columns of `measure_moments`."""
COLUMNS: Final = [SUM[name] for name in NAMES]
"""Columns of these sums in `SUMS`."""


class MomentEntry(NamedTuple):
    """Moments of one entry of which only ranges of coordinates can be computed."""

    position: int
    """Position in the list of entries."""
    first: Moment | None
    second: Moment | None
    intake: float
    """Share of a new gradient in m."""


def measure_moments(entries: Sequence[Entry], moments: Sequence[MomentEntry], terms: Tensor) -> Tensor:
    """Return the sums `NAMES` of entries on one device, [len(moments), 5]; NaN where a moment does not exist.

    ``terms`` holds the `ELEMENTWISE_TERMS` of all P entries on this device, [P, 7].
    """
    return torch.stack([_measure(entries[found.position], found, terms[found.position]) for found in moments])


def _measure(entry: Entry, found: MomentEntry, terms: Tensor) -> Tensor:
    device, dtype = entry.parameter.device, compute_dtype(entry.parameter)
    grad, wide, step = flat(entry.grad), wide_dtype(device), chunk_size(device)
    threshold = terms[ELEMENTWISE_TERMS.index("threshold")].to(dtype)
    total = torch.zeros(len(NAMES), device=device, dtype=wide)
    missing = torch.full((), torch.nan, device=device, dtype=wide)
    for start in range(0, grad.numel(), step):
        window = slice(start, start + step)
        g = grad[window].to(dtype)
        g = -g if entry.flags.negated else g
        sums: list[Tensor] = [missing] * len(NAMES)
        if found.second is not None:
            v = found.second.values(window).to(dtype)
            root = v.sqrt()
            ratio = g / torch.maximum(root, threshold)
            is_above = is_above_threshold(root, threshold)
            sums[:2] = v.sum(), torch.zeros_like(missing) if is_above else torch.count_nonzero(root < threshold)
            if not entry.flags.coupled:
                sums[2] = torch.dot(ratio, ratio)
        if found.first is not None and not entry.flags.coupled:
            past = torch.sub(found.first.values(window).to(dtype), g, alpha=found.intake)
            sums[3:] = torch.dot(g, past), torch.dot(past, past)
        total += torch.stack([value.to(wide) for value in sums])
    return total
