"""Every record is read as it was logged, wherever it is stored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_sdk.protocol import Record
from server.errors import RunDeletedError
from server.storage.database import Database
from server.storage.deletion import DeletionStore
from server.storage.measurements.history import HistoryReader
from tests.server.storage.conftest import Stores
from tests.server.storage.measurements.oracle import batches
from tests.server.storage.measurements.test_compaction import compactor, read_everything, store
from tests.support.writer import record


async def records_of(database: Database, names: set[str] | None = None) -> list[Record]:
    """Return the records of the run's only writer, reconstructed from its history."""
    found: list[Record] = []
    async for piece in HistoryReader(database).pieces("run", names=names):
        assert piece.first_seq == len(found) + 1
        columns = piece.columns
        for row, (step, time) in enumerate(zip(columns.steps.tolist(), columns.times.tolist(), strict=True)):
            scalars = {
                name: float(column.values[np.count_nonzero(column.present[:row])])
                for name, column in columns.scalars.items()
                if column.present[row]
            }
            block = None
            for part in columns.blocks:
                for at in np.flatnonzero(part.rows == row):
                    both = [part.statistics[name][:, at] for name in ("grad_norm", "update_norm")]
                    block = np.stack(both, axis=1).astype("<f4").tobytes()
            found.append(
                Record(step=step, time=time, scalars=scalars, layout=None if block is None else 0, block=block)
            )
    return found


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches(), st.integers(1, 6))
async def test_every_record_comes_back_in_order(
    database: Database, given_batches: list[list[Record]], entries: int
) -> None:
    stores = Stores.over(database)
    await store(stores, given_batches)
    await read_everything(database)
    records = [item for batch in given_batches for item in batch]
    for _ in range(2):
        found = await records_of(database)
        assert [(item.step, item.time, item.block) for item in found] == [
            (item.step, item.time, item.block) for item in records
        ]
        for got, given_one in zip(found, records, strict=True):
            np.testing.assert_equal(dict(got.scalars), dict(given_one.scalars))
        await compactor(database, entries).run_once()


@pytest.mark.parametrize("entries", [3, 7, 60], ids=["at its bounds", "across them", "into one span"])
async def test_a_compaction_in_between_changes_nothing(stores: Stores, entries: int) -> None:
    await store(stores, [[record(step + at) for at in range(3)] for step in range(0, 60, 3)])
    await read_everything(stores.database)
    steps: list[int] = []
    async for piece in HistoryReader(stores.database).pieces("run", names={"loss"}):
        assert piece.first_seq == len(steps) + 1
        steps += piece.columns.steps.tolist()
        if len(steps) == 9:
            await compactor(stores.database, entries).run_once()
    assert steps == list(range(60))


@pytest.mark.parametrize("compacted", [False, True], ids=["segments", "spans"])
async def test_a_run_that_is_deleted_while_it_is_read_does_not_look_whole(stores: Stores, compacted: bool) -> None:
    await store(stores, [[record(step + at) for at in range(3)] for step in range(0, 300, 3)])
    await read_everything(stores.database)
    if compacted:
        await compactor(stores.database, 3).run_once()
    deletion = DeletionStore(stores.database)
    steps: list[int] = []

    async def read() -> None:
        async for piece in HistoryReader(stores.database).pieces("run"):
            steps.extend(piece.columns.steps.tolist())
            await deletion.mark("run")
            await deletion.purge_some("run")

    with pytest.raises(RunDeletedError, match="nothing left to read"):
        await read()
    assert steps == list(range(len(steps)))
    assert len(steps) < 300
    while await deletion.purge_some("run"):
        pass
    with pytest.raises(RunDeletedError):
        await read()
