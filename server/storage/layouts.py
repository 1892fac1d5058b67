"""Layouts of writers, and the rows of a run's heatmap that they define."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from client_sdk.protocol import Layout, Optimizer
from server.errors import LayoutChangedError
from server.schema import layouts, writers
from server.storage.database import Database

DERIVED_STATISTIC = "bimodality"
"""Statistic that is added to every layout: the server computes it from the ratio histograms."""


@dataclass(frozen=True, kw_only=True)
class StoredLayout:
    """Layout of a writer, with its statistics including `DERIVED_STATISTIC`."""

    writer_id: int
    rank: int
    layout: Layout


class LayoutStore:
    """Reads layouts of runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_run(self, run_id: str) -> list[StoredLayout]:
        """Return every layout of the run, by rank and then in the order of arrival."""
        async with self._database.read() as connection:
            rows = await connection.execute(
                select(layouts, writers.c.rank)
                .join(writers, layouts.c.writer_id == writers.c.id)
                .where(writers.c.run_id == run_id)
                .order_by(writers.c.rank, writers.c.id, layouts.c.number)
            )
            return [StoredLayout(writer_id=row.writer_id, rank=row.rank, layout=_to_layout(row)) for row in rows]


def layer_rows(stored: Sequence[StoredLayout]) -> list[tuple[int, str, str]]:
    """Return (rank, layer, displayed name) of each row of the heatmap.

    A layer in several layouts of a rank is one row. If several ranks have layers, the displayed name contains the rank:
    "rank1/head".
    """
    rows = dict.fromkeys((item.rank, layer) for item in stored for layer in item.layout.layers)
    several = len({rank for rank, _ in rows}) > 1
    return [(rank, layer, f"rank{rank}/{layer}" if several else layer) for rank, layer in rows]


async def register_layouts(
    connection: AsyncConnection, writer_id: int, sent: Sequence[Layout]
) -> tuple[dict[int, Layout], bool]:
    """Store the layouts that are new.

    Returns all layouts of the writer keyed by layout number, and whether any was new. Raises `LayoutChangedError`.
    """
    rows = await connection.execute(select(layouts).where(layouts.c.writer_id == writer_id))
    known = {row.number: _to_layout(row) for row in rows}
    stored = len(known)
    for layout in sent:
        statistics = with_derived(layout.statistics)
        before = known.get(layout.id)
        if before is not None:
            if before.layers != layout.layers or before.statistics != statistics:
                raise LayoutChangedError(layout.id)
            continue
        await connection.execute(
            layouts.insert().values(
                writer_id=writer_id,
                number=layout.id,
                layers=list(layout.layers),
                statistics=list(statistics),
                sizes=list(layout.sizes),
                optimizer=msgspec.to_builtins(layout.optimizer),
            )
        )
        known[layout.id] = msgspec.structs.replace(layout, statistics=statistics)
    return known, len(known) > stored


def with_derived(statistics: Sequence[str]) -> tuple[str, ...]:
    """Return the statistics of a layout as they are stored."""
    return tuple(statistics) if DERIVED_STATISTIC in statistics else (*statistics, DERIVED_STATISTIC)


def _to_layout(row: Any) -> Layout:
    optimizer = None
    if row.optimizer is not None:
        # JSON has no NaN: a learning rate that was not a number is stored as null.
        known = row.optimizer if row.optimizer["lr"] is not None else {**row.optimizer, "lr": math.nan}
        optimizer = msgspec.convert(known, Optimizer)
    return Layout(
        id=row.number,
        layers=tuple(row.layers),
        statistics=tuple(row.statistics),
        sizes=tuple(row.sizes),
        optimizer=optimizer,
    )
