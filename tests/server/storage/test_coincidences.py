"""The comparison of outliers in a project with many runs: every statement is found by an index and bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import event, select, text

from server.coincidence import MAX_RUNS
from server.models import Outlier, Passage
from server.schema import monitors, outliers, runs
from server.storage.coincidences import Comparison, compare
from server.storage.database import Database
from server.storage.outliers import Observation

RUNS = 1_000
STEPS = 5_000
EACH = 10
"""Number of outliers of each run, at steps of its own."""


async def fill(database: Database) -> None:
    """Store a project of 1,000 runs that have passed all steps, each with outliers of its own."""
    named = [f"run{number:04}" for number in range(RUNS)]
    fixed: dict[str, Any] = {"project": "p", "state": "running", "config": {}, "tags": [], "last_seen_at": 0.0}
    state = {"rank": 0, "position": 1, "state": b"", "saved_at": 0.0, "first_step": 0, "interval": 1}
    async with database.write() as connection:
        await connection.execute(
            runs.insert(),
            [{"id": name, "name": name, "created_at": float(at), **fixed} for at, name in enumerate(named)],
        )
        await connection.execute(monitors.insert(), [{"run_id": name, "last_step": STEPS, **state} for name in named])
        rows = []
        for at, name in enumerate(named):
            for number in range(EACH):
                step = 100 + (at * 37 + number * 491) % (STEPS - 100)
                rows.append({
                    "run_id": name, "project": "p", "attempt": 0, "step": step, "interval": 1, "deviations": 9.0,
                    "loss": 3.0, "baseline": 2.0, "is_quiet": False, "is_large": number == 0, "spacing": 0.0,
                    "pattern": bytes(63), "is_watched": False,
                })  # fmt: skip
        await connection.execute(outliers.insert(), rows)
    async with database.write() as connection:
        await connection.execute(text("ANALYZE"))


def saved(run_id: str, first: int, last: int, *found: Outlier) -> Observation:
    return Observation(
        run_id=run_id,
        project="p",
        before=Passage(first_step=0, last_step=first, interval=1),
        after=Passage(first_step=0, last_step=last, interval=1),
        outliers=found,
        now=1.0,
    )


async def compared(database: Database, *observations: Observation) -> tuple[Comparison, list[tuple[str, Any]]]:
    """Compare in one transaction, and return the result with the statements that read."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, is_many: bool) -> None:
        if not is_many and statement.startswith("SELECT") and "advisory" not in statement:
            seen.append((statement, parameters))

    engine = database.writing.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        async with database.write() as connection:
            return await compare(connection, observations), seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def plans(database: Database, seen: Sequence[tuple[str, Any]]) -> list[list[str]]:
    word = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
    async with database.snapshot() as connection:
        found = [
            (await connection.exec_driver_sql(f"{word} {statement}", parameters)).all()
            for statement, parameters in seen
        ]
    return [[str(row.detail) if database.is_sqlite else row[0] for row in rows] for rows in found]


def scans(plan: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a plan that read a table from end to end."""
    for line in plan:
        is_whole = "Seq Scan on" in line or (line.startswith("SCAN ") and "INDEX" not in line)
        if is_whole and any(f" {name}" in line for name in ("outliers", "monitors", "runs", "alerts")):
            yield line


async def test_a_save_without_an_outlier_costs_one_bounded_query_in_a_project_of_1000_runs(database: Database) -> None:
    await fill(database)
    result, seen = await compared(database, *(saved(f"run{number:04}", 300, 400) for number in range(3)))
    assert (result.changed, len(seen)) == (set(), 1)
    (plan,) = await plans(database, seen)
    assert any("ix_outliers_watched" in line for line in plan), plan
    assert list(scans(plan)) == []


async def test_an_outlier_is_compared_by_index_in_a_project_of_1000_runs(database: Database) -> None:
    await fill(database)
    found = Outlier(step=2_263, loss=6.0, baseline=2.0, deviations=40.0, is_quiet=False, pattern=bytes(range(63)))
    again = Outlier(step=2_263, loss=5.0, baseline=2.0, deviations=30.0, is_quiet=False, pattern=bytes(range(63)))
    _, first = await compared(database, saved("run0001", 2_200, 2_300, found))
    result, second = await compared(database, saved("run0002", 2_200, 2_300, again))
    key = ("run0002", 0, 2_263)
    said = result.known[key]
    assert said is not None
    assert (said.same, said.runs[0].run_id, said.passed) == (1, "run0001", MAX_RUNS)
    assert result.changed == {("run0001", 0, 2_263), key}
    assert max(len(first), len(second)) <= 40
    for plan in await plans(database, [*first, *second]):
        assert list(scans(plan)) == [], plan


async def test_outliers_that_many_runs_have_passed_are_not_watched_any_more(database: Database) -> None:
    await fill(database)
    found = Outlier(step=2_263, loss=6.0, baseline=2.0, deviations=40.0, is_quiet=False)
    async with database.write() as connection:
        await connection.execute(monitors.update().values(last_step=2_000))
    await compared(database, saved("run0001", 2_200, 2_300, found))
    counts = []
    for number in range(2, MAX_RUNS + 4):
        result, _ = await compared(database, saved(f"run{number:04}", 2_200, 2_300))
        said = result.known.get(("run0001", 0, 2_263))
        counts.append(None if said is None else said.passed)
    assert counts == [*range(1, MAX_RUNS + 1), None, None]
    async with database.read() as connection:
        watched = (await connection.execute(select(outliers.c.id).where(outliers.c.is_watched))).all()
    assert watched == []


async def test_several_saves_in_one_transaction_count_each_run_once(database: Database) -> None:
    await fill(database)
    async with database.write() as connection:
        await connection.execute(monitors.update().values(last_step=2_000))
    found = Outlier(step=2_263, loss=6.0, baseline=2.0, deviations=40.0, is_quiet=False)
    await compared(database, saved("run0001", 2_200, 2_300, found))
    result, _ = await compared(database, *(saved(f"run{number:04}", 2_200, 2_300) for number in (2, 3, 4)))
    said = result.known["run0001", 0, 2_263]
    assert said is not None
    assert said.passed == 3
    result, _ = await compared(database, *(saved(f"run{number:04}", 2_300, 2_400) for number in (2, 3, 4)))
    assert result.changed == set()
