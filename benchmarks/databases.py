"""Databases of either kind for a benchmark: a fresh one, or one that is kept for the next run of the benchmark."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from sqlalchemy import func, select, text

from server.pyramid.tiles import SCALARS
from server.schema import spans, tiles
from server.storage import migrate
from server.storage.database import Database
from tests.support.postgres import Postgres

KINDS = ("sqlite", "postgres")


@contextlib.asynccontextmanager
async def fresh_database(kind: str) -> AsyncIterator[Database]:
    """Open a migrated, empty database with files in the temporary directory (TMPDIR), and delete it afterwards."""
    with tempfile.TemporaryDirectory(prefix="spikewatch-bench-", ignore_cleanup_errors=True) as directory:
        server = Postgres() if kind == "postgres" else None
        url = server.create_database() if server else f"sqlite:///{directory}/bench.sqlite3"
        async with _opened(url, server) as database:
            yield database


@contextlib.asynccontextmanager
async def kept_database(kind: str, directory: Path) -> AsyncIterator[Database]:
    """Open and migrate the database in ``directory``, which is created if it does not exist and kept afterwards."""
    async with _opened(*_keep(kind, directory)) as kept:
        yield kept


def drop_from_page_cache(directory: Path) -> None:
    """Remove the files of a kept, closed database from the system's page cache (Linux)."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.asynccontextmanager
async def _opened(url: str, server: Postgres | None) -> AsyncIterator[Database]:
    """Open and migrate a database; close it and stop its server afterwards."""
    database = Database(url)
    try:
        await migrate.upgrade(database)
        yield database
    finally:
        await database.close()
        if server is not None:
            server.stop()


def _keep(kind: str, directory: Path) -> tuple[str, Postgres | None]:
    directory.mkdir(parents=True, exist_ok=True)
    if kind == "sqlite":
        return f"sqlite:///{directory.resolve()}/bench.sqlite3", None
    is_new = not (directory / "data").exists()
    server = Postgres(directory.resolve())
    return server.create_database() if is_new else server.url_of("test1"), server


async def size_of(database: Database) -> int:
    """Return the size of the database on disk in bytes."""
    query = "SELECT pg_database_size(current_database())"
    if database.is_sqlite:
        query = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    async with database.read() as connection:
        return int((await connection.execute(text(query))).scalar_one())


async def sizes_of_levels(database: Database) -> list[tuple[int, bool, int]]:
    """Return the level, whether the tiles hold scalars, and their size in bytes, over all runs."""
    blobs = (tiles.c.present, tiles.c.least, tiles.c.greatest, tiles.c.last, tiles.c.nonfinite)
    size = sum((func.coalesce(func.length(blob), 0) for blob in blobs[1:]), func.coalesce(func.length(blobs[0]), 0))
    is_scalar = (tiles.c.layout == SCALARS).label("is_scalar")
    query = (
        select(spans.c.level, is_scalar, func.sum(size))
        .join(spans, spans.c.id == tiles.c.span_id)
        .group_by(spans.c.level, is_scalar)
        .order_by(is_scalar, spans.c.level)
    )
    async with database.read() as connection:
        return [(int(row[0]), bool(row[1]), int(row[2])) for row in await connection.execute(query)]


async def settle(database: Database) -> None:
    """Collect the statistics for the planner, as a database does by itself after a while."""
    async with database.write() as connection:
        await connection.execute(text("ANALYZE"))
