"""Stores over either database, and a writer without a socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from client_sdk.protocol import Hello, Layout, Record
from server.pipeline.packing import pack
from server.storage.database import Database
from server.storage.heatmap import HeatmapQuery
from server.storage.layouts import LayoutStore
from server.storage.lru import ByteLru
from server.storage.reader import BucketReader
from server.storage.runs import Registration, RunStore
from server.storage.segments import Commit, SegmentStore
from server.storage.series import SeriesQuery
from tests.support.writer import LAYOUT


@dataclass(frozen=True, kw_only=True)
class Stores:
    database: Database
    cache: ByteLru
    runs: RunStore
    segments: SegmentStore
    series: SeriesQuery
    heatmap: HeatmapQuery

    @classmethod
    def over(cls, database: Database) -> Stores:
        cache = ByteLru(64 * 2**20)
        runs = RunStore(database)
        reader = BucketReader(database, cache)
        return cls(
            database=database,
            cache=cache,
            runs=runs,
            segments=SegmentStore(database),
            series=SeriesQuery(runs, reader),
            heatmap=HeatmapQuery(LayoutStore(database), reader),
        )

    async def register(
        self, run_id: str = "run", writer: str = "writer", rank: int = 0, layouts: tuple[Layout, ...] = (LAYOUT,)
    ) -> Registration:
        hello = Hello(version=1, run_id=run_id, writer=writer, project="project", rank=rank, layouts=layouts)
        return await self.runs.register(hello, 1_000.0)

    async def commit(self, writer: Registration, after: int, records: Sequence[Record]) -> Commit:
        widths = {number: len(layout.statistics) - 1 for number, layout in writer.layouts.items()}
        drafts = pack(after + 1, records, writer.layouts, widths)
        return await self.segments.commit(writer, after, drafts, 1_000.0)


@pytest.fixture
def stores(database: Database) -> Stores:
    return Stores.over(database)
