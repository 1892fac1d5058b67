"""Limits on the open sockets of a token: their number, the rate of new ones, and their end when the token is revoked.

Limits apply to each process: several servers together allow proportionally more.
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
from server.log_actions import LogAction
from server.models import Principal

logger = logging.getLogger(__name__)

RECHECK_EVERY = 5.0  # seconds between checks whether the tokens of open sockets are still valid
MAX_PAUSE = 5.0  # maximum seconds for which a socket above its limit of values is not read


@dataclass(frozen=True, kw_only=True)
class TokenLimits:
    """Limits for each token."""

    connections: int
    new_per_second: float
    values_per_second: float
    """Maximum number of values per second; 0 means no limit."""


class Admission:
    """Open socket of a token."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.ended = asyncio.Event()
        """Event that is set when the credential is no longer valid."""


class Admissions:
    """Open sockets of this process. Use it from the event loop alone."""

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
        # Jobs that start together connect within a second: the allowed number of connections may arrive at once.
        self._arrivals = Throttle(max(limits.connections, limits.new_per_second), limits.new_per_second, monotonic)
        rate = limits.values_per_second
        self._values = Throttle(rate, rate, monotonic) if rate > 0 else None
        self._asked = asyncio.Event()

    @contextlib.contextmanager
    def admit(self, identity: Identity) -> Iterator[Admission]:
        """Count a socket as open for the duration of the block. Raises `LimitError` if the token may not open it."""
        key = identity.principal.key
        if self._counts[key] >= self._limits.connections:
            raise LimitError(
                f"this token has {self._limits.connections} open connections, the maximum "
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
        """Return the seconds for which no more may be read with this token after ``values`` values."""
        return 0.0 if self._values is None else min(self._values.owe(principal.key, values), MAX_PAUSE)

    def recheck(self) -> None:
        """Check the credentials of all open sockets now, because one was revoked."""
        self._asked.set()

    async def watch(self) -> None:
        """End the sockets of credentials that are no longer valid. Runs until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._recheck_every):
                    await self._asked.wait()
            self._asked.clear()
            try:
                ended = await self._authenticator.ended([admission.identity for admission in self._open])
            except DatabaseError as error:  # Sockets whose credentials could not be checked remain open.
                logger.warning(
                    "tokens cannot be rechecked (%s)", error, extra={"action": LogAction.TOKEN_RECHECK_FAILED}
                )
                continue
            for admission in self._open:
                if admission.identity.digest in ended:
                    admission.ended.set()
