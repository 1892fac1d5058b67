"""Brokers, in memory and over Redis: subscribers receive their messages once, and a slow one delays nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from server.broker import Broker, LiveMessage, MemoryBroker
from server.broker.memory import TAIL_BYTES
from server.broker.redis_broker import RedisBroker, connect
from server.broker.subscription import Subscription
from server.errors import ConfigurationError
from tests.support.redis import Redis

NO_DELAY = (0.01,)
Make = Callable[..., Awaitable[Broker]]


def message(number: int, run_id: str = "run", project: str = "project", kind: str = "run") -> LiveMessage:
    return LiveMessage(run_id=run_id, project=project, body={"type": kind, "number": number})


async def numbers(subscription: Subscription, count: int) -> list[int]:
    """Return the numbers of the next messages, which no control message may interrupt."""
    async with asyncio.timeout(20):
        return [(await subscription.get()).body()["number"] for _ in range(count)]


async def until(subscription: Subscription, kind: str) -> list[str]:
    """Return the types of all deliveries up to the first one of the given kind."""
    types: list[str] = []
    async with asyncio.timeout(20):
        while not types or types[-1] != kind:
            types.append((await subscription.get()).type)
    return types


async def publish(broker: Broker, *given: LiveMessage) -> None:
    for item in given:
        await broker.publish(item)


@pytest.fixture(params=["memory", "redis"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    """Factory of brokers; those over Redis share one server."""
    made: list[Broker] = []

    async def factory(capacity: int = 64, tail: int = 4096) -> Broker:
        broker: Broker
        if request.param == "memory":
            broker = MemoryBroker(capacity, tail=tail)
        else:
            redis: Redis = request.getfixturevalue("redis")
            broker = RedisBroker(connect(redis.url), capacity, tail=tail, run_tail=tail, delays=NO_DELAY)
        await broker.start()
        made.append(broker)
        return broker

    yield factory
    for broker in made:
        await broker.stop()


async def test_a_subscriber_gets_its_runs_in_order(make: Make) -> None:
    broker = await make()
    async with (
        broker.subscribe(run_ids=frozenset({"a", "c"}), project=None) as some,
        broker.subscribe(run_ids=None, project=None) as every,
        broker.subscribe(run_ids=None, project="p2") as second,
        broker.subscribe(run_ids=frozenset({"a"}), project=None, types=frozenset({"alert"})) as alerts,
    ):
        await publish(broker, message(1, "a", "p1"), message(2, "b", "p2"), message(3, "c", "p1"))
        await publish(broker, message(4, "a", "p1", "alert"), message(5, "a", "p2", "alert"))
        assert await numbers(some, 4) == [1, 3, 4, 5]
        assert await numbers(every, 5) == [1, 2, 3, 4, 5]
        assert await numbers(second, 2) == [2, 5]
        assert await numbers(alerts, 2) == [4, 5]


async def test_control_messages_reach_no_viewer(make: Make) -> None:
    broker = await make()
    async with (
        broker.subscribe(run_ids=None, project=None, types=frozenset({"writer"})) as server,
        broker.subscribe(run_ids=frozenset({"run"}), project=None) as viewer,
        broker.subscribe(run_ids=None, project=None) as fleet,
    ):
        await publish(broker, message(1, kind="writer"), message(2))
        assert await numbers(server, 1) == [1]
        assert await numbers(viewer, 1) == [2]
        assert await numbers(fleet, 1) == [2]


async def test_a_full_queue_drops_the_oldest_and_causes_one_resync(make: Make) -> None:
    broker = await make(capacity=8)
    async with (
        broker.subscribe(run_ids=None, project=None) as slow,
        broker.subscribe(run_ids=frozenset({"last"}), project=None) as other,
    ):
        await publish(broker, *(message(number) for number in range(20)), message(20, "last"))
        assert await numbers(other, 1) == [20]
        resync = await slow.get()
        assert resync.type == "resync"
        assert await numbers(slow, 8) == list(range(13, 21))
    async with broker.subscribe(run_ids=None, project=None, cursor=resync.cursor) as again:
        assert await numbers(again, 8) == list(range(13, 21)), "the cursor is that of the last missing message"


async def test_a_closed_subscription_gets_nothing(make: Make) -> None:
    broker = await make()
    async with broker.subscribe(run_ids=None, project=None) as gone:
        pass
    async with broker.subscribe(run_ids=None, project=None) as here:
        await publish(broker, message(7))
        assert await numbers(here, 1) == [7]
    assert gone.queued == 0


@pytest.mark.parametrize("run_ids", [None, frozenset({"a"}), frozenset({"a", "c"})])
async def test_a_cursor_brings_what_came_since_and_then_what_comes(make: Make, run_ids: frozenset[str] | None) -> None:
    broker = await make()
    async with broker.subscribe(run_ids=run_ids, project=None) as first:
        start = first.cursor
        assert not first.is_resumed
        await publish(broker, message(1, "a"), message(2, "b"), message(3, "a"))
        async with asyncio.timeout(20):
            seen = await first.get()
        assert seen.body()["number"] == 1
    missed = [2, 3] if run_ids is None else [3]
    async with broker.subscribe(run_ids=run_ids, project=None, cursor=seen.cursor) as again:
        assert again.is_resumed
        assert again.cursor == seen.cursor
        assert await numbers(again, len(missed)) == missed
        await publish(broker, message(4, "a"))
        assert await numbers(again, 1) == [4]
    async with broker.subscribe(run_ids=run_ids, project=None, cursor=start) as again:
        assert await numbers(again, len(missed) + 2) == [1, *missed, 4]


@pytest.mark.parametrize("cursor", ["", "nonsense", "a-b-c", "0-0", "9" * 5_000, "x-" + "9" * 5_000, "other-1-1", "-1"])
async def test_an_unknown_cursor_causes_a_resync(make: Make, cursor: str) -> None:
    broker = await make()
    await publish(broker, message(1))
    async with broker.subscribe(run_ids=None, project=None, cursor=cursor) as subscription:
        assert not subscription.is_resumed
        assert (await subscription.get()).type == "resync"


@pytest.mark.parametrize("run_ids", [None, frozenset({"run"})])
async def test_a_cursor_that_is_too_old_causes_a_resync(make: Make, run_ids: frozenset[str] | None) -> None:
    broker = await make(capacity=1_000, tail=8)
    async with broker.subscribe(run_ids=run_ids, project=None) as subscription:
        old = subscription.cursor
        for number in range(300):
            await publish(broker, message(number))
            assert await numbers(subscription, 1) == [number]
    async with broker.subscribe(run_ids=run_ids, project=None, cursor=old) as again:
        assert not again.is_resumed
        assert (await again.get()).type == "resync"
        await publish(broker, message(300))
        assert await numbers(again, 1) == [300]


async def test_few_large_messages_are_kept() -> None:
    broker = MemoryBroker(1_000)
    large = LiveMessage(run_id="run", project="project", body={"type": "run", "config": "x" * (TAIL_BYTES // 4)})
    async with broker.subscribe(run_ids=None, project=None) as subscription:
        first = subscription.cursor
        await publish(broker, *[large] * 7)
        kept = [(await subscription.get()).cursor for _ in range(7)][3]
    async with broker.subscribe(run_ids=None, project=None, cursor=first) as again:
        assert not again.is_resumed
    async with broker.subscribe(run_ids=None, project=None, cursor=kept) as again:
        assert again.is_resumed
        assert [(await again.get()).type for _ in range(3)] == ["run"] * 3


async def test_more_than_a_queue_holds_is_too_old(make: Make) -> None:
    broker = await make(capacity=8)
    async with broker.subscribe(run_ids=None, project=None) as subscription:
        old = subscription.cursor
    async with broker.subscribe(run_ids=frozenset({"last"}), project=None) as other:
        await publish(broker, *(message(number) for number in range(20)), message(20, "last"))
        await numbers(other, 1)
    async with broker.subscribe(run_ids=None, project=None, cursor=old) as again:
        assert (await again.get()).type == "resync"


async def test_a_reader_that_is_slower_than_the_tail_gets_a_resync(redis: Redis) -> None:
    broker = RedisBroker(connect(redis.url), 1_000, tail=8, run_tail=8)
    await broker.start()
    async with broker.subscribe(run_ids=None, project=None) as subscription:
        await publish(broker, *(message(number) for number in range(500)))
        assert (await until(subscription, "resync"))[-1] == "resync"
    await broker.stop()


def broker_on(redis: Redis) -> RedisBroker:
    return RedisBroker(connect(redis.url), 1_000, run_tail=1_000, delays=NO_DELAY)


@pytest.fixture
async def pair(own_redis: Redis) -> AsyncIterator[tuple[RedisBroker, RedisBroker]]:
    """Brokers of two servers."""
    one, two = broker_on(own_redis), broker_on(own_redis)
    for broker in (one, two):
        await broker.start()
    yield one, two
    for broker in (one, two):
        await broker.stop()


async def test_servers_receive_each_others_messages_and_resume_each_others_cursors(
    pair: tuple[RedisBroker, RedisBroker],
) -> None:
    one, two = pair
    async with (
        one.subscribe(run_ids=None, project=None) as here,
        two.subscribe(run_ids=frozenset({"run"}), project=None) as there,
    ):
        for number in range(10):
            await publish(one if number % 2 else two, message(number))
            assert await numbers(here, 1) == await numbers(there, 1) == [number]
        cursor = here.cursor
    async with two.subscribe(run_ids=None, project=None, cursor=cursor) as moved:
        assert await numbers(moved, 10) == list(range(10))


async def test_many_subscribers_that_come_and_go_miss_nothing_and_get_nothing_twice(
    pair: tuple[RedisBroker, RedisBroker],
) -> None:
    one, two = pair
    done = 300

    async def follow(broker: RedisBroker, run_ids: frozenset[str] | None, start: str) -> list[int]:
        seen: list[int] = []
        cursor = start
        while not seen or seen[-1] != done:
            async with broker.subscribe(run_ids=run_ids, project=None, cursor=cursor) as subscription:
                for _ in range(7):
                    delivery = await subscription.get()
                    seen.append(delivery.body()["number"])
                    cursor = delivery.cursor
                    if seen[-1] == done:
                        break
        return seen

    async with one.subscribe(run_ids=None, project=None) as first:
        start = first.cursor
    followers = [
        asyncio.create_task(follow(broker, run_ids, start))
        for broker in (one, two)
        for run_ids in (None, frozenset({"a"}), frozenset({"a", "b"}))
    ]
    for number in range(done + 1):
        await publish(one, message(number, "a"))
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        for seen in await asyncio.gather(*followers):
            assert seen == list(range(done + 1))


async def test_without_redis_a_server_delivers_to_its_own_and_says_so(
    own_redis: Redis, pair: tuple[RedisBroker, RedisBroker]
) -> None:
    one, two = pair
    async with (
        one.subscribe(run_ids=None, project=None) as here,
        two.subscribe(run_ids=frozenset({"run"}), project=None) as there,
    ):
        before = here.cursor
        own_redis.kill()
        assert await until(here, "degraded") == ["degraded"]
        assert await until(there, "degraded") == ["degraded"]
        assert one.is_degraded
        await publish(one, message(1))
        assert await numbers(here, 1) == [1]
        async with one.subscribe(run_ids=None, project=None, cursor=before) as new:
            assert [(await new.get()).type for _ in range(2)] == ["resync", "degraded"]
        own_redis.start_again()
        assert await until(here, "resync") == ["restored", "resync"]
        assert (await until(there, "resync"))[:2] == ["restored", "resync"], "no server knows what it has missed"
        assert not one.is_degraded
        async with one.subscribe(run_ids=None, project=None, cursor=before) as late:
            assert (await late.get()).type == "resync", "a cursor from before the outage cannot be resumed"
        await publish(two, message(2))
        async with asyncio.timeout(20):
            while (delivery := await here.get()).type == "resync":
                pass
        assert delivery.body()["number"] == 2


async def test_a_server_that_alone_lost_redis_resyncs_subscribers_of_the_others(own_redis: Redis) -> None:
    one, two = broker_on(own_redis), broker_on(own_redis)
    await two.start()
    async with two.subscribe(run_ids=frozenset({"run"}), project=None) as viewer:
        await publish(one, message(1))  # The message has not reached Redis yet.
        await one.start()
        assert await until(viewer, "resync") == ["resync"]
    for broker in (one, two):
        await broker.stop()


async def test_a_redis_that_hangs_delays_no_publisher(own_redis: Redis, pair: tuple[RedisBroker, RedisBroker]) -> None:
    one, _ = pair
    async with one.subscribe(run_ids=None, project=None) as here:
        own_redis.pause()
        try:
            async with asyncio.timeout(1):
                await publish(one, *(message(number) for number in range(10)))
            types = await until(here, "degraded")
            assert types == ["degraded"]
            assert await numbers(here, 10) == list(range(10))
        finally:
            own_redis.go_on()
        await until(here, "restored")


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://localhost", "redis://localhost:port/0"])
def test_a_url_that_is_not_one_of_redis_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="SPIKEWATCH_REDIS_URL"):
        connect(url)


async def test_a_refused_login_is_a_configuration_error_and_an_outage_is_not() -> None:
    locked = Redis()
    try:
        async with connect(locked.url) as client:
            await client.config_set("requirepass", "secret")
        refused = broker_on(locked)
        with pytest.raises(ConfigurationError, match="SPIKEWATCH_REDIS_URL"):
            await refused.check()
        await refused.stop()
        async with connect(locked.url, "secret") as client:
            assert await client.ping()
        locked.kill()
        away = broker_on(locked)
        await away.check()
        await away.stop()
    finally:
        locked.stop()
