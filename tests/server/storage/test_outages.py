"""Errors of Postgres that pass, told from those that do not: a writer is told to wait, not that we are broken."""

from __future__ import annotations

import pytest
from sqlalchemy import exc, text

from server.errors import DatabaseUnavailableError
from server.storage.database import Database

PASSING = {
    "starting up": "57P03",
    "shut down by an administrator": "57P01",
    "a deadlock": "40P01",
    "a disk that is full": "53100",
    "too many connections": "53300",
    "an error of the file system": "58030",
}


async def _raise(database: Database, state: str) -> None:
    async with database.write() as connection:
        await connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{state}'; END $$"))


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("name", PASSING)
async def test_what_passes_is_an_outage(database: Database, name: str) -> None:
    with pytest.raises(DatabaseUnavailableError):
        await _raise(database, PASSING[name])


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_a_mistake_in_a_statement_stays_one(database: Database) -> None:
    with pytest.raises(exc.DBAPIError):
        await _raise(database, "22012")
