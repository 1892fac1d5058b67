"""Compaction of a database in processes that kill themselves at a random statement, and a check of what they left.

    python -m campaigns.kill.killed_compactions URL SEED KILLS

The processes are forked from one, so that hundreds of kills take only seconds. The program prints how many were killed,
and exits with 1 at the first state of the database in which a record is missing, doubled or unreadable.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy import event, text

from server.models import RunState
from server.pipeline.packing import pack
from server.storage import migrate
from server.storage.database import Database
from server.storage.measurements.history import HistoryReader
from server.storage.measurements.integrity import Doctor
from tests.server.storage.conftest import Stores
from tests.server.storage.measurements.test_compaction import compactor, read_everything
from tests.support.writer import record

STEPS = 345  # more than two full levels, so that the last spans get parents too
BATCH = 5  # records
MAX_POINT = 60  # statements and commits before a process has killed itself; the next process continues from there


def main() -> int:
    """Compact and kill until the asked number of processes has died, and return the exit code."""
    url, seed, kills = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    noise = random.Random(seed)
    died = checked = 0
    _in_a_process(partial(_fill, url))
    while died < kills:
        killed = _in_a_process(partial(_compact, url, noise.randrange(1, MAX_POINT)))
        died += killed
        if _in_a_process(partial(_check, url)):
            raise AssertionError("the check was killed")
        checked += 1
        if not killed:
            _in_a_process(partial(_fill, url))
    sys.stdout.write(f"killed {died} times; {checked} states\n")
    return 0


def _in_a_process(work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
    """Do ``work`` in a forked process and return whether it was killed. Raises `AssertionError` if it failed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio.run(work())
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "a record is missing, doubled or unreadable"
    return False


async def _fill(url: str) -> None:
    database = Database(url)
    await migrate.upgrade(database)
    async with database.write() as connection:
        await connection.execute(text("DELETE FROM runs"))
    stores = Stores.over(database)
    writer = await stores.register()
    records = [record(step, float(step), block=[[step, 1], [2, 3]]) for step in range(STEPS)]
    drafts = [
        draft
        for first in range(0, STEPS, BATCH)
        for draft in pack(first + 1, records[first : first + BATCH], writer.layouts, {0: 2})
    ]
    await stores.commit_drafts(writer, 0, drafts)
    await read_everything(database)
    await stores.runs.finish_writer("run", writer.writer_id, RunState.FINISHED, 1_000.0)
    await database.close()


async def _compact(url: str, point: int) -> None:
    database = Database(url)
    left = point

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
        event.listen(database.reading.sync_engine, name, count)
        event.listen(database.writing.sync_engine, name, count)
    worker = compactor(database, BATCH)
    await worker.build_levels("run")
    await worker.run_once()
    await database.close()


async def _check(url: str) -> None:
    database = Database(url)
    steps: list[int] = []
    losses: list[float] = []
    async for piece in HistoryReader(database).pieces("run"):
        steps += piece.columns.steps.tolist()
        losses += piece.columns.scalars["loss"].values.tolist()
    assert steps == list(range(STEPS))
    assert losses == [float(step) for step in steps]
    damages = [damage async for damage in Doctor(database).examine(repair=False)]
    assert damages == []
    found = await Stores.over(database).heatmap.read(
        "run", "grad_norm", step_from=None, step_to=None, columns=75, reduce="max"
    )
    width = found.bucket_steps
    assert found.z[0].tolist() == np.minimum(np.arange(width - 1, STEPS + width - 1, width), STEPS - 1).tolist()
    await database.close()


if __name__ == "__main__":
    sys.exit(main())
