"""Leases: expiring claims of a server to a task that several servers could do.

A lease avoids duplicate work. Where duplicates would be wrong, the database refuses them, with or without a lease.
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
from server.log_actions import LogAction

logger = logging.getLogger(__name__)

TROUBLE = (RedisError, OSError, TimeoutError)

TAKE: Final = """
-- KEYS: the lease. ARGV: the requesting server, milliseconds, "1" to take the lease from another server.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and ARGV[3] ~= '1' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

KEEP: Final = """
-- KEYS: leases. ARGV: their holder, milliseconds. Returns for each lease whether the holder still has it.
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
    """Claims of this server to tasks, identified by name."""

    seconds: float
    """Seconds after which a lease expires that is not renewed."""
    is_shared: bool
    """Whether other servers may compete for the leases."""

    async def take(self, name: str, *, force: bool = False) -> bool:
        """Return whether this server holds the lease now. ``force`` takes it from another server."""
        ...

    async def keep(self, names: Collection[str]) -> set[str]:
        """Renew the leases of this server. Returns the names of those that other servers have taken."""
        ...

    async def release(self, name: str) -> None:
        """Give a lease up, if this server holds it."""


class LocalLeases:
    """Leases of a single server, which always holds all of them."""

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
    """Leases stored in Redis: expiring keys whose value names the server that holds them.

    While Redis is unreachable, every server acts as if it held all leases.
    """

    is_shared = True

    def __init__(self, redis: Redis, seconds: float, is_away: Callable[[], bool]) -> None:
        """Create the leases of one server. ``is_away`` returns whether Redis is known to be unreachable."""
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
            logger.info(
                "a lease cannot be taken (%s); this server works without it",
                error,
                extra={"action": LogAction.LEASE_FAILED},
            )
            return True

    async def keep(self, names: Collection[str]) -> set[str]:
        if not names or self._is_away():
            return set()
        try:
            args: list[str | int] = [self._name, int(self.seconds * 1000)]
            kept = await self._calls.call(self._keep(keys=[_key(name) for name in names], args=args))
        except TROUBLE as error:
            logger.info(
                "the leases cannot be renewed (%s); this server works without them",
                error,
                extra={"action": LogAction.LEASE_FAILED},
            )
            return set()
        return {name for name, is_own in zip(names, kept, strict=True) if not is_own}

    async def release(self, name: str) -> None:
        if self._is_away():
            return
        try:
            await self._calls.call(self._release(keys=[_key(name)], args=[self._name]))
        except TROUBLE as error:
            logger.info(
                "a lease cannot be released (%s); it will expire", error, extra={"action": LogAction.LEASE_FAILED}
            )


def _key(name: str) -> str:
    return f"{PREFIX}lease:{name}"
