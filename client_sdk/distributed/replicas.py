"""The comparison of copies: parameters that several ranks hold must have the same values and gradients on all of them.

Owns the checksum of a parameter and the verdict on what the ranks sent. The weights of copies must agree bit by bit,
because every rank applies the same update to the same values. Gradients are compared by Σ g², whose rounding may depend
on the processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHECKSUM_BITS: Final = 24  # checksums stay exact in float64 when multiplied by the number of copies and added
_MIXER: Final = 0x9E3779B97F4A7C15 - 2**64  # an odd number, which carries every bit into the highest ones
GRADIENT_TOLERANCE: Final = 1e-4  # relative difference of Σ g² between copies that rounding can explain
_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Array = NDArray[np.float64]


def checksums(tensors: Sequence[Tensor]) -> Tensor:
    """Return a hash of the sum of the bit patterns of each of n tensors, [n] int64, on the device of the first one.

    A hash has `CHECKSUM_BITS` bits. Sums of integers do not depend on their order, so that equal tensors have equal
    checksums on every rank.
    """
    sums = [_bits(tensor).sum(dtype=torch.int64) for tensor in tensors]
    if not sums:
        return torch.zeros(0, dtype=torch.int64)
    mixed = torch.stack([each.to(sums[0].device, non_blocking=True) for each in sums]) * _MIXER
    return mixed.bitwise_right_shift(64 - CHECKSUM_BITS).bitwise_and_(2**CHECKSUM_BITS - 1)


def _bits(tensor: Tensor) -> Tensor:
    held = tensor.detach()
    if held.is_complex():
        held = torch.view_as_real(held)
    return held.contiguous().view(_INTEGERS[held.element_size()])


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A finding that copies on several ranks differ."""

    layers: tuple[int, ...]
    """Rows of the layers whose copies differ."""
    ranks: tuple[int, ...]
    """Ranks whose copies differ from those of the majority; empty if there is no majority."""
    what: str
    """"weights" or "gradients"."""


def compare(
    gaps: Array, scale: Array, by_rank: Mapping[int, tuple[float, float]], alike: Mapping[int, Sequence[int]]
) -> list[Difference]:
    """Return what differs among the copies.

    ``gaps`` [layers, 2] are the signed sums of checksums and of Σ g², which are 0 for equal copies, and ``scale``
    [layers] is the Σ g² that belongs to them. ``by_rank`` are the same two numbers for all tensors of a rank, and
    ``alike`` are the ranks that hold the same parts (see `division.Division`).
    """
    found = []
    weights = np.flatnonzero(gaps[:, 0])
    if len(weights):
        found.append(Difference(layers=tuple(weights.tolist()), ranks=_odd(by_rank, alike, 0), what="weights"))
    with np.errstate(all="ignore"):
        gradients = np.flatnonzero(np.abs(gaps[:, 1]) > GRADIENT_TOLERANCE * scale)
    if len(gradients):
        found.append(
            Difference(
                layers=tuple(gradients.tolist()), ranks=_odd(by_rank, alike, 1, GRADIENT_TOLERANCE), what="gradients"
            )
        )
    return found


def _odd(
    by_rank: Mapping[int, tuple[float, float]], alike: Mapping[int, Sequence[int]], column: int, tolerance: float = 0.0
) -> tuple[int, ...]:
    """Return the ranks that differ from a strict majority of those that hold the same parts."""
    odd: list[int] = []
    for group in {tuple(ranks) for ranks in alike.values()}:
        values = [by_rank[rank][column] for rank in group]
        near = [[abs(value - other) <= tolerance * abs(other) for value in values] for other in {*values}]
        largest = max(near, key=sum)
        if 2 * sum(largest) > len(group):
            odd += [rank for rank, is_near in zip(group, largest, strict=True) if not is_near]
    return tuple(sorted(odd))
