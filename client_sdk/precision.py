"""How exactly layer statistics are kept. Pure.

A float32 has 23 bits after the leading one. Of a norm that moves by percents from step to step the last twelve are
noise, and they are most of what has to be sent and stored: recorded statistics take 2.2 bytes a value with them and
1.0 without (docs/storage.md). Scalars, counts and histograms are never rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from client_sdk.vocabulary import STATISTICS

Precision = Literal["compact", "exact"]
PRECISIONS: Final[tuple[str, ...]] = get_args(Precision)

RELATIVE_ERROR: Final = 2.0**-12
"""Of a compact value, at most."""

EXACT: Final = frozenset(item.name for item in STATISTICS.values() if item.precision == "exact")
"""Statistics that are exact at any precision."""

_DROPPED: Final = 12  # bits of the 23
_HALF: Final = np.uint32(1 << (_DROPPED - 1))
_KEPT: Final = np.uint32(0xFFFFFFFF << _DROPPED & 0xFFFFFFFF)
_EXPONENT: Final = np.uint32(0x7F800000)


def compact(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest values that need 11 bits after the leading one: each within `RELATIVE_ERROR`.

    What is not finite, zero, or below the normal range stays as it is; so does a value that would round to infinity.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    exponent = bits & _EXPONENT
    rounded = (bits + _HALF) & _KEPT
    is_safe = (exponent != 0) & (exponent != _EXPONENT) & ((rounded & _EXPONENT) != _EXPONENT)
    return np.where(is_safe, rounded, bits).view(np.float32)


def compact_block(block: NDArray[np.float32], statistics: Sequence[str]) -> NDArray[np.float32]:
    """A block, layers × ``statistics``, with all but its counts compact."""
    kept = compact(block)
    for column, name in enumerate(statistics):
        if name in EXACT:
            kept[:, column] = block[:, column]
    return kept
