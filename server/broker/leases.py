"""Who does what among several servers, for as long as they say so. It saves work that two would do; what must not be
done twice is refused by the database, with or without a lease.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection
from typing import Final, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from server.broker.scripts import PREFIX
from server.broker.shielded_calls import ShieldedCalls

logger = logging.getLogger(__name__)

TROUBLE = (RedisError, OSError, TimeoutError)

TAKE: Final = """
-- KEYS: the lease. ARGV: who asks, milliseconds, "1" to take it from whoever has it.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and ARGV[3] ~= '1' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

KEEP: Final = """
-- KEYS: leases. ARGV: their holder, milliseconds. Returns of each whether it is still its own.
local answer = {}
for i, key in ipairs(KEYS) do
  local holder = redis.call('GET', key)
  local own = not holder or holder == ARGV[1]
  if own then redis.call('SET', key, ARGV[1], 'PX', ARGV[2]) end
  answer[i] = own and 1 or 0
end
return answer
"""

RELEASE: Final = """
-- KEYS: the lease. ARGV: its holder.
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""


class Leases(Protocol):
    seconds: float
    """How long one lasts that is not kept."""
    is_shared: bool
    """Whether there may be other servers."""

    async def take(self, name: str, *, force: bool = False) -> bool:
        """Whether it is ours now. ``force``: even where another server has it."""
        ...

    async def keep(self, names: Collection[str]) -> set[str]:
        """Make ours last longer; returns those that others have taken."""
        ...

    async def release(self, name: str) -> None: ...


class LocalLeases:
    """Of a server that is alone: it does everything."""

    is_shared = False

    def __init__(self, seconds: float = 15.0) -> None:
        self.seconds = seconds

    async def take(self, name: str, *, force: bool = False) -> bool:
        return True

    async def keep(self, names: Collection[str]) -> set[str]:
        return set()

    async def release(self, name: str) -> None:
        return None


class RedisLeases:
    """Keys that expire, each with the name of the server that holds it. While Redis is away every server holds all."""

    is_shared = True

    def __init__(self, redis: Redis, seconds: float, is_away: Callable[[], bool]) -> None:
        """``is_away``: whether it is known that Redis does not answer."""
        self.seconds = seconds
        self._name = secrets.token_hex(8)
        self._is_away = is_away
        self._calls = ShieldedCalls()
        self._take = redis.register_script(TAKE)
        self._keep = redis.register_script(KEEP)
        self._release = redis.register_script(RELEASE)

    async def take(self, name: str, *, force: bool = False) -> bool:
        if self._is_away():
            return True
        try:
            args: list[str | int] = [self._name, int(self.seconds * 1000), int(force)]
            return bool(await self._calls.call(self._take(keys=[_key(name)], args=args)))
        except TROUBLE as error:
            logger.info("no lease can be had (%s)", error, extra={"action": "lease_failed"})
            return True

    async def keep(self, names: Collection[str]) -> set[str]:
        if not names or self._is_away():
            return set()
        try:
            args: list[str | int] = [self._name, int(self.seconds * 1000)]
            kept = await self._calls.call(self._keep(keys=[_key(name) for name in names], args=args))
        except TROUBLE as error:
            logger.info("no lease can be kept (%s)", error, extra={"action": "lease_failed"})
            return set()
        return {name for name, is_own in zip(names, kept, strict=True) if not is_own}

    async def release(self, name: str) -> None:
        if self._is_away():
            return
        try:
            await self._calls.call(self._release(keys=[_key(name)], args=[self._name]))
        except TROUBLE as error:
            logger.info("a lease will expire by itself (%s)", error, extra={"action": "lease_failed"})


def _key(name: str) -> str:
    return f"{PREFIX}lease:{name}"
