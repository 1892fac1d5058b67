"""Stores over either database, and a writer without a socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from client_sdk.protocol import Hello, Layout, Record
from server.pipeline.packing import pack
from server.pyramid.drafts import SegmentDraft
from server.storage.database import Database
from server.storage.layouts import LayoutStore
from server.storage.measurements.commits import Commit, CommitRequest, CommitStore
from server.storage.measurements.heatmap import HeatmapQuery
from server.storage.measurements.reader import BucketReader
from server.storage.measurements.series import SeriesQuery
from server.storage.runs import Registration, RunStore
from tests.support.writer import LAYOUT


@dataclass(frozen=True, kw_only=True)
class Stores:
    database: Database
    runs: RunStore
    commits: CommitStore
    series: SeriesQuery
    heatmap: HeatmapQuery

    @classmethod
    def over(cls, database: Database) -> Stores:
        runs = RunStore(database)
        reader = BucketReader(database, 64 * 2**20)
        return cls(
            database=database,
            runs=runs,
            commits=CommitStore(database),
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
        return await self.commit_drafts(writer, after, pack(after + 1, records, writer.layouts, widths))

    async def commit_drafts(self, writer: Registration, after: int, drafts: Sequence[SegmentDraft]) -> Commit:
        """Commit drafts, and raise the error with which they were refused."""
        request = CommitRequest(writer=writer, expected_seq=after, drafts=drafts, now=1_000.0)
        (outcome,) = await self.commits.commit([request])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def stores(database: Database) -> Stores:
    return Stores.over(database)
