"""New databases with the current schema: the migrations run once in a process, and SQLite databases are copies."""

from __future__ import annotations

import asyncio
import atexit
import functools
import shutil
import tempfile
import threading
from pathlib import Path

from server.storage import migrate
from server.storage.database import Database


def migrate_database(url: str) -> None:
    """Give an empty database the current schema. May be called from a running event loop, which it blocks."""
    failures: list[BaseException] = []

    async def upgrade() -> None:
        database = Database(url)
        try:
            await migrate.upgrade(database)
        finally:
            await database.close()

    def run() -> None:
        try:
            asyncio.run(upgrade())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="migrations")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def create_sqlite(path: Path) -> None:
    """Create a SQLite database with the current schema, and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # as a server does
    shutil.copyfile(_template(), path)


@functools.cache
def _template() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="spikewatch-schema-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = directory / "current.sqlite3"
    migrate_database(f"sqlite:///{path}")
    assert [file.name for file in directory.iterdir()] == [path.name], "its log was merged when it was closed"
    return path
