"""A database of either kind for a benchmark: a fresh one, or one that is kept from one time to the next."""

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
    """Migrated and empty; gone afterwards. Its files are under the temporary directory (TMPDIR)."""
    with tempfile.TemporaryDirectory(prefix="spikewatch-bench-", ignore_cleanup_errors=True) as place:
        server = Postgres() if kind == "postgres" else None
        async with _opened(server.create_database() if server else f"sqlite:///{place}/bench.sqlite3", server) as made:
            yield made


@contextlib.asynccontextmanager
async def kept_database(kind: str, place: Path) -> AsyncIterator[Database]:
    """That of the directory, migrated; made where there is none. It stays when it is closed."""
    async with _opened(*_keep(kind, place)) as kept:
        yield kept


def forget(place: Path) -> None:
    """Take the files of a kept database, which is closed, out of the memory of the system."""
    for path in place.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.asynccontextmanager
async def _opened(url: str, server: Postgres | None) -> AsyncIterator[Database]:
    """Migrated. Afterwards the database is closed and the server stopped."""
    database = Database(url)
    try:
        await migrate.upgrade(database)
        yield database
    finally:
        await database.close()
        if server is not None:
            server.stop()


def _keep(kind: str, place: Path) -> tuple[str, Postgres | None]:
    place.mkdir(parents=True, exist_ok=True)
    if kind == "sqlite":
        return f"sqlite:///{place.resolve()}/bench.sqlite3", None
    is_new = not (place / "data").exists()
    server = Postgres(place.resolve())
    return server.create_database() if is_new else server.url_of("test1"), server


async def size_of(database: Database) -> int:
    """Bytes on disk."""
    query = "SELECT pg_database_size(current_database())"
    if database.is_sqlite:
        query = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    async with database.read() as connection:
        return int((await connection.execute(text(query))).scalar_one())


async def sizes_of_levels(database: Database) -> list[tuple[int, bool, int]]:
    """(level, is it of scalars, bytes of the tiles) of all runs."""
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
    """What a database does by itself after a while: statistics for its planner."""
    async with database.write() as connection:
        await connection.execute(text("ANALYZE"))
