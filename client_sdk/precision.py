"""The precision of layer statistics. Pure.

A float32 has 23 bits after the leading one. In a norm that changes by per cents from step to step the last twelve are
noise, but they account for most of the bytes that are sent and stored: recorded statistics take 2.2 bytes a value with
them and 1.0 without (benchmarks/results/storage.md). Scalars, counts and histograms are never rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from client_sdk.vocabulary import STATISTICS

Precision = Literal["compact", "exact"]
"""Precision of layer statistics."""
PRECISIONS: Final[tuple[str, ...]] = get_args(Precision)
"""Names of the precisions that `watch` accepts."""

RELATIVE_ERROR: Final = 2.0**-12
"""Maximum relative error of a compact value."""

EXACT: Final = frozenset(item.name for item in STATISTICS.values() if item.precision == "exact")
"""Statistics that are exact at any precision."""

_DROPPED: Final = 12  # bits of the 23
_HALF: Final = np.uint32(1 << (_DROPPED - 1))
_KEPT: Final = np.uint32(0xFFFFFFFF << _DROPPED & 0xFFFFFFFF)
_EXPONENT: Final = np.uint32(0x7F800000)


def compact(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the nearest values with 11 bits after the leading one, each within `RELATIVE_ERROR`.

    Values that are zero, subnormal or not finite, and values that would round to infinity, are returned unchanged.

    >>> compact(np.array([1.0, 3.14159265, np.inf], np.float32)).tolist()
    [1.0, 3.1416015625, inf]
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    exponent = bits & _EXPONENT
    rounded = (bits + _HALF) & _KEPT
    is_safe = (exponent != 0) & (exponent != _EXPONENT) & ((rounded & _EXPONENT) != _EXPONENT)
    return np.where(is_safe, rounded, bits).view(np.float32)


def compact_block(block: NDArray[np.float32], statistics: Sequence[str]) -> NDArray[np.float32]:
    """Return ``block``, shape (layers, statistics), with every column compact except the counts."""
    kept = compact(block)
    for column, name in enumerate(statistics):
        if name in EXACT:
            kept[:, column] = block[:, column]
    return kept
