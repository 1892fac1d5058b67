"""Publish and subscribe: everybody gets what is theirs, and a slow one slows nobody."""

from __future__ import annotations

from server.broker import MemoryBroker, Message


def message(run_id: str = "run", project: str = "project", number: int = 0) -> Message:
    return Message(run_id=run_id, project=project, body={"type": "run", "number": number})


async def test_a_subscriber_gets_its_runs_in_order() -> None:
    broker = MemoryBroker(16)
    async with (
        broker.subscribe(run_ids=frozenset({"a"}), project=None) as one,
        broker.subscribe(run_ids=None, project=None) as every,
        broker.subscribe(run_ids=None, project="p2") as second,
    ):
        await broker.publish(message("a", "p1", 1))
        await broker.publish(message("b", "p2", 2))
        await broker.publish(message("a", "p1", 3))
        assert [(await one.get()).body["number"] for _ in range(2)] == [1, 3]  # type: ignore[union-attr]
        assert [(await every.get()).body["number"] for _ in range(3)] == [1, 2, 3]  # type: ignore[union-attr]
        assert (await second.get()).body["number"] == 2  # type: ignore[union-attr]


async def test_a_full_queue_drops_the_oldest_and_says_so_once() -> None:
    broker = MemoryBroker(8)
    async with broker.subscribe(run_ids=None, project=None) as subscription:
        for number in range(20):
            await broker.publish(message(number=number))
        assert await subscription.get() is None
        kept = [await subscription.get() for _ in range(8)]
        assert [item.body["number"] for item in kept if item is not None] == list(range(12, 20))


async def test_who_has_left_gets_nothing() -> None:
    broker = MemoryBroker(8)
    async with broker.subscribe(run_ids=None, project=None) as gone:
        pass
    async with broker.subscribe(run_ids=None, project=None) as here:
        await broker.publish(message(number=7))
        assert (await here.get()).body["number"] == 7  # type: ignore[union-attr]
    assert not gone._queue
