"""Migration of a database to the schema of this program. `migrations` contains the history for both databases."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from pathlib import Path

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

import migrations
from server.errors import DatabaseAheadError
from server.storage.database import Database

_ADVISORY_LOCK = 0x5350494B45  # "SPIKE": replicas that start together migrate one after the other


def alembic_config() -> AlembicConfig:
    """Return Alembic's settings for the installed package, without any file of the checkout."""
    config = AlembicConfig()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    return config


async def upgrade(database: Database, revision: str = "head") -> None:
    """Apply the missing migrations. Raises `DatabaseAheadError` if a newer program has migrated the database."""
    await check_not_ahead(database)
    if revision == "head" and await is_current(database):
        return  # without the lock, for which a server that starts would wait beside busy ones
    config = alembic_config()
    async with _exclusive(database) as connection:
        config.attributes["connection"] = connection.sync_connection
        await connection.run_sync(lambda _: command.upgrade(config, revision))


async def downgrade(database: Database, revision: str) -> None:
    """Revert migrations down to ``revision`` ("base" for all), or none if one of them fails.

    Raises `DatabaseAheadError` like `upgrade`, and `DatabaseError` if the older schema cannot hold the stored data.
    """
    await check_not_ahead(database)
    config = alembic_config()
    async with _exclusive(database) as connection:
        config.attributes["connection"] = connection.sync_connection
        await connection.run_sync(lambda _: command.downgrade(config, revision))


@contextlib.asynccontextmanager
async def _exclusive(database: Database) -> AsyncIterator[AsyncConnection]:
    """Open a transaction that no other migrating program runs at the same time.

    On SQLite, every writing transaction excludes all others.
    """
    async with database.write() as connection:
        if not database.is_sqlite:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        yield connection


async def check_not_ahead(database: Database) -> None:
    """Raise `DatabaseAheadError` if a newer program has migrated the database."""
    heads = await _heads(database)
    scripts = await asyncio.to_thread(_scripts)
    known = {script.revision for script in scripts.walk_revisions()}
    unknown = sorted(heads - known)
    if unknown:
        raise DatabaseAheadError(
            f"the database has the schema {', '.join(unknown)}, which this version does not support, because a newer "
            "spikewatch has migrated it; upgrade spikewatch, or restore a backup"
        )


async def is_current(database: Database) -> bool:
    """Return whether every migration of this program has been applied."""
    scripts = await asyncio.to_thread(_scripts)
    return await _heads(database) == set(scripts.get_heads())


async def _heads(database: Database) -> set[str]:
    """Return the revisions that a database has, which are none before its first migration."""
    async with database.read() as connection:
        return set(await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_heads()))


@functools.cache
def _scripts() -> ScriptDirectory:
    """Return the migrations of this program, whose files are read once."""
    return ScriptDirectory.from_config(alembic_config())
