"""Values of the dashboard that are not answers of the API. No I/O."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray


class Heatmap(msgspec.Struct, frozen=True, kw_only=True):
    """A statistic of every layer over the steps, unpacked from `client_sdk.answers.PackedHeatmap`."""

    layers: tuple[str, ...]
    step: tuple[int, ...]
    """First step of each column."""
    bucket_steps: int
    """Number of steps in a column."""
    z: NDArray[np.float32]
    """Values, layers × columns; NaN where nothing was measured."""
    nonfinite: tuple[tuple[int, int, int], ...] = ()
    """Row, column and count of each cell with non-finite values."""
