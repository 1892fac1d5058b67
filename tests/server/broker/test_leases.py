"""Leases among several servers: one holder at a time, and every server while Redis is unreachable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from server.broker.leases import RedisLeases
from server.broker.redis_broker import connect
from tests.support.redis import Redis


@pytest.fixture
async def pair(own_redis: Redis) -> AsyncIterator[tuple[RedisLeases, RedisLeases]]:
    client = connect(own_redis.url)
    yield RedisLeases(client, 60.0, lambda: False), RedisLeases(client, 60.0, lambda: False)
    await client.aclose()


async def test_one_server_holds_a_lease_until_it_releases_or_loses_it(pair: tuple[RedisLeases, RedisLeases]) -> None:
    one, two = pair
    assert await one.take("work")
    assert await one.take("work")
    assert not await two.take("work")
    assert await two.take("other")
    await two.release("work")
    assert not await two.take("work"), "only the holder releases a lease"
    assert await two.take("work", force=True)
    assert await one.keep(["work", "free"]) == {"work"}
    await two.release("work")
    assert await one.take("work")


async def test_of_many_that_ask_at_once_one_gets_it(pair: tuple[RedisLeases, RedisLeases]) -> None:
    one, two = pair
    for number in range(20):
        assert sum(await asyncio.gather(one.take(f"{number}"), two.take(f"{number}"))) == 1


async def test_a_lease_that_is_not_kept_expires(own_redis: Redis) -> None:
    client = connect(own_redis.url)
    gone, after = RedisLeases(client, 0.05, lambda: False), RedisLeases(client, 60.0, lambda: False)
    assert await gone.take("work")
    async with asyncio.timeout(20):
        while not await after.take("work"):
            pass
    assert await gone.keep(["work"]) == {"work"}
    await client.aclose()


async def test_without_redis_every_server_holds_the_lease(
    own_redis: Redis, pair: tuple[RedisLeases, RedisLeases]
) -> None:
    one, two = pair
    assert await one.take("work")
    own_redis.kill()
    assert await two.take("work")
    assert await one.keep(["work"]) == set()
    await one.release("work")
    own_redis.start_again()
    assert await one.keep(["work"]) == set(), "a lease that Redis has lost is still held"
    assert not await two.take("work")
