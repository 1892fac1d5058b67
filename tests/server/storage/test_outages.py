"""Temporary errors of Postgres are told apart from permanent ones, so that writers are asked to wait."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import exc, select, text, update

from server.errors import DatabaseUnavailableError
from server.schema import writers
from server.storage import database as database_module
from server.storage.database import Database
from tests.server.storage.conftest import Stores
from tests.support.postgres import Postgres
from tests.support.writer import record

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
async def test_temporary_errors_are_outages(database: Database, name: str) -> None:
    with pytest.raises(DatabaseUnavailableError):
        await _raise(database, PASSING[name])


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_a_mistake_in_a_statement_is_not_translated(database: Database) -> None:
    with pytest.raises(exc.DBAPIError):
        await _raise(database, "22012")


async def test_a_server_that_hangs_in_a_transaction_holds_up_the_others_for_a_while_only(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.create_database(is_current=True)
    alive = Database(url)
    monkeypatch.setattr(database_module, "IDLE_TIMEOUT", 200)
    hung = Database(url)
    before = await Stores.over(hung).register()

    async def hang() -> None:
        async with hung.write() as connection:
            locked = select(writers.c.last_seq).where(writers.c.id == before.writer_id).with_for_update()
            await connection.execute(locked)
            # waits for the locked row until Postgres ends the other transaction
            after = await Stores.over(alive).register()
            assert after.epoch == before.epoch + 1
            await connection.execute(update(writers).values(last_seq=99))

    with pytest.raises(DatabaseUnavailableError):
        await hang()
    assert (await Stores.over(alive).register()).last_seq == 0
    for database in (hung, alive):
        await database.close()


@pytest.mark.parametrize("error", [ConnectionResetError("of a channel"), TimeoutError("of a picture")], ids=repr)
async def test_errors_of_the_block_are_not_errors_of_the_database(database: Database, error: OSError) -> None:
    for transaction in (database.read, database.snapshot, database.write):
        with pytest.raises(type(error), match="of a"):
            async with transaction():
                raise error


async def test_a_database_that_takes_no_connection_is_an_outage() -> None:
    database = Database("postgresql://spikewatch@127.0.0.1:1/spikewatch")
    for transaction in (database.read, database.snapshot, database.write):
        with pytest.raises(DatabaseUnavailableError, match="cannot be reached"):
            async with transaction():
                pass
    await database.close()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_the_drivers_own_network_error_in_a_statement_is_an_outage(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.write() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None

    async def cut(*_: object, **__: object) -> None:
        raise ConnectionResetError("the cable")

    monkeypatch.setattr(type(driver), "prepare", cut)
    with pytest.raises(DatabaseUnavailableError, match="the cable"):
        async with database.write() as connection:
            await connection.execute(text("SELECT 17"))


async def test_many_readers_do_not_delay_a_commit(database: Database) -> None:
    stores = Stores.over(database)
    writer = await stores.register()
    free = asyncio.Event()

    async def read() -> None:
        async with database.read() as connection:
            await connection.execute(text("SELECT 1"))
            await free.wait()

    readers = [asyncio.create_task(read()) for _ in range(50)]
    async with asyncio.timeout(20):
        assert (await stores.commit(writer, 0, [record(0)])).last_seq == 1
    assert not any(reader.done() for reader in readers)
    free.set()
    await asyncio.gather(*readers)
