"""Fixtures: an importer with its own database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from client_sdk import answers
from server.assembly.pipeline import make_pipeline
from server.broker import MemoryBroker
from server.config import Config
from server.exports.exporter import Exporter, Format
from server.imports.discover import discover
from server.imports.importer import Imported, Importer
from server.imports.options import ReadOptions
from server.storage.alerts import AlertStore
from server.storage.database import Database
from server.storage.fleet import FleetQuery
from server.storage.layouts import LayoutStore
from server.storage.measurements.steps import StepReader
from server.storage.runs import RunStore
from tests.support.current_schema import create_sqlite

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Imports into one database, and exports from it."""

    database: Database
    importer: Importer
    notes: list[str]

    async def import_all(self, path: Path, reading: ReadOptions | None = None, **options: Any) -> list[Imported]:
        """Import all logs below a path."""
        return [
            imported
            for _, opener in discover(path, reading or ReadOptions(), self.notes.append)
            for imported in await self.importer.import_runs(opener(), **options)
        ]

    async def details(self, run_id: str) -> dict[str, Any]:
        """The run as GET /runs/{id} answers it."""
        answer: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(await self.run(run_id)))
        return answer

    async def run(self, run_id: str) -> answers.RunDetail:
        layouts = LayoutStore(self.database)
        found = await FleetQuery(self.database, RunStore(self.database), layouts).details(run_id)
        assert found is not None
        return found

    async def alert_kinds(self, run_id: str) -> set[str]:
        return {alert.kind for alert in await AlertStore(self.database).find(run_ids=[run_id])}

    async def export(self, run_id: str, path: Path, form: Format = Format.PARQUET) -> Path:
        exporter = Exporter(StepReader(self.database, LayoutStore(self.database)))
        run = await self.run(run_id)
        pieces = [piece async for piece in exporter.stream(run, await exporter.begin(run_id), form)]
        await asyncio.to_thread(path.write_bytes, b"".join(pieces))
        return path

    async def table(self, run_id: str, folder: Path) -> pa.Table:
        """The rows of the run's Parquet export, without the column of its id."""
        return pq.read_table(await self.export(run_id, folder / f"{run_id}.parquet")).drop_columns(["run"])


@contextlib.asynccontextmanager
async def workshop_at(folder: Path) -> AsyncIterator[Workshop]:
    path = folder / "imports.sqlite3"
    create_sqlite(path)
    database = Database(f"sqlite:///{path}")
    pipeline = make_pipeline(Config(), database, MemoryBroker(64), follower_idle=0.01)
    try:
        yield Workshop(database=database, importer=Importer(pipeline), notes=[])
    finally:
        await pipeline.stop()
        await database.close()


@pytest.fixture
async def workshop(tmp_path: Path) -> AsyncIterator[Workshop]:
    folder = tmp_path / "database"
    folder.mkdir()
    async with workshop_at(folder) as opened:
        yield opened
