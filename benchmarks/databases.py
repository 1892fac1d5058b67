"""A fresh database of either kind for a benchmark."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator

from sqlalchemy import text

from server.storage import migrate
from server.storage.database import Database
from tests.support.postgres import Postgres

KINDS = ("sqlite", "postgres")


@contextlib.asynccontextmanager
async def fresh_database(kind: str) -> AsyncIterator[Database]:
    """Migrated and empty; gone afterwards. Its files are under the temporary directory (TMPDIR)."""
    with tempfile.TemporaryDirectory(prefix="spikewatch-bench-", ignore_cleanup_errors=True) as place:
        server = Postgres() if kind == "postgres" else None
        database = Database(server.create_database() if server else f"sqlite:///{place}/bench.sqlite3")
        try:
            await migrate.upgrade(database)
            yield database
        finally:
            await database.close()
            if server is not None:
                server.stop()


async def size_of(database: Database) -> int:
    """Bytes on disk."""
    query = "SELECT pg_database_size(current_database())"
    if database.is_sqlite:
        query = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    async with database.read() as connection:
        return int((await connection.execute(text(query))).scalar_one())


async def settle(database: Database) -> None:
    """What a database does by itself after a while: statistics for its planner."""
    async with database.write() as connection:
        await connection.execute(text("ANALYZE"))
