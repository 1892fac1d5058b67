"""Open sockets by token: how many there may be, how fast new ones may come, and their end when the token is revoked.

Limits are per process: a team with several servers has as many times more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server.auth.throttle import Throttle
from server.auth.tokens import Authenticator, Identity
from server.errors import DatabaseError, LimitError
from server.models import Principal

logger = logging.getLogger(__name__)

RECHECK_EVERY = 5.0  # seconds between two looks whether the tokens of open sockets still hold
MAX_PAUSE = 5.0  # seconds that a socket over its share of values is left unread at a time


@dataclass(frozen=True, kw_only=True)
class TokenLimits:
    """For each token."""

    connections: int
    new_per_second: float
    values_per_second: float
    """0: as many as come."""


class Admission:
    """One open socket."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.ended = asyncio.Event()
        """Set when the credential is valid no longer."""


class Admissions:
    def __init__(
        self,
        authenticator: Authenticator,
        limits: TokenLimits,
        *,
        recheck_every: float = RECHECK_EVERY,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authenticator = authenticator
        self._limits = limits
        self._recheck_every = recheck_every
        self._open: dict[Admission, None] = {}
        self._counts: Counter[str] = Counter()
        # A fleet that starts together says hello within a second: as many as may be open may come at once.
        self._arrivals = Throttle(max(limits.connections, limits.new_per_second), limits.new_per_second, monotonic)
        rate = limits.values_per_second
        self._values = Throttle(rate, rate, monotonic) if rate > 0 else None
        self._asked = asyncio.Event()

    @contextlib.contextmanager
    def admit(self, identity: Identity) -> Iterator[Admission]:
        """A socket for as long as the block runs. Raises `LimitError`."""
        key = identity.principal.key
        if self._counts[key] >= self._limits.connections:
            raise LimitError(
                f"this token has {self._limits.connections} open connections, the most that it may have "
                "(SPIKEWATCH_TOKEN_CONNECTIONS); close some, or use several tokens"
            )
        wait = self._arrivals.take(key)
        if wait > 0:
            raise LimitError(
                f"this token opens more than {self._limits.new_per_second:g} connections a second "
                f"(SPIKEWATCH_TOKEN_CONNECTIONS_PER_SECOND); try again in {math.ceil(wait)} s"
            )
        admission = Admission(identity)
        self._counts[key] += 1
        self._open[admission] = None
        try:
            yield admission
        finally:
            del self._open[admission]
            self._counts[key] -= 1
            if self._counts[key] == 0:
                del self._counts[key]

    def pause_after(self, principal: Principal, values: int) -> float:
        """Seconds to read nothing more of this token, for the values that came."""
        return 0.0 if self._values is None else min(self._values.owe(principal.key, values), MAX_PAUSE)

    def recheck(self) -> None:
        """Something was revoked: look at once."""
        self._asked.set()

    async def watch(self) -> None:
        """End the sockets of credentials that are valid no longer. Runs until it is cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._recheck_every):
                    await self._asked.wait()
            self._asked.clear()
            try:
                ended = await self._authenticator.ended([admission.identity for admission in self._open])
            except DatabaseError as error:  # who could not be asked for stays
                logger.warning("tokens are not rechecked (%s)", error, extra={"action": "token_recheck_failed"})
                continue
            for admission in self._open:
                if admission.identity.digest in ended:
                    admission.ended.set()
