"""The write lock is granted in fair order, and cancellations do not lose it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import text

from server.storage.database import Database
from server.storage.fair_write_lock import FairWriteLock


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


class Line:
    """Pieces of work that hold the lock until the test ends them."""

    def __init__(self, at_once: int = 1) -> None:
        self.write_lock = FairWriteLock(at_once)
        self.begun: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def want(self, name: str, run_id: str, cost: float) -> None:
        self.ends[name] = asyncio.Event()

        async def work() -> None:
            async with self.write_lock.hold(run_id, cost):
                self.begun.append(name)
                await self.ends[name].wait()

        self.tasks[name] = asyncio.create_task(work())
        await settle()

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await settle()

    async def end_all(self) -> list[str]:
        """End all pieces one after another, and return the order in which they began."""
        ended: set[str] = set()
        while len(ended) < len(self.tasks):
            name = next(name for name in self.begun if name not in ended)
            ended.add(name)
            await self.end(name)
        return self.begun


async def test_a_calm_run_is_ahead_of_the_backlog_of_others() -> None:
    line = Line()
    for number in range(3):
        await line.want(f"flood{number}", "flood", 1_000)
        await line.want(f"storm{number}", "storm", 1_000)
    await line.want("calm", "calm", 10)
    assert (await line.end_all())[:3] == ["flood0", "storm0", "calm"]


async def test_backlogs_share_by_their_bytes() -> None:
    line = Line()
    for number in range(2):
        await line.want(f"large{number}", "large", 400)
    for number in range(8):
        await line.want(f"small{number}", "small", 100)
    order = await line.end_all()
    assert order.index("large1") == 5, "four small pieces follow the first large one"


async def test_an_idle_run_accumulates_no_credit() -> None:
    line = Line()
    await line.want("first", "busy", 1_000)
    await line.want("second", "busy", 1_000)
    await line.end("first")
    for number in range(3):
        await line.want(f"late{number}", "late", 1_000)
    await line.want("third", "busy", 1_000)
    assert await line.end_all() == ["first", "second", "late0", "late1", "third", "late2"]


async def test_the_lock_has_as_many_holders_as_allowed() -> None:
    line = Line(at_once=2)
    for number in range(4):
        await line.want(f"{number}", f"run{number}", 1)
    assert line.begun == ["0", "1"]
    assert line.write_lock.is_contended
    assert await line.end_all() == ["0", "1", "2", "3"]
    assert not line.write_lock.is_contended


async def test_a_cancelled_waiter_does_not_take_the_lock_with_it() -> None:
    line = Line()
    for name in ("holder", "leaver", "next"):
        await line.want(name, name, 1)
    line.tasks["leaver"].cancel()
    await line.end("holder")
    assert line.begun == ["holder", "next"]
    line.tasks["next"].cancel()
    await settle()
    await line.want("last", "last", 1)
    assert line.begun == ["holder", "next", "last"]
    await line.end("last")
    await asyncio.gather(*line.tasks.values(), return_exceptions=True)


async def test_small_transactions_do_not_starve_the_commits_of_a_run(tmp_path: Path) -> None:
    """Hellos and detector states have no size of their own; many of them must not always come first."""
    database = Database(f"sqlite:///{tmp_path / 'lock.db'}")
    written, done = 0, asyncio.Event()

    async def write_for_ever() -> None:
        nonlocal written
        while not done.is_set() and written < 400:
            async with database.write() as connection:
                await connection.execute(text("SELECT 1"))
                written += 1

    others = [asyncio.create_task(write_for_ever()) for _ in range(3)]
    for _ in range(3):
        async with database.write("run", 50_000) as connection:
            await connection.execute(text("SELECT 1"))
    done.set()
    await asyncio.gather(*others)
    await database.close()
    assert written < 100
