"""Selection of the rows that a query reads: scalars, or one statistic of every layer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from server.pyramid.buckets import Field
from server.pyramid.tiles import SCALARS


@dataclass(frozen=True, kw_only=True)
class RowSelection:
    """Rows of a query's result and their sources: scalars of one rank each, or one statistic of all ranks.

    >>> RowSelection(fields=frozenset({"last"}), scalars={"loss": 0}, rows=1).layouts == [SCALARS]
    True
    """

    fields: frozenset[Field]
    """Fields of each bucket that the query reads."""
    scalars: Mapping[str, int] = field(default_factory=dict)
    """Rank that each scalar is read from, keyed by name, in the order of the rows."""
    statistic: str | None = None
    """Name of the statistic, or None for a selection of scalars."""
    layers: Mapping[tuple[int, int], NDArray[np.int64]] = field(default_factory=dict)
    """Row of each layer, shape (layers,), keyed by the (writer, layout) pairs that have the statistic."""
    rows: int
    """Number of rows in the result."""

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Type of the stored values: float64 for scalars, float32 for statistics."""
        return np.dtype("<f8" if self.statistic is None else "<f4")

    @property
    def layouts(self) -> list[int]:
        """Layout numbers of the tiles to read; `SCALARS` stands for tiles of scalars."""
        return [SCALARS] if self.statistic is None else sorted({layout for _, layout in self.layers})

    def includes(self, rank: int, writer_id: int) -> bool:
        """Return whether a writer may have measured any of the selected rows."""
        if self.statistic is None:
            return rank in self.scalars.values()
        return any(writer == writer_id for writer, _ in self.layers)
