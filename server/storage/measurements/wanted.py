"""What a query asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from server.pyramid.buckets import Field
from server.pyramid.tiles import SCALARS


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Scalars, each from one rank, or one statistic from all: the rows of the answer, and where they come from."""

    fields: frozenset[Field]
    scalars: Mapping[str, int] = field(default_factory=dict)
    """Name to rank, in the order of the rows."""
    statistic: str | None = None
    layers: Mapping[tuple[int, int], NDArray[np.int64]] = field(default_factory=dict)
    """(writer, layout) that have the statistic, to the row of each of their layers."""
    rows: int

    @property
    def dtype(self) -> np.dtype[np.floating]:
        return np.dtype("<f8" if self.statistic is None else "<f4")

    @property
    def layouts(self) -> list[int]:
        """Those of the tiles."""
        return [SCALARS] if self.statistic is None else sorted({layout for _, layout in self.layers})

    def is_from(self, rank: int, writer_id: int) -> bool:
        """Whether a writer may have some of it."""
        if self.statistic is None:
            return rank in self.scalars.values()
        return any(writer == writer_id for writer, _ in self.layers)
