"""Lists of any length need few different statements."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from server.storage.database import Database
from server.storage.id_list import padded
from server.storage.measurements.tile_source import batches
from server.storage.runs import RunStore


@given(st.lists(st.integers(), max_size=300))
def test_a_padded_list_names_the_same_ids(ids: list[int]) -> None:
    found = padded(ids)
    assert found[: len(ids)] == ids
    assert set(found) == set(ids)
    assert len(found) < 2 * max(len(ids), 1)


def test_queries_name_one_of_nine_numbers_of_ids() -> None:
    lengths = {len(some) for count in range(700) for some in batches(range(count))}
    assert lengths == {2**power for power in range(9)}


async def test_prepared_statements_do_not_multiply_with_the_length_of_lists(database: Database) -> None:
    statements: set[str] = set()

    def remember(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.add(statement)

    store = RunStore(database)
    await store.heartbeat(range(1, 2), 0.0)
    event.listen(database.writing.sync_engine, "before_cursor_execute", remember)
    for count in range(1, 65):
        await store.heartbeat(range(1, count + 1), 0.0)
    event.remove(database.writing.sync_engine, "before_cursor_execute", remember)
    named = {statement for statement in statements if "FROM writers" in statement}
    assert len(named) == 7, "statements with 1, 2, 4, … 64 writers"
