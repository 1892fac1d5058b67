"""Every statement of a query or a compaction finds its rows by an index, on both databases."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event, text

from server.storage.database import Database
from server.storage.heatmap import Reduce
from tests.server.storage.conftest import Stores
from tests.server.storage.test_commits import asked
from tests.server.storage.test_compaction import compactor, read_everything, store
from tests.support.writer import record

LARGE = ("segments", "spans", "tiles", "histograms", "events", "attempts")


async def test_no_statement_reads_a_table_from_end_to_end(stores: Stores) -> None:
    await store(stores, [[record(step, float(step), block=[[step, 1], [2, 3]])] for step in range(150)])
    await read_everything(stores.database)
    another = await stores.register("another", "w2")
    seen: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, is_many: bool) -> None:
        if (
            not is_many
            and statement.startswith(("SELECT", "DELETE", "UPDATE"))
            and any(name in statement for name in LARGE)
        ):
            seen.setdefault(statement, parameters)

    engines = (stores.database.reading.sync_engine, stores.database.writing.sync_engine)
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    await stores.commits.commit([asked(another, 0, 0, 1), asked(await stores.register("third", "w3"), 0, 0)])
    await compactor(stores.database).run_once()
    last = 149
    await stores.series.read("run", ["loss"], step_from=3, step_to=last, points=9)
    how: tuple[Reduce, ...] = ("max", "last")
    for reduce in how:
        await stores.heatmap.read("run", "grad_norm", step_from=3, step_to=last, columns=9, reduce=reduce)
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)
    assert len(seen) >= 12
    for statement, parameters in seen.items():
        for line in await _plan(stores.database, statement, parameters):
            assert not _is_scan(line), f"{line}\n{statement}"


async def _plan(database: Database, statement: str, parameters: Any) -> list[str]:
    async with database.snapshot() as connection:
        if database.is_sqlite:
            rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            return [str(row.detail) for row in rows]
        # With so few rows reading all of them is cheaper: ask for the plan of a large table.
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        rows = await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        return [row[0] for row in rows]


def _is_scan(line: str) -> bool:
    if "Seq Scan" in line:
        return any(f"on {name}" in line for name in LARGE)
    return line.startswith("SCAN") and "INDEX" not in line and any(line.startswith(f"SCAN {name}") for name in LARGE)
