"""Every statement of a query or a compaction finds its rows by an index, on both databases."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import UniqueConstraint, event, text

from server.schema import metadata
from server.storage.alerts import AlertStore
from server.storage.database import Database
from server.storage.deletion import DeletionStore
from server.storage.events import EventStore
from server.storage.layouts import LayoutStore
from server.storage.measurements.heatmap import Reduce
from server.storage.measurements.histogram import HistogramQuery
from server.storage.measurements.histogram_history import HistogramHistory
from server.storage.measurements.steps import StepReader
from tests.server.storage.conftest import Stores
from tests.server.storage.measurements.test_commits import asked
from tests.server.storage.measurements.test_compaction import compactor, read_everything, store
from tests.support.writer import histogram, record

LARGE = ("segments", "spans", "tiles", "histograms", "events", "attempts", "alerts")


@contextlib.contextmanager
def statements(database: Database) -> Iterator[dict[str, Any]]:
    """Record the statements about large tables together with their parameters."""
    seen: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, is_many: bool) -> None:
        if (
            not is_many
            and statement.startswith(("SELECT", "DELETE", "UPDATE"))
            and any(name in statement for name in LARGE)
        ):
            seen.setdefault(statement, parameters)

    engines = (database.reading.sync_engine, database.writing.sync_engine)
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)


async def expect_indexes(database: Database, seen: dict[str, Any]) -> None:
    for statement, parameters in seen.items():
        for line in await _plan(database, statement, parameters):
            assert not _is_scan(line), f"{line}\n{statement}"


async def test_no_statement_reads_a_table_from_end_to_end(stores: Stores) -> None:
    await store(stores, [[record(step, float(step), block=[[step, 1], [2, 3]])] for step in range(150)])
    await read_everything(stores.database)
    another = await stores.register("another", "w2")
    third = await stores.register("third", "w3")
    with statements(stores.database) as seen:
        await stores.commits.commit([asked(another, 0, 0, 1), asked(third, 0, 0)])
        await compactor(stores.database).run_once()
        last = 149
        await stores.series.read("run", ["loss"], step_from=3, step_to=last, points=9)
        how: tuple[Reduce, ...] = ("max", "last")
        for reduce in how:
            await stores.heatmap.read("run", "grad_norm", step_from=3, step_to=last, columns=9, reduce=reduce)
    assert len(seen) >= 12
    await expect_indexes(stores.database, seen)


async def test_exports_histograms_and_deletions_go_by_index_too(stores: Stores) -> None:
    database = stores.database
    shapes = (histogram("update", [[1] * 64] * 2), histogram("ratio", [[1] * 64] * 2))
    await store(stores, [[record(step, block=[[1, 2], [3, 4]], histograms=shapes)] for step in range(40)])
    await read_everything(database)
    await compactor(database).run_once()
    steps = StepReader(database, LayoutStore(database))
    with statements(database) as seen:
        begun = await steps.begin("run")
        assert len([chunk async for chunk in steps.walk(begun)]) > 1
        assert len([piece async for piece in HistogramHistory(database).walk(begun)]) == 80
        events = EventStore(database)
        assert [found async for found in events.walk("run")] == await events.of_run("run", step_from=1, step_to=9) == []
        assert [found async for found in AlertStore(database).walk("run")] == []
        nearest = await HistogramQuery(database).nearest("run", 0, "first", "ratio", 7)
        assert nearest is not None
        assert nearest.step == 7
    assert len(seen) >= 10
    await expect_indexes(database, seen)
    with statements(database) as seen:
        deletion = DeletionStore(database)
        await deletion.mark("run")
        while await deletion.purge_some("run"):
            pass
    assert len(seen) == 5
    await expect_indexes(database, seen)


def test_rows_that_refer_to_a_deleted_run_are_found_by_an_index() -> None:
    """Databases search for rows that refer to a deleted row, and no query plan shows this search."""
    for table in metadata.sorted_tables:
        keys = [list(index.columns) for index in table.indexes] + [list(table.primary_key.columns)]
        keys += [list(item.columns) for item in table.constraints if isinstance(item, UniqueConstraint)]
        for reference in table.foreign_keys:
            if reference.column.table.name in {"runs", "writers", "spans"}:
                assert any(columns[0] is reference.parent for columns in keys), reference.parent


async def _plan(database: Database, statement: str, parameters: Any) -> list[str]:
    async with database.snapshot() as connection:
        if database.is_sqlite:
            rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            return [str(row.detail) for row in rows]
        # Reading all rows is cheaper while there are so few: ask for the plan of a large table.
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        rows = await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        return [row[0] for row in rows]


def _is_scan(line: str) -> bool:
    if "Seq Scan" in line:
        return any(f"on {name}" in line for name in LARGE)
    return line.startswith("SCAN") and "INDEX" not in line and any(line.startswith(f"SCAN {name}") for name in LARGE)
