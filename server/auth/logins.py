"""Logins of browsers: a token or the password is exchanged for a separate credential, which the login cookie holds.

A login has the permissions of its token and ends with it. Failed attempts are counted per address and, for passwords,
also over all addresses.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from server.auth.password import Password
from server.auth.throttle import Throttle
from server.auth.tokens import SESSION_PREFIX, Authenticator, Identity, digest_of, new_session, proof_of
from server.errors import ApiError
from server.log_actions import LogAction

logger = logging.getLogger(__name__)

HASHES_AT_ONCE = 2
"""Maximum number of passwords that are hashed at the same time; further attempts wait."""
ALL_ADDRESSES = 20
"""Multiple of the limit of one address that applies to all addresses together, for the password."""
WRONG = "this token or password is not valid here; check it, or create a token with `spikewatch token create`"


@dataclass(frozen=True, kw_only=True)
class LoginSettings:
    """Settings of logins."""

    password: str | None = field(default=None, repr=False)
    days: float
    attempts: int
    """Failed attempts that an address may make at once; one more is allowed every ``window / attempts`` seconds."""
    window: float
    """Time in seconds after which all attempts are allowed again."""


@dataclass(frozen=True, kw_only=True)
class Login:
    """New login and its credential."""

    credential: str = field(repr=False)
    identity: Identity


class LoginStore(Protocol):
    """Storage of logins; implemented by `storage.sessions`."""

    async def create(
        self, digest: str, *, kind: str, token_id: int | None, proof: str | None, now: float, expires_at: float
    ) -> None:
        """Store a login."""
        ...

    async def delete(self, digest: str) -> None:
        """Remove a login."""
        ...


class Logins:
    """Opens and closes logins."""

    def __init__(
        self,
        authenticator: Authenticator,
        store: LoginStore,
        settings: LoginSettings,
        *,
        count: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the logins of a server. ``count`` is called with "opened", "refused" or "throttled" for
        every attempt.
        """
        self._count = count
        self._authenticator = authenticator
        self._store = store
        self._settings = settings
        self._password = None if settings.password is None else Password(settings.password)
        self._clock = clock
        refill = settings.attempts / settings.window
        self._of_address = Throttle(settings.attempts, refill, monotonic)
        self._of_all = Throttle(ALL_ADDRESSES * settings.attempts, ALL_ADDRESSES * refill, monotonic)
        self._hashing = asyncio.Semaphore(HASHES_AT_ONCE)

    async def open(self, secret: str, address: str) -> Login:
        """Open a login with a token or the password.

        ``address`` is that of the browser; addresses that one household or machine controls count as one. Raises
        `ApiError` for a wrong secret and after too many of them, and `DatabaseError`.
        """
        # Tokens cannot be guessed, so their holders are never locked out by other attempts from the same address.
        identity = None if secret.startswith(SESSION_PREFIX) else await self._authenticator.identity(secret)
        if identity is not None:
            return await self._remember(secret, "admin" if identity.token_id is None else "token", identity.token_id)
        await self._check_password(secret, _network(address))
        return await self._remember(secret, "password", None)

    async def close(self, credential: str) -> None:
        """End the login. Raises `DatabaseError`."""
        await self._store.delete(digest_of(credential))
        self._authenticator.forget()

    async def _check_password(self, secret: str, network: str) -> None:
        # Counted before the result is known and refunded on success: concurrent attempts count like consecutive ones.
        buckets = [(self._of_address, network), (self._of_all, "all")]
        for throttle, key in buckets if self._password is not None else buckets[:1]:
            self._check(throttle.take(key), network)
        if self._password is not None:
            async with self._hashing:
                right = await self._password.is_right(secret)
            if right:
                for throttle, key in buckets:
                    throttle.give_back(key)
                return
        self._count("refused")
        logger.warning("a login was refused", extra={"action": LogAction.LOGIN_REFUSED, "address": network})
        raise ApiError(401, "wrong_credentials", WRONG)

    async def _remember(self, secret: str, kind: str, token_id: int | None) -> Login:
        now = self._clock()
        credential = new_session()
        await self._store.create(
            digest_of(credential),
            kind=kind,
            token_id=token_id,
            proof=proof_of(credential, secret) if token_id is None else None,
            now=now,
            expires_at=now + self._settings.days * 86_400,
        )
        identity = await self._authenticator.identity(credential)
        if identity is None:
            raise ApiError(401, "wrong_credentials", WRONG)  # The token was revoked at this very moment.
        self._count("opened")
        logger.info("a login was opened", extra={"action": LogAction.LOGIN, "kind": kind, "token_id": token_id})
        return Login(credential=credential, identity=identity)

    def _check(self, wait: float, network: str) -> None:
        if wait <= 0:
            return
        seconds = math.ceil(wait)
        self._count("throttled")
        logger.warning("too many logins failed", extra={"action": LogAction.LOGIN_THROTTLED, "address": network})
        raise ApiError(
            429, "too_many_attempts", f"too many failed attempts; wait {seconds} s and try again", retry_after=seconds
        )


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(parsed if parsed.version == 4 else ipaddress.ip_network((parsed, 64), strict=False))
