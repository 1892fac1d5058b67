"""What a query asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.storage.buckets import Field
from server.storage.tiles import SCALARS, Series


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Scalars, each from one rank, or one statistic from all."""

    scalars: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """Rank to names."""
    statistic: str | None = None
    layouts: frozenset[int] = frozenset()
    """Those that have the statistic."""
    fields: frozenset[Field]

    def series(self, rank: int) -> list[Series]:
        if self.statistic is None:
            return [(SCALARS, name) for name in sorted(self.scalars.get(rank, ()))]
        return [(layout, self.statistic) for layout in sorted(self.layouts)]
