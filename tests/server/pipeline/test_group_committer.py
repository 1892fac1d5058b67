"""Shared transactions: a request never fails because of another one, and every run gets its share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from server.errors import DatabaseBusyError, DatabaseUnavailableError
from server.pipeline.group_committer import GroupCommitter

KIB = 1024


class Ledger:
    """A store that writes groups when the test lets it, and fails on request."""

    def __init__(self, most: float = 4 * KIB) -> None:
        self.groups: list[list[str]] = []
        self.faults: dict[str, Exception] = {}
        """Exceptions that are raised for the whole group of a request, keyed by request."""
        self.refused: dict[str, Exception] = {}
        """Exceptions that are returned for a single request, keyed by request."""
        self.stuck = asyncio.Event()
        """Event that a transaction of the single request "stuck" waits for."""
        self.open = asyncio.Event()
        self.open.set()
        self.writer: GroupCommitter[str, int] = GroupCommitter(self._write, max_bytes=most, gather=0.0)

    async def _write(self, requests: Sequence[str]) -> list[int | Exception]:
        self.groups.append(list(requests))
        await self.open.wait()
        if requests == ["stuck"]:
            await self.stuck.wait()
        for request in requests:
            if request in self.faults:
                raise self.faults[request]
        return [self.refused.get(request, len(request)) for request in requests]

    def ask(self, request: str, run_id: str, cost: float = 1.0) -> asyncio.Task[int]:
        return asyncio.create_task(self.writer.write(request, run_id, cost))


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_requests_that_arrive_during_a_transaction_share_the_next_one() -> None:
    ledger = Ledger()
    ledger.open.clear()
    tasks = [ledger.ask("first", "a")]
    await settle()
    tasks += [ledger.ask(name, name) for name in ("b", "cc", "ddd")]
    await settle()
    assert ledger.groups == [["first"]]
    ledger.open.set()
    assert await asyncio.gather(*tasks) == [5, 1, 2, 3]
    assert ledger.groups == [["first"], ["b", "cc", "ddd"]]


async def test_a_flood_does_not_keep_a_calm_run_waiting() -> None:
    """The queue is in front of the transaction, so this holds for every database."""
    ledger = Ledger()
    ledger.open.clear()
    tasks = [ledger.ask(f"flood{number}", "flood", 4 * KIB) for number in range(20)]
    await settle()
    assert ledger.writer.is_contended
    tasks.append(ledger.ask("calm", "calm", 10.0))
    ledger.open.set()
    await asyncio.gather(*tasks)
    at = next(number for number, group in enumerate(ledger.groups) if "calm" in group)
    assert at <= 2, "behind the running transaction and at most one piece of the flood"
    assert len(ledger.groups) >= 20


async def test_an_error_of_one_request_is_raised_to_its_caller_alone() -> None:
    ledger = Ledger()
    ledger.refused["bad"] = ValueError("no")
    results = await asyncio.gather(
        *(ledger.ask(name, name) for name in ("good", "bad", "fine")), return_exceptions=True
    )
    assert [type(result) for result in results] == [int, ValueError, int]
    assert len(ledger.groups) == 1


@pytest.mark.parametrize("fault", [RuntimeError("unexpected"), DatabaseBusyError("deadlock")])
async def test_a_failed_group_is_written_one_by_one(fault: Exception) -> None:
    ledger = Ledger()
    ledger.faults["bad"] = fault
    names = ("one", "bad", "two", "three")
    results = await asyncio.gather(*(ledger.ask(name, name) for name in names), return_exceptions=True)
    assert [type(result) for result in results] == [int, type(fault), int, int]
    assert sorted(map(len, ledger.groups)) == [1, 1, 1, 1, 4]


async def test_an_outage_is_raised_to_all_callers_at_once() -> None:
    ledger = Ledger()
    ledger.faults["one"] = DatabaseUnavailableError("away")
    results = await asyncio.gather(*(ledger.ask(name, name) for name in ("one", "two")), return_exceptions=True)
    assert [type(result) for result in results] == [DatabaseUnavailableError] * 2
    assert len(ledger.groups) == 1


async def test_a_request_that_waits_for_a_row_does_not_delay_the_next_transaction() -> None:
    ledger = Ledger()
    ledger.faults["stuck"] = DatabaseBusyError("locked")
    stuck, other = ledger.ask("stuck", "stuck"), ledger.ask("other", "other")
    assert await other == 5
    assert await ledger.ask("later", "later") == 5
    assert not stuck.done()
    ledger.stuck.set()
    with pytest.raises(DatabaseBusyError):
        await stuck


async def test_a_request_of_a_cancelled_caller_is_left_out() -> None:
    ledger = Ledger()
    ledger.open.clear()
    first = ledger.ask("first", "a")
    await settle()
    gone, kept = ledger.ask("gone", "b"), ledger.ask("kept", "c")
    await settle()
    gone.cancel()
    ledger.open.set()
    assert list(await asyncio.gather(first, kept)) == [5, 4]
    assert ledger.groups == [["first"], ["kept"]]
    await ledger.writer.stop()


async def test_stop_waits_for_requests_in_progress() -> None:
    ledger = Ledger()
    ledger.open.clear()
    tasks = [ledger.ask(name, name) for name in ("a", "b")]
    await settle()
    stopping = asyncio.create_task(ledger.writer.stop())
    await settle()
    assert not stopping.done()
    ledger.open.set()
    await stopping
    assert await asyncio.gather(*tasks) == [1, 1]
