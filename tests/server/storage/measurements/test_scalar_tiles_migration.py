"""The migration merges tiles of one scalar into tiles of many, and queries return the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from sqlalchemy import delete, select

from client_sdk.protocol import Record
from server.errors import DatabaseError
from server.pyramid.blobs import pack, pack_last
from server.pyramid.tiles import SCALARS, decode_buckets, decode_values, unpack_steps
from server.schema import spans, tiles
from server.storage import migrate
from server.storage.database import Database
from server.storage.measurements.spans import to_stored_tile
from tests.server.storage.conftest import Stores
from tests.server.storage.measurements.oracle import Expected, check_heatmap, check_series
from tests.server.storage.measurements.test_compaction import SMALL_SPAN, compactor, read_everything, store
from tests.support.writer import record


def _records() -> list[Record]:
    found = []
    for step in range(SMALL_SPAN * 70):
        extra = {"accuracy": math.inf if step % 17 == 0 else step / 7} if step % 5 else {}
        item = record(step, math.nan if step % 11 == 0 else float(step), block=[[step, 1], [2, 3]])
        found.append(structs.replace(item, scalars={**item.scalars, **extra}))
    return found


async def _as_before(database: Database) -> None:
    """Write the tiles of scalars in the format of schema 0005, and downgrade to it."""
    async with database.write() as connection:
        query = select(tiles, spans.c.level, spans.c.entries, spans.c.steps).join(spans, spans.c.id == tiles.c.span_id)
        for row in (await connection.execute(query.where(tiles.c.layout == SCALARS))).all():
            blobs = to_stored_tile(row).blobs
            assert blobs is not None
            await connection.execute(
                delete(tiles).where(tiles.c.span_id == row.span_id, tiles.c.layout == SCALARS, tiles.c.name == row.name)
            )
            for number, name in enumerate(row.names):
                values: dict[str, Any] = {"span_id": row.span_id, "layout": SCALARS, "name": name, "rows": 1}
                if row.level == 0:
                    held = decode_values(blobs, row.entries)
                    at = np.arange(row.entries) if held.measured is None else np.flatnonzero(held.measured[number])
                    values |= {"last": pack(held.values[number][at])}
                else:
                    numbers = unpack_steps(row.steps)
                    own = decode_buckets(blobs, numbers).of(slice(number, number + 1)).filled()
                    at = np.searchsorted(numbers, own.numbers)
                    values |= {"least": pack(own.min), "greatest": pack(own.max)}
                    values |= {"last": pack_last(own.last, own.min, own.max)}
                    values |= {"nonfinite": pack(own.counts()) if own.counts().any() else None}
                values["present"] = pack(at.astype(np.uint32)) if len(at) < row.entries else None
                await connection.execute(tiles.insert().values(**values))
    await migrate.downgrade(database, "0005")


async def test_existing_tiles_are_merged(stores: Stores) -> None:
    records = _records()
    await store(stores, [records])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()
    await _as_before(stores.database)
    await migrate.upgrade(stores.database)
    fresh = Stores.over(stores.database)
    async with stores.database.read() as connection:
        rows = (await connection.execute(select(tiles.c.names).where(tiles.c.layout == SCALARS))).scalars().all()
    assert all(names == ["accuracy", "loss"] for names in rows)
    for points in (1, 9, 100, 1_000):
        await check_series(fresh, Expected(records), (None, None), points)
        await check_heatmap(fresh, Expected(records), (7, 133), points)


async def test_a_damaged_tile_stops_the_upgrade_and_says_what_to_do(stores: Stores) -> None:
    await store(stores, [_records()])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()
    await _as_before(stores.database)
    async with stores.database.write() as connection:
        await connection.execute(tiles.update().where(tiles.c.name == "loss").values(last=b"damaged blob"))
    with pytest.raises(DatabaseError, match="doctor --repair"):
        await migrate.upgrade(stores.database)


async def test_going_back_is_refused_once_something_is_compacted(stores: Stores) -> None:
    await store(stores, [_records()])
    await read_everything(stores.database)
    await compactor(stores.database).run_once()
    with pytest.raises(DatabaseError, match="restore a backup"):
        await migrate.downgrade(stores.database, "0005")
